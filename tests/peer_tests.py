"""diffusers' own tests of its schedulers, with fastddpm's in their place: `make test-peers CHECKOUT=a checkout of diffusers`.

They run as they are, then with every scheduler patched as soon as it is made, then with our subclasses for theirs. What fails
only of the last two is a failure. As a plugin of pytest's this file does the replacing.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest

import fastddpm
from fastddpm.integrations import PEERS
from fastddpm.integrations import diffusers as ours

MODE = os.environ.get("FASTDDPM_PEER_TESTS", "as they are")
MODES = ("as they are", "patched", "subclass")
CLASSES = [name.split(".")[1] for name in PEERS if name.startswith("diffusers.") and name.endswith("Scheduler")]


def patch_when_made(cls: type) -> None:
    init = cls.__init__

    @functools.wraps(init)
    def patched(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if type(self) is cls:
            fastddpm.patch(self)

    cls.__init__ = patched


def pytest_configure(config: pytest.Config) -> None:
    """Before diffusers' tests import its classes, and compare them."""
    for name in CLASSES:
        if MODE == "patched":
            patch_when_made(getattr(diffusers, name))
        elif MODE == "subclass":
            setattr(diffusers, name, getattr(ours, name))


def pytest_report_header() -> str:
    return f"fastddpm: diffusers {diffusers.__version__}, {MODE}: {', '.join(CLASSES)}"


def failures(checkout: Path, mode: str) -> set[str]:
    """The tests that fail."""
    wanted = f"scheduler_classes = .*\\b({'|'.join(CLASSES)})\\b"
    files = [path for path in sorted((checkout / "tests/schedulers").glob("test_*.py")) if re.search(wanted, path.read_text())]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "peer_tests", "-p", "no:cacheprovider", "--tb=no", "-rf", *files]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, "FASTDDPM_PEER_TESTS": mode, "PYTHONPATH": paths},
        text=True,
        stdout=subprocess.PIPE,
    )
    print(f"{mode}: {run.stdout.splitlines()[-1]}")
    if run.returncode not in (0, 1):
        sys.exit(run.stdout)
    return set(re.findall(r"^FAILED (\S+)", run.stdout, re.MULTILINE))


def main(checkout: Path) -> None:
    failed = {mode: failures(checkout, mode) for mode in MODES}
    ours = set.union(*failed.values()) - failed[MODES[0]]
    print("\n".join(sorted(ours)) or "nothing fails of fastddpm's that does not fail of diffusers' own")
    sys.exit(bool(ours))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
