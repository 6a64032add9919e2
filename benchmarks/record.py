"""A stage's file: a line of JSON a measurement, written as it is made, so that a run that is killed keeps what it had.

`python -m benchmarks.record STAGE --out DIR` begins one with where it was run, and what serves the ops there.
"""

import argparse
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import triton

from . import machine


class Record:
    """`<folder>/<stage>.jsonl`, gone on with where it is there: gpu.sh begins it anew. Its first line says where the rows come
    from; rows of a dry run say so, and are not figures."""

    def __init__(self, folder: Path, stage: str, dry: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.stage, self.dry, self.failures = folder / f"{stage}.jsonl", stage, dry, 0
        if not self.path.exists():
            self.row(machine={**machine.describe(), **_versions()})

    def row(self, **values) -> None:
        line = {"stage": self.stage, **({"dry": True} if self.dry else {}), **values}
        with self.path.open("a") as file:  # closed, so that it is on the disk
            file.write(json.dumps(line) + "\n")

    def attempt(self, what: str, call: Callable[[], object]) -> bool:
        """The call; where it fails, a row with its error in place of its rows."""
        try:
            call()
        except Exception as error:
            self.failures += 1
            self.row(what=what, error=f"{type(error).__name__}: {error}"[:2000])
            traceback.print_exc(file=sys.stderr)
            return False
        return True


def _versions() -> dict:
    return {"torch": torch.__version__, "triton": triton.__version__, "driver": driver()}


def driver() -> str | None:
    """NVIDIA's, where there is one."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What every stage takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="walk through it on the CPU, at the smallest size")
    return parser


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("stage")
    options = parser.parse_args()
    record = Record(options.out, options.stage, options.dry_run)
    record.row(what="backend", backend=machine.backend(), has_kernels=machine.has_kernels())
    return 0 if machine.has_kernels() else 1


if __name__ == "__main__":
    sys.exit(main())
