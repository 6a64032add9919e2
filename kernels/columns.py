"""Writes the columns of `fastddpm/rows.py` as C++: `python kernels/columns.py`, after a change there, makes cpu/columns.h.
(Triton's constants, triton/columns.py, are made of them when it is imported.)
"""

import runpy
from pathlib import Path

HEADER = Path(__file__).parent / "cpu" / "columns.h"
TEXT = """\
// Made of fastddpm/rows.py by kernels/columns.py: what a row of coefficients holds, in its order.
#pragma once

namespace fastddpm {{

{rows}

}}  // namespace fastddpm
"""


def text() -> str:
    """rows.py is run alone: fastddpm itself needs kernels that are built."""
    defined = runpy.run_path(str(HEADER.parents[2] / "fastddpm" / "rows.py"))
    kinds = {name: kind for name, kind in defined.items() if name.endswith("Row")}
    return TEXT.format(rows="\n".join(_struct(name, kind, defined["width"](kind)) for name, kind in kinds.items()))


def _struct(name: str, kind: type, width: int) -> str:
    rest = width - len(kind._fields)
    columns = (*kind._fields, *([f"unused[{rest}]"] if rest else []))
    return f"template <class T> struct {name} {{ T {', '.join(columns)}; }};"


if __name__ == "__main__":
    HEADER.write_text(text())
