"""The kernels have the columns of fastddpm/rows.py."""

import runpy
from pathlib import Path

import pytest

from fastddpm.rows import MseRow, NoisingRow, StepRow, VlbRow

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "kernels" / "columns.py"))


def test_the_columns_of_cpp_are_current():
    assert SCRIPT["HEADER"].read_text() == SCRIPT["text"](), "run `python kernels/columns.py`"


@pytest.mark.parametrize("row", [NoisingRow, MseRow, VlbRow, StepRow])
def test_the_columns_of_triton(row):
    pytest.importorskip("triton")
    from fastddpm.kernels import columns

    kind = row.__name__.removesuffix("Row").upper()
    assert getattr(columns, kind).value == len(row._fields)
    assert [getattr(columns, f"{kind}_{name.upper()}").value for name in row._fields] == list(range(len(row._fields)))
