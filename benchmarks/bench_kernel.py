"""Kernel level: an op's time on 2^10 .. 2^26 elements, beside the bytes it must move and the machine's own copy of as many."""

import pytest

from . import plan
from .conftest import moved
from .ops import Case


@pytest.mark.parametrize("case", plan.kernel_cases(quick=False), ids=lambda case: case.name)
def bench_kernel(timed, case: Case):
    timed(case, moved)
