"""`python -m benchmarks.gpu_tune`: GPU time of noising, mse and the reverse step by how many elements a thread works on, and by
how many warps a program has. A line of JSON a measurement goes to DIR/tune.jsonl as it is made. Not yet run on a GPU.
"""

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from fastddpm.kernels import tile

from .gpu_bench import ACCESSES, DTYPES, Case, fused, gpu_seconds, rotations
from .record import Record, arguments

KERNELS = ("noising", "mse", "reverse")
SIZES = [1 << n for n in (26, 22, 20, 18)]
PER_THREAD, WARPS = (8, 16, 32), (4, 8)


@contextmanager
def cut(per_thread: int, warps: int) -> Iterator[None]:
    """Every size with so many elements a thread, and so many warps where a sample fills them."""
    sizes = {"_PER_THREAD": ((0, per_thread),), "_PER_THREAD_ANY_BATCH": ((0, per_thread),), "_WARPS": (warps, *tile._WARPS)}
    with patch.multiple(tile, **sizes):
        tile.cut.cache_clear()
        try:
            yield
        finally:
            tile.cut.cache_clear()


def measure(record: Record, elements: int, name: str, device: str) -> None:
    moved = elements * DTYPES[name].itemsize
    stages = [fused(Case(elements, DTYPES[name], device, number)) for number in range(rotations(moved, device))]
    wanted = {what: stages[0][what]() for what in KERNELS}
    for what, per_thread, warps in itertools.product(KERNELS, PER_THREAD, WARPS):
        about = {"what": what, "elements": elements, "dtype": name, "per_thread": per_thread, "warps": warps}

        def one(what=what, per_thread=per_thread, warps=warps, about=about):
            with cut(per_thread, warps):
                torch.testing.assert_close(stages[0][what](), wanted[what], rtol=1e-5, atol=0)
                seconds = gpu_seconds([each[what] for each in stages], device)
            record.row(**about, gpu_seconds=seconds, bytes_per_second=ACCESSES[what] * moved / seconds)

        record.attempt(str(about), one)


def main() -> int:
    options = arguments(__doc__).parse_args()
    device = "cpu" if options.dry_run else "cuda"
    torch.manual_seed(0)
    record = Record(options.out, "tune", options.dry_run)
    for elements, name in itertools.product([1 << 16] if options.dry_run else SIZES, DTYPES):
        record.attempt(f"{elements} of {name}", lambda n=elements, name=name: measure(record, n, name, device))
    return 1 if record.failures else 0


if __name__ == "__main__":
    sys.exit(main())
