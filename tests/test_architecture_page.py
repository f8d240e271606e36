"""docs/architecture.md names every module of the tree, and no module that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MODELS = ROOT / "packages" / "mach-core" / "src" / "mach" / "models"


def test_the_page_names_just_the_modules_that_there_are() -> None:
    modules = {
        path.name
        for path in ROOT.glob("packages/*/src/**/*.py")
        if not path.name.startswith("__") and path.parent != MODELS and path.name != "production_app.py"
    }
    files = PAGE[PAGE.index("## Files") : PAGE.index("## Invariants")]
    named = {Path(name).name for name in re.findall(r"`([\w/]+\.py)`", files)}
    assert modules == named
