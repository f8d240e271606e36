"""What the distribution promises: names, stubs, versions."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import mlx.core as mx

import liblme_expert_io
import lme_mlx_pread_ext
from lme_mlx_pread_ext import _ext


def test_the_public_names_are_these() -> None:
    errors = {"ChecksumError", "ExpertIOError", "ReadError"}
    assert set(lme_mlx_pread_ext.__all__) == errors | {"ScatterPlan", "build_info", "crc32", "release_rows"}
    paths = {"include_path", "library_path"}
    sums = {"crc32", "crc32_implementations", "crc32_with"}
    assert set(liblme_expert_io.__all__) == errors | paths | sums | {"read_records"}
    assert lme_mlx_pread_ext.ReadError is liblme_expert_io.ReadError


def test_the_stub_names_what_the_extension_has() -> None:
    folder = Path(lme_mlx_pread_ext.__file__).parent
    stub = ast.parse((folder / "_ext.pyi").read_text())
    top = {node.name: node for node in stub.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    assert set(top) == {name for name in vars(_ext) if not name.startswith("_")}
    plan = top["ScatterPlan"]
    assert isinstance(plan, ast.ClassDef)
    methods = {node.name for node in plan.body if isinstance(node, ast.FunctionDef)}
    assert methods - {"__init__"} == {name for name in vars(_ext.ScatterPlan) if not name.startswith("_")}
    assert (folder / "py.typed").exists()


def test_the_build_is_described() -> None:
    info = lme_mlx_pread_ext.build_info()
    assert set(info) == {"version", "abi", "compiler", "mlx", "crc32", "direct_io"}
    assert info["version"] == importlib.metadata.version("mach-native")
    assert info["mlx"] == mx.__version__


def test_another_mlx_than_at_build_time_is_an_import_error_that_says_so() -> None:
    script = (
        "import mlx.core as mx; mx.__version__ = '0.99.1'\n"
        "try:\n    import lme_mlx_pread_ext\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    for part in (f"mlx {mx.__version__}", "mlx 0.99.1", "build_mlx_pread_ext.py"):
        assert part in done.stdout
