"""Makes docs/status-page.png: the status page of a real server with a narrow bank, after a short chat.

    uv run python tools/browser/status_screenshot.py [--output docs/status-page.png] [--dark] [--width 1200]

Needs Chromium (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from chromium_page import ChromiumPage, find_chromium

ROOT = Path(__file__).resolve().parent.parent.parent
QUESTIONS = ("def reverse(s):", "def is_prime(n):")


def main(arguments: Sequence[str]) -> int:
    """Start a server, chat, take the picture; 0, or 2 without a browser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "status-page.png")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--expert-cache-gb", default="0.008")
    options = parser.parse_args(arguments)
    program = find_chromium()
    if program is None:
        print("status_screenshot: no Chromium is installed", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "mach_server.serve_command", "mach-pico", "--streaming", "--port", "0"]
    command += ["--expert-cache-gb", options.expert_cache_gb]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            urls = (re.search(r"ready url=(\S+)", line) for line in server.stdout or ())
            url = next(found[1] for found in urls if found)
            with ChromiumPage(program, width=options.width, height=900, dark=options.dark) as page:
                page.open(url)
                page.wait_for("document.getElementById('state').textContent === 'ready'")
                page.evaluate("document.getElementById('max').value = 220")
                page.evaluate("document.getElementById('temperature').value = 0")
                for turn, question in enumerate(QUESTIONS, 1):
                    page.type_text("#say", question)
                    page.press("Enter")
                    page.wait_for(f"document.querySelectorAll('.turn.assistant').length === {turn}")
                    page.wait_for("document.getElementById('stop').disabled")
                page.wait_for("document.getElementById('running').textContent === 'none'")
                page.screenshot(options.output)
        finally:
            server.terminate()
    print(f"{options.output}: {options.output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
