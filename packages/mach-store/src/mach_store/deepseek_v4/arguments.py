"""Owns the name that mlx-lm's loader gives a family's configuration; its reading is mach-core's."""

from mach.io.deepseek_v4_config import DeepseekV4Config

ModelArgs = DeepseekV4Config
"""`ModelArgs.from_dict(config)` validates a whole config.json and normalises its spellings."""
