"""The columns of fastddpm/rows.py as Triton's constants: MSE_W is the number of MseRow's w, MSE how wide it is packed."""

import triton.language as tl

from .. import rows as _rows

for _name, _row in vars(_rows).items():
    if _name.endswith("Row"):
        _kind = _name.removesuffix("Row").upper()
        globals()[_kind] = tl.constexpr(_rows.width(_row))
        globals().update({f"{_kind}_{column.upper()}": tl.constexpr(n) for n, column in enumerate(_row._fields)})
