"""Finds the compiled C++ kernels, and says why when they are not there."""

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType

module: ModuleType | None = None
"""`fastddpm._C` once loaded: its attributes say how it was built and which instruction set it chose."""
reason = ""
"""Why `module` is None."""


def load() -> None:
    """Loads the extension. It may be absent only where the install said so; a source tree without a build is an error."""
    global module, reason
    if importlib.util.find_spec("fastddpm._C") is not None:
        module = importlib.import_module("fastddpm._C")
        return
    note = Path(__file__).with_name("_build_note.txt")
    if note.exists():
        reason = note.read_text().strip()
    elif os.environ.get("FASTDDPM_SKIP_CPP") == "1":
        reason = "FASTDDPM_SKIP_CPP=1 is set"
    else:
        raise ImportError(
            "fastddpm is imported from a source tree whose C++ kernels are not built. Build them with "
            "`pip install --no-build-isolation -e .`, or set FASTDDPM_SKIP_CPP=1 to run on the eager reference. (Where "
            "fastddpm is installed, the current folder hides it: leave the folder, or call `fastddpm info`.)"
        )
