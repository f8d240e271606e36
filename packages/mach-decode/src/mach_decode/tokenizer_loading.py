"""Owns the loading of a checkpoint's tokenizer; `text_stream` turns its tokens into text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_config, load_tokenizer

from mach_decode.errors import TokenizerError


def load_checkpoint_tokenizer(directory: Path) -> Any:
    """mlx-lm's wrapper of the checkpoint's tokenizer, with the end tokens that the checkpoint names.

    Raises:
        TokenizerError: there is none, or it cannot be loaded.
    """
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise TokenizerError(f"{directory}: has no tokenizer.json or tokenizer.model")
    # mlx-lm's load reads end tokens from generation_config.json through the config: so does this.
    try:
        return load_tokenizer(
            directory,
            # The engine bounds prompts by the model's context; the tokenizer would only warn, on stderr.
            {"model_max_length": sys.maxsize},
            eos_token_ids=load_config(directory).get("eos_token_id"),
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise TokenizerError(f"{directory}: the tokenizer cannot be loaded: {error}") from error
