"""Writes the columns of `fastddpm/rows.py` for the kernels: `python kernels/columns.py`, after a change there.

C++ gets a struct for each kind of row (cpu/columns.h), Triton each column's number (triton/columns.py).
"""

import runpy
from pathlib import Path

HERE = Path(__file__).parent
NOTICE = "Made of fastddpm/rows.py by kernels/columns.py: what a row of coefficients holds, in its order."
HEADER = """\
// {notice}
#pragma once

namespace fastddpm {{

{rows}

}}  // namespace fastddpm
"""
MODULE = '''\
"""{notice}

A column is its number, the name of a row alone the number of its columns.
"""

import triton.language as tl

{rows}
'''


def rows() -> dict[str, tuple[str, ...]]:
    """The columns' names of each kind of row. The file is run alone: fastddpm itself needs kernels that are built."""
    defined = runpy.run_path(str(HERE.parent / "fastddpm" / "rows.py"))
    return {name: kind._fields for name, kind in defined.items() if hasattr(kind, "_fields")}


def header() -> str:
    structs = (f"template <class T> struct {name} {{ T {', '.join(columns)}; }};" for name, columns in rows().items())
    return HEADER.format(notice=NOTICE, rows="\n".join(structs))


def module() -> str:
    lines = []
    for name, columns in rows().items():
        prefix = name.removesuffix("Row").upper()
        numbers = {prefix: len(columns)} | {f"{prefix}_{c.upper()}": i for i, c in enumerate(columns)}
        lines += [f"{name} = tl.constexpr({number})" for name, number in numbers.items()]
    return MODULE.format(notice=NOTICE, rows="\n".join(lines))


def texts() -> dict[Path, str]:
    return {HERE / "cpu" / "columns.h": header(), HERE / "triton" / "columns.py": module()}


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text)
