"""The names users import, and every import that the documentation shows."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("packages/*/README.md")),
]

PUBLIC = {
    "mach": ["REGISTRY", "detect_arch", "load", "load_moe", "load_v4_flash"],
    "mach.io.arch_registry": [
        "REGISTRY",
        "MoeArchAdapter",
        "arch_summary",
        "detect_arch",
        "registry_summary",
    ],
    "mach.io.load": ["_swap_switch_mlp", "load", "load_moe"],
    "mach.io.gather_switch_glu": ["GatherSwitchGLU"],
    "mach.io.expert_bank": ["BankCache", "LayerExpertBank"],
    "mach.server.production_app": ["create_app"],
    "mach.models.qwen3_moe": ["Model", "ModelArgs"],
    "mach.models.qwen3_5_moe": ["Model", "ModelArgs"],
    "mach.models.gpt_oss": ["Model", "ModelArgs"],
    "mach.models.gemma4": ["Model", "ModelArgs"],
    "mach.models.deepseek_v4": ["Model", "ModelArgs"],
    "lme_mlx_pread_ext": ["ChecksumError", "ReadError", "ScatterPlan", "crc32"],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_there(module: str) -> None:
    found = importlib.import_module(module)
    for name in PUBLIC[module]:
        assert getattr(found, name) is not None


def test_every_import_shown_in_the_documentation_works() -> None:
    shown = set()
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    shown.add(ast.unparse(node))
    assert shown, "the documentation shows no import at all"
    for statement in sorted(shown):
        exec(statement, {})


def test_importing_mach_imports_nothing_heavy() -> None:
    heavy = ("mlx", "numpy", "transformers", "huggingface_hub", "msgspec", "starlette")
    check = f"import sys, mach, mach.io.arch_registry; print([m for m in {heavy!r} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"


def test_load_moe_returns_model_tokenizer_store_and_cache() -> None:
    from mach import load_moe  # noqa: PLC0415

    model, tokenizer, store, cache = load_moe("mach-pico", arch="qwen3_moe")
    try:
        assert type(model).__mro__[1].__name__ == "Model"
        assert tokenizer.encode("x")
        assert store.residency == "streaming"
        assert len(cache.make()) > 0
    finally:
        store.close()
