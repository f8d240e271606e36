import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mach
from mach.io.arch_registry import REGISTRY

FORBIDDEN = ("mlx", "mlx_lm", "numpy", "torch", "transformers", "huggingface_hub", "msgspec")


def test_the_public_names_are_these() -> None:
    loaders = ["load", "load_moe", "load_v4_flash"]
    assert sorted(mach.__all__) == ["REGISTRY", "__version__", "detect_arch", *loaders]
    assert set(mach.__all__) <= set(dir(mach))


def test_the_version_is_the_distributions() -> None:
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    assert tomllib.loads(pyproject.read_text())["project"]["version"] == mach.__version__


def test_importing_mach_and_running_its_commands_imports_no_framework() -> None:
    script = (
        "import sys, mach, mach.commands.archs, mach.commands.dispatch, mach.io.inspection\n"
        "mach.commands.archs.main(['--json'])\n"
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_names_that_this_version_lacks_say_so() -> None:
    for name in ("BlockSpecDecEngine", "BlockSpecDecEngineConfig", "BlockSpecDecEngineMode"):
        with pytest.raises(ImportError, match="does not have it yet"):
            getattr(mach, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mach.nonsense  # noqa: B018


@pytest.mark.parametrize("model_type", sorted(REGISTRY))
def test_every_model_module_can_be_imported_without_mlx(model_type: str) -> None:
    module = importlib.import_module(REGISTRY[model_type].model_module)
    with pytest.raises(AttributeError):
        module.nonsense  # noqa: B018
