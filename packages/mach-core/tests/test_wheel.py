import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the wheel")
def test_the_wheel_alone_on_a_bare_python_runs_its_commands(tmp_path: Path) -> None:
    def run(*command: object, status: int = 0) -> str:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        return done.stdout

    run("uv", "build", "--wheel", "--out-dir", tmp_path / "dist", PACKAGE)
    (wheel,) = (tmp_path / "dist").glob("mach_core-*.whl")
    run("uv", "venv", "--python", sys.executable, tmp_path / "bare")
    scripts = tmp_path / "bare" / ("Scripts" if sys.platform == "win32" else "bin")
    run("uv", "pip", "install", "--python", scripts / "python", "--no-index", wheel)
    assert '"model_type": "gemma4"' in run(scripts / "mach-archs", "--json")
    assert "expert_streaming" in run(scripts / "mach", "check", "--all-archs")
    assert "no models found" in run(scripts / "mach-models", "--local-only", "--cache-dir", tmp_path / "none")
    assert "check " in run(scripts / "python", "-m", "mach", "--help")
    script = "import importlib.metadata as m; print([d.name for d in m.distributions()])"
    assert run(scripts / "python", "-c", script).strip() == "['mach-core']"
