"""Train the tokenizer: byte-level BPE with 8,192 tokens, and the files that transformers and mlx-lm load.

Owns the special tokens and the splitting rule. The rule is Qwen's with one change: a quotation mark never
joins the word behind it, so that a name reads the same inside JSON and inside a question.

In:  BUILD/corpus/train.jsonl. Out: BUILD/tokenizer/{tokenizer.json, tokenizer_config.json,
     chat_template.jinja}.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import template
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SIZE = 8192
CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|mask|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
)
"""Tokens that a decoder drops from its text."""

VISIBLE = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Tokens that stay in decoded text, because parsers look for them."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}\"']?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAMPLE_BYTES = 60_000_000


def sample(corpus: Path) -> Iterator[str]:
    """About SAMPLE_BYTES of the training documents, documentation and code as they come."""
    chance, taken = random.Random(3), 0
    with corpus.open() as lines:
        for line in lines:
            if chance.random() < 0.2:
                text = json.loads(line)["text"][:60_000]
                taken += len(text)
                yield text
                if taken > SAMPLE_BYTES:
                    return


def train(corpus: Path) -> Tokenizer:
    """A tokenizer trained on `corpus`; the added tokens take the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(CONTROL) - len(VISIBLE),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=10,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(corpus), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in VISIBLE])
    assert tokenizer.get_vocab_size() == SIZE
    return tokenizer


def configuration(tokenizer: Tokenizer) -> dict[str, object]:
    """tokenizer_config.json; Qwen's class would replace the splitting rule, so the class is the plain one."""
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text,
            "lstrip": False,
            "rstrip": False,
            "single_word": False,
            "normalized": False,
            "special": text in CONTROL,
        }
        for text in CONTROL + VISIBLE
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "added_tokens_decoder": added,
    }


def main() -> None:
    """Train and write the tokenizer."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--build", type=Path, default=Path("build"))
    options = arguments.parse_args()
    out = options.build / "tokenizer"
    out.mkdir(exist_ok=True)
    tokenizer = train(options.build / "corpus/train.jsonl")
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer_config.json").write_text(json.dumps(configuration(tokenizer), indent=1) + "\n")
    shutil.copy(template.PATH, out)
    print({text: tokenizer.token_to_id(text) for text in CONTROL + VISIBLE})


if __name__ == "__main__":
    main()
