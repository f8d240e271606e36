"""Owns deepseek_v4's place among the families: its config is read by its own model, and by nothing else."""

from __future__ import annotations

from mach.io.config_file import ConfigFields
from mach.io.deepseek_v4_config import DeepseekV4Config
from mach.io.deepseek_v4_tensors import deepseek_v4_tensors as tensors_of
from mach.io.deepseek_v4_tensors import own_name
from mach.io.families.config_values import Values

__all__ = ["config_of", "path_of", "tensors_of", "unsupported"]


def config_of(config: ConfigFields, text: ConfigFields) -> Values:
    """The config as it is: `DeepseekV4Config` knows every spelling.

    Raises:
        ConfigError: a field is missing, impossible, or asks for what the model does not do.
    """
    DeepseekV4Config.read(config)
    return config.values


def unsupported(text: ConfigFields) -> str | None:
    """None: reading the config has refused everything that is not computed."""
    return None


def path_of(name: str, text: ConfigFields) -> str | None:
    """The model's path of a checkpoint's tensor, or None where loading drops it."""
    return own_name(name)
