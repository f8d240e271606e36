"""Put a trained 4-bit MLX checkpoint into packages/mach-pico, in the engine layout.

    uv run python tools/pico/install.py build/mlx-4bit

Records are aligned to 4,096 bytes, of which they are an exact multiple: the usual 16 KiB would pad each by
3.7 % and break the size limit of 24 MB.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from mach_store.prune.output_directory import MARKER
from mach_store.prune.pruner import prune_checkpoint

TARGET = Path(__file__).resolve().parents[2] / "packages" / "mach-pico" / "src" / "mach_pico" / "checkpoint"
ALIGNMENT = 4096

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="the stacked 4-bit checkpoint")
    source = parser.parse_args().checkpoint
    shutil.rmtree(TARGET, ignore_errors=True)
    prune_checkpoint(source, TARGET, alignment=ALIGNMENT)
    for name in ("README.md", MARKER):  # a data package is never pruned over
        (TARGET / name).unlink(missing_ok=True)
    print(f"{TARGET}: {sum(p.stat().st_size for p in TARGET.rglob('*') if p.is_file()):,} bytes")
