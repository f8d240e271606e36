"""DeepSeek-V4 as mach's own MLX model, in mlx-lm's conventions: `ModelArgs.from_dict` and `Model`.

mlx-lm has no such model. Formulas follow transformers 5's `models/deepseek_v4`, to which the tests hold it.
"""

from mach_store.deepseek_v4.arguments import ModelArgs
from mach_store.deepseek_v4.model import Model

__all__ = ["Model", "ModelArgs"]
