# CMake writes _built.py when the wheel is built; this stub lets type checkers read the source tree.

MLX_VERSION: str

def check_mlx() -> None: ...
