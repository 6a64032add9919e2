"""The same bits from every place in memory: each function on operands in every order, part of larger tensors, unaligned or
expanded, its results small, in kept pages (from 1 MiB on) and written past the caches (from 32 MiB on)."""

import ctypes
import itertools
import math
from typing import NamedTuple

import pytest
import torch
from helpers import (
    DTYPES,
    INSTRUCTION_SETS,
    KINDS,
    NOT_BUILT,
    SIZES,
    expanded,
    of_size,
    on_reference,
    placed,
    placements,
    poisoned,
    same_bits,
    spread,
    values,
)
from placed_calls import FUNCTIONS, SCHEDULE, WITHOUT_NOISE, Operands, numbers

from fastddpm import noise_key, q_sample, randn

PAGE = 2 << 20


# ---- what counts as the same ----


class Pages:
    """The memory that the next results get, where they get pages of their own."""

    def __init__(self, count):
        self.zeros, self.key, self.addresses = torch.zeros(1, count), noise_key(0), set()

    def poison(self):
        """Sets every byte: a NaN in each dtype."""
        results = [q_sample(self.zeros, 0, SCHEDULE, self.key) for _ in range(4)]
        for result in results:
            result.view(torch.int32).fill_(-1)
        self.addresses = {result.data_ptr() for result in results}
        if any(address % PAGE for address in self.addresses):
            self.addresses = set()

    def intact_behind(self, x):
        """Whether nothing was written past the end of a result (a byte is 0 where the system took the page)."""
        if x.data_ptr() not in self.addresses:
            return True
        return set((ctypes.c_uint8 * 2048).from_address(x.data_ptr() + x.nbytes)) <= {0, 255}


def bits(x):
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def wrong(got, expected, pages):
    """The names of the results that are not as they should be. The sum of a loss runs in memory's order."""
    for name, (result, operand) in got.items():
        right, _ = expected[name]
        if operand is None:
            if not torch.allclose(result, right, rtol=1e-6, atol=0):
                yield name
        elif not torch.equal(bits(result), bits(right)):
            yield name
        elif result.stride() != torch.empty_like(operand).stride():
            yield f"the strides of {name}"
        elif not pages.intact_behind(result):
            yield f"what lies behind {name}"


class Case(NamedTuple):
    function: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str

    def __call__(self, operands):
        return FUNCTIONS[self.function](operands)

    def operands(self, places=(torch.Tensor.contiguous,) * 6):
        return Operands(*self[1:], places)

    def failures(self, arrangements):
        """The results that are not as expected, of each (name, places of the operands, expected results)."""
        pages, found = Pages(1024 + 4 * math.prod(self.shape)), []
        for name, places, expected in arrangements:
            operands = self.operands(places)
            for size in SIZES if name.startswith("all") else list(SIZES)[-1:]:
                with of_size(size), poisoned():
                    if size != "small":
                        pages.poison()
                    got = self(operands)
                found += [f"{result}, {size}, {name}" for result in wrong(got, expected, pages)]
        return found


def arrangements(case, places):
    """Places for the operands, which change no value."""
    expected, names = case(case.operands()), list(places)
    for i, (name, place) in enumerate(places.items()):
        yield f"all in {name}", [place] * 6, expected
        if case.dtype == torch.bfloat16:
            continue
        yield f"output and noise in {name}", [place, torch.Tensor.contiguous] * 3, expected
        yield f"data in {name}", [torch.Tensor.contiguous, place] * 3, expected
        yield f"each elsewhere from {name}", [places[names[(i + 5 * n) % len(names)]] for n in range(6)], expected


def expansions(case):
    dims = range(len(case.shape))
    for repeated in [(d,) for d in dims] + [dims[2:], dims]:

        def place(x, repeated=repeated):
            return expanded(x, repeated)

        def contiguous(x, place=place):
            return place(x).contiguous()

        expected = case(case.operands([contiguous] * 6))
        yield f"all expanded in {repeated}", [place] * 6, expected
        yield f"output and noise expanded in {repeated}", [place, contiguous] * 3, expected
        yield f"data expanded in {repeated}", [contiguous, place] * 3, expected


# ---- the same from every place ----

FLOATS = (torch.float32, torch.bfloat16)
SHAPES = ((3, 3, 205), (3, 5, 13, 9))
"""Two chunks a sample, the second not full, in logical order and with the channels together."""
CALLS = [(function, kind) for function in FUNCTIONS for kind in (KINDS if function not in WITHOUT_NOISE else KINDS[:1])]


