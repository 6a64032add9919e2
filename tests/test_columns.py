"""The kernels have the columns of fastddpm/rows.py."""

import runpy
from pathlib import Path

import pytest
import torch

from fastddpm.rows import MseRow, NoisingRow, StepRow, VlbRow, pack, unpack, width

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "kernels" / "columns.py"))


def test_the_columns_of_cpp_are_current():
    assert SCRIPT["HEADER"].read_text() == SCRIPT["text"](), "run `python kernels/columns.py`"


@pytest.mark.parametrize("row", [NoisingRow, MseRow, VlbRow, StepRow])
def test_the_columns_of_triton(row):
    pytest.importorskip("triton")
    from fastddpm.kernels import columns

    kind = row.__name__.removesuffix("Row").upper()
    assert getattr(columns, kind).value == width(row)
    assert [getattr(columns, f"{kind}_{name.upper()}").value for name in row._fields] == list(range(len(row._fields)))


@pytest.mark.parametrize("row", [NoisingRow, MseRow, VlbRow, StepRow])
def test_a_packed_row_lies_in_one_cache_line(row):
    given = row(*torch.rand(len(row._fields), 5))
    table = pack(given)
    assert table.is_contiguous() and 64 % (table.element_size() * table.shape[1]) == 0
    assert all(map(torch.equal, unpack(row, table), given)) and not table[:, len(row._fields) :].any()
