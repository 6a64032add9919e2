"""Large results, which lie in pages of their own and are written past the caches, are those of small ones, in every layout."""

import pytest
from every_op import results
from helpers import DTYPES, INSTRUCTION_SETS, LAYOUTS, NOT_BUILT, all_large, same_bits, spread, values

from fastddpm import NoiseSchedule, noise_key, q_sample

pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason=NOT_BUILT)


@pytest.mark.parametrize("channels", [2, 3, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_large_result_is_that_of_a_small_one(dtype, layout, channels):
    shape = (2, channels, 23, 21)
    call = (noise_key(1, 2, 2), spread(2), shape, dtype, LAYOUTS[layout])
    small = dict(results(*call))
    with all_large():
        large = dict(results(*call))
    assert not [name for name, x in small.items() if not same_bits(large[name], x) or large[name].stride() != x.stride()]


def test_a_large_noising_of_positions_that_are_not_adjacent():
    """Sixty-four channels at each position, and the next position 2048 elements on."""
    x, t, key = values(4096, 32, 64).permute(1, 2, 0), spread(32), noise_key(1, 2, 32)
    schedule = NoiseSchedule.linear(1000)
    assert same_bits(q_sample(x, t, schedule, key), q_sample(x.contiguous(), t, schedule, key))