@pytest.mark.parametrize(("function", "kind"), CALLS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_order_and_part_of_memory(function, shape, dtype, kind):
    case = Case(function, shape, dtype, kind)
    assert not case.failures(arrangements(case, placements(len(shape))))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_expanded_operands(function, shape):
    for dtype, kind in itertools.product(FLOATS, KINDS):
        case = Case(function, shape, dtype, kind)
        assert not case.failures(expansions(case))


CHANNELS_TOGETHER = {f"order {order}": placed(order) for order in ((0, 2, 1), (2, 0, 1))}


@pytest.mark.parametrize("channels", [1, 2, 4, 7, 64, 128, 129, 260])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_channels(channels, dtype):
    """Up to 128 of them lie together in a chunk."""
    functions = (
        "q_sample",
        "mse_loss: v_prediction",
        "hybrid_loss: v, learned",
        "reverse_step: v, learned_range",
        "reverse_step: every option, learned",
    )
    for function, pixels in itertools.product(functions, (3, 1100 // channels + 3)):
        case = Case(function, (2, channels, pixels), dtype, "key")
        assert not case.failures(arrangements(case, CHANNELS_TOGETHER))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_randn_in_every_memory_format(size, dtype):
    for shape in ((3, 3, 205, 1), (3, 5, 13, 9), (2, 130, 2, 5), (2, 3, 4, 5, 6)):
        key, last = noise_key(9, 1, shape[0]), torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        with of_size(size), poisoned():
            z, z_last = (randn(key, shape, dtype, form) for form in (torch.contiguous_format, last))
        assert z_last.is_contiguous(memory_format=last)
        assert same_bits(z, randn(key, shape).to(dtype)) and same_bits(z, z_last)


def test_channels_last_of_images_in_space():
    x, t, key = values(2, 3, 4, 5, 6), spread(2), noise_key(1, 2, 2)
    x_t = q_sample(x.contiguous(memory_format=torch.channels_last_3d), t, SCHEDULE, key)
    assert same_bits(x_t, q_sample(x, t, SCHEDULE, key)) and x_t.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dims", [9, 15])
def test_many_dimensions(dims):
    x, t, key = values(2, *[2] * dims).permute(0, *range(dims, 0, -1)), spread(2), noise_key(1, 2, 2)
    assert same_bits(q_sample(x, t, SCHEDULE, key), q_sample(x.contiguous(), t, SCHEDULE, key))


# ---- and right ----


@pytest.mark.parametrize(("function", "kind"), CALLS)
def test_what_all_is_compared_with_is_the_references(function, kind):
    case = Case(function, SHAPES[1], torch.float32, kind)
    with on_reference():
        expected = case(case.operands())
    for name, (result, _) in case(case.operands()).items():
        torch.testing.assert_close(
            result, expected[name][0], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


# ---- at the sizes themselves ----

PIXELS_FIRST = ((32, 64, 4096), (2, 0, 1))  # torch.randn(4096, 32, 64).permute(1, 2, 0)
LARGE = {
    **{f"{function}, {kind}": (function, kind, *PIXELS_FIRST) for function in ("q_sample", "q_step") for kind in KINDS},
    "images": ("q_sample", "key", (32, 64, 64, 64), (2, 3, 0, 1)),
    "channels_last": ("q_sample", "key", (32, 4, 256, 256), (0, 2, 3, 1)),
    "bfloat16": ("q_sample", "key", (32, 64, 8192), (2, 0, 1)),
    "a loss's gradient": ("mse_loss: epsilon", "key", *PIXELS_FIRST),
    "the bound and the next x_t": ("bits_per_dim", "key", *PIXELS_FIRST),
}


@pytest.mark.skipif(not INSTRUCTION_SETS, reason=NOT_BUILT)
@pytest.mark.parametrize("name", LARGE)
def test_results_of_32_mib(name):
    function, kind, shape, order = LARGE[name]
    case = Case(function, shape, torch.bfloat16 if name == "bfloat16" else torch.float32, kind)
    with of_size("small"):
        expected = case(case.operands())
    got = case(case.operands([placed(order)] * 6))
    numbers.cache_clear()
    assert not list(wrong(got, expected, Pages(1)))
