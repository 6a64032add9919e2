"""The kernels' files of columns are those of fastddpm/rows.py."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "kernels" / "columns.py"
TEXTS = runpy.run_path(str(SCRIPT))["texts"]()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_of_columns_is_current(path):
    assert path.read_text() == TEXTS[path], "run `python kernels/columns.py`"
