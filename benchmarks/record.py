"""A stage's file: a line of JSON a measurement, written as it is made, so that a run that is killed keeps what it had."""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import triton

from . import machine


class Record:
    """`<folder>/<stage>.jsonl`. Its first line says where the rows come from; rows of a dry run say so, and are not figures."""

    def __init__(self, folder: Path, stage: str, dry: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.stage, self.dry, self.failures = folder / f"{stage}.jsonl", stage, dry, 0
        self.path.write_text("")
        self.row(machine={**machine.describe(), "torch": torch.__version__, "triton": triton.__version__})

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
