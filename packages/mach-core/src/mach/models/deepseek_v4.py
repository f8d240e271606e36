"""Lazy facade: `Model` and `ModelArgs` of deepseek_v4, which this version does not have."""

from mach.facade import absent_attributes

__getattr__, __dir__ = absent_attributes(
    __name__,
    ("Model", "ModelArgs"),
    "this version of mach cannot build DeepSeek-V4 (mlx-lm has no such model yet); its checkpoints can be "
    "inspected, not loaded",
)
