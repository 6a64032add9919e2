"""Runs every op on operands that end where a page begins that nobody may touch, or begin where one ends: a read or a write
beyond an operand is a SIGSEGV. `python tests/protected.py`, for test_protected.py."""

import ctypes
import itertools
import mmap

import torch
from every_op import results
from helpers import DTYPES, LAYOUTS, same_bits, spread, values

from fastddpm import noise_key, ops

SHAPES = ((2, 1), (3, 7), (2, 513), (2, 4099))
IMAGES = ((2, 3, 7, 11), (1, 3, 33, 16), (2, 6, 5, 5), (1, 6, 16, 17), (2, 4, 9, 9))
PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)


def at_the_end(x):
    return _protected(x, at_the_end=True)


def at_the_beginning(x):
    return _protected(x, at_the_end=False)


def _protected(x, at_the_end):
    """x in its layout, alone between two protected pages, and next to one of them."""
    extent = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) + 1
    size = extent * x.element_size()
    room = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, PAGE + room + PAGE)
    flat = torch.frombuffer(memory, dtype=x.dtype, count=extent, offset=PAGE + (room - size if at_the_end else 0))
    for page in (0, PAGE + room):
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory, page))
        assert LIBC.mprotect(ctypes.c_void_p(address), PAGE, 0) == 0, ctypes.get_errno()
    return flat.as_strided(x.shape, x.stride()).copy_(x)


def in_place(key, shape, dtype, place):
    """What the ops write that are given their result."""
    key, filled = place(key.clone()), place(torch.zeros_like(key))
    ops.advance_(key, 3)
    ops.fill_key_(filled, -5, 7)
    out, grad, wide = place(values(*shape, dtype=dtype)), place(values(*shape, dtype=dtype)), dtype == torch.float64
    ops.randn_(out, key)
    ops.scale_grad_(grad, place(values(shape[0], dtype=torch.float64 if wide else torch.float32)))
    yield from zip(
        ("advance_", "fill_key_", "randn_", "scale_grad_", "timesteps"),
        (key, filled, out, grad, ops.timesteps(key, 9)),
        strict=True,
    )


def run(shape, dtype, layout, guard):
    def place(x):
        return LAYOUTS[layout](x) if x.dim() == 4 else x

    def guarded(x):
        return guard(place(x))

    key, t = noise_key(1, 2, shape[0]), spread(shape[0])
    expected = {**dict(results(key, t, shape, dtype, place)), **dict(in_place(key, shape, dtype, place))}
    got = {**dict(results(guard(key), guard(t), shape, dtype, guarded)), **dict(in_place(key, shape, dtype, guarded))}
    assert not [name for name, x in expected.items() if not same_bits(got[name], x)], (shape, dtype, layout)


if __name__ == "__main__":
    places = [*itertools.product(SHAPES, ["contiguous"]), *itertools.product(IMAGES, LAYOUTS)]
    for (shape, layout), dtype, guard in itertools.product(places, DTYPES, (at_the_end, at_the_beginning)):
        print(shape, layout, dtype, guard.__name__, flush=True)
        run(shape, dtype, layout, guard)
