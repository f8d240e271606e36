"""What the distribution promises: names, stubs, versions."""

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import liblme_expert_io
import lme_cpu_kernels
import lme_expert_stream
import lme_mlx_pread_ext

EXTENSIONS = ["lme_mlx_pread_ext", "lme_cpu_kernels", "lme_expert_stream"]


def test_the_public_names_are_these() -> None:
    errors = {"ChecksumError", "ExpertIOError", "ReadError"}
    assert set(lme_mlx_pread_ext.__all__) == errors | {
        "ScatterPlan",
        "build_info",
        "crc32",
        "release_rows",
        "use_huge_pages",
    }
    paths = {"include_path", "library_path"}
    sums = {"crc32", "crc32_implementations", "crc32_with"}
    assert set(liblme_expert_io.__all__) == errors | paths | sums | {"read_records"}
    assert lme_mlx_pread_ext.ReadError is liblme_expert_io.ReadError
    operations = {"DenseProduct", "ExpertProduct", "RmsNorm", "Rotary", "attention"}
    assert set(lme_cpu_kernels.__all__) == operations | {"build_info", "exponential", "kernel_sets"}
    assert set(lme_expert_stream.__all__) == {"ExpertStream", "StreamedLayer", "build_info"}


@pytest.mark.parametrize("package", EXTENSIONS)
def test_the_stub_names_what_the_extension_has(package) -> None:
    extension = importlib.import_module(f"{package}._ext")
    folder = Path(importlib.import_module(package).__file__).parent
    stub = ast.parse((folder / "_ext.pyi").read_text())
    top = {node.name: node for node in stub.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    assert set(top) == {name for name in vars(extension) if not name.startswith("_")}
    for name, node in top.items():
        if isinstance(node, ast.ClassDef):
            methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            has = {part for part in vars(getattr(extension, name)) if not part.startswith("_")}
            assert {part for part in methods if not part.startswith("_")} == has, name
    assert (folder / "py.typed").exists()


@pytest.mark.parametrize(
    ("package", "more"),
    list(zip(EXTENSIONS, [{"abi", "crc32", "direct_io"}, {"kernels", "threads"}, set()], strict=True)),
)
def test_the_build_is_described(package, more) -> None:
    info = importlib.import_module(package).build_info()
    assert set(info) == {"version", "compiler", "mlx"} | more
    assert info["version"] == importlib.metadata.version("mach-native")
    assert info["mlx"] == mx.__version__


@pytest.mark.parametrize("package", EXTENSIONS)
def test_another_mlx_than_at_build_time_is_an_import_error_that_says_so(package) -> None:
    script = (
        "import mlx.core as mx; mx.__version__ = '0.99.1'\n"
        f"try:\n    import {package}\n"
        "except ImportError as error:\n    print(error.name, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    for part in (f"{package} was built against mlx {mx.__version__}", "mlx 0.99.1", "build_mlx_pread_ext.py"):
        assert part in done.stdout
    assert done.stdout.startswith(f"{package} ")
