"""Call level: [1, 3, 8, 8], where the arithmetic is nothing and the way to the kernel is all."""

import pytest

from . import plan
from .conftest import cost
from .ops import Case


@pytest.mark.parametrize("case", plan.call_cases(), ids=lambda case: case.name)
def bench_call(timed, case: Case):
    timed(case, cost)
