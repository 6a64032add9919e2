"""What several test modules need: backends, layouts in memory, poisoned outputs, and what counts as right."""

import importlib
import inspect
import itertools
from contextlib import contextmanager

import torch

import fastddpm.autograd
import fastddpm.functional
import fastddpm.noise
from fastddpm import _extension, _triton, noise_key, randn, reference
from fastddpm.rows import StepRow
from fastddpm.samplers import StepRows
from fastddpm.train.cli import main

INSTRUCTION_SETS: tuple[str, ...] = tuple(getattr(_extension.module, "isas", ()))
"""What the C++ kernels can run on this CPU; empty where they are not built."""
NOT_BUILT = f"the C++ kernels are not built: {_extension.reason}"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.float64)
wide = {"dtype": torch.float64}


def importable(name):
    """Whether an optional package is here with all that it needs itself."""
    try:
        importlib.import_module(name)
    except Exception:  # diffusers raises several kinds
        return False
    return True


@contextmanager
def on_reference():
    """The public functions, run on `reference` in place of the ops."""
    users = (fastddpm.noise, fastddpm.functional, fastddpm.autograd)
    ops = [user.ops for user in users]
    for user in users:
        user.ops = reference
    try:
        yield
    finally:
        for user, op in zip(users, ops, strict=True):
            user.ops = op


@contextmanager
def on_triton():
    """The Triton kernels under the CPU key, in the place of whatever serves it."""
    library = torch.library.Library("fastddpm", "IMPL")
    override = {"allow_override": True} if "allow_override" in inspect.signature(library.impl).parameters else {}
    for name in _triton.OPS:
        library.impl(name, _triton.kernel(name), "CPU", **override)
    try:
        yield
    finally:
        library._destroy()


@contextmanager
def poisoned():
    """Fills every tensor that torch allocates without values with NaN: an element that a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1000).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


NEVER = 1 << 60
SIZES = {"small": (NEVER, NEVER), "in pages": (1, NEVER), "past the caches": (1, 1)} if INSTRUCTION_SETS else {"small": ()}
"""From how many bytes on a result lies in kept pages, and from how many it is written past the caches."""


@contextmanager
def of_size(name):
    """Every result is treated as one of that size."""
    if not INSTRUCTION_SETS:
        yield
        return
    before = _extension.module.set_thresholds(*SIZES[name])
    try:
        yield
    finally:
        _extension.module.set_thresholds(*before)


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def all_large():
    """Every result, however small, lies in pages of its own and is written past the caches."""
    former = _extension.module.set_thresholds(1, 1)
    try:
        yield
    finally:
        _extension.module.set_thresholds(*former)


def values(*shape, dtype=torch.float32, seed=0):
    """Test data in [-1, 1]-ish: another generator than the one under test."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul_(0.7).to(dtype)


def leaf(*shape, **kwargs):
    return values(*shape, **kwargs).requires_grad_()


def spread(batch, num_timesteps=1000):
    """Timesteps for a batch, both ends among them."""
    return torch.linspace(0, num_timesteps - 1, batch).round().long()


def every_column(steps=1000, variance_type="fixed_small", **columns):
    """A sampler that has every column, unlike ones at each step."""
    names = ("p_x", "p_o", "k_x", "k_0", "k_o", "k_h1", "k_h2", "k_h3", "sigma", "g", "c_x", "c_0")
    made = {name: (n + 1) * torch.linspace(-0.2, 0.3, steps) for n, name in enumerate(names)}
    return StepRows(torch.arange(steps), variance_type, **made | {"bound": 0.8, "k_v": 0.1} | columns)


UNREAD = ("p_x k_x c_x", "k_x c_x k_0 c_0", "p_o k_o", "g", "k_v", "k_h1 k_h2 k_h3", "sigma")
"""Of a reverse step's samples, which coefficients are 0 in `unread`."""
ANYTHING = torch.tensor([torch.nan, torch.inf, -torch.inf])


def unread(value):
    """A reverse step's arguments, where what has no coefficient but 0 is that value: x, x but in x_0_hat, out, out beside u,
    v, the history, z."""
    out, u, x, z, *history = (values(len(UNREAD), channels, 3, seed=n) for n, channels in enumerate((4, 4, 2, 2, 2, 2, 2)))
    rows = every_column(len(UNREAD), "learned_range").on(x.device, x.dtype)
    for row, names in zip(rows, UNREAD, strict=True):
        row[[StepRow._fields.index(name) for name in names.split()]] = 0
    x[2] = 99  # x_0_hat is beyond its bound by x alone
    for operand in (x[0], x[1], out[2, :2], out[3, :2], out[4, 2:], *(h[5] for h in history), z[6]):
        operand[:] = value
    return out, x, z, torch.arange(len(UNREAD)), rows, True, u, None, None, history, True


def assert_unread(k):
    """Anything at all where every coefficient is 0 leaves the results, and their gradients, of a 0 there."""
    clean, dirty = (k.reverse_step(*unread(value)) for value in (0, ANYTHING))
    read = torch.arange(len(UNREAD)) != 1  # where x is in x_0_hat, and that in nothing
    for one, other, samples in zip(clean, dirty, (..., read, ...), strict=True):
        assert same_bits(one[samples], other[samples]) and one.isfinite().all()
    grads = values(3, *clean[0].shape, seed=8)
    clean, dirty = (
        k.reverse_step_backward(*grads[:2], *arguments[:5], *arguments[6:9], grads[2])
        for arguments in map(unread, (0, ANYTHING))
    )
    for one, other in zip(clean, dirty, strict=True):
        assert same_bits(one[read], other[read]) and one.isfinite().all()


def same_bits(a, b):
    """Equal shape, dtype and bits; a NaN equals a NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    number = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return bool(((a.contiguous().view(number) == b.contiguous().view(number)) | (a.isnan() & b.isnan())).all())


def fails(arguments, capsys):
    """The one line that a mistake on the command line gets."""
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fastddpm: "), lines
    return lines[0]


# ---- layouts: each holds the values of a contiguous [B, C, H, W] tensor in another order or place ----


def _permuted(*order):
    back = [order.index(i) for i in range(len(order))]
    return lambda x: x.permute(order).contiguous().permute(back)


def _every_second(x):
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 7.0, dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _off_by_one(x):
    return torch.cat((x.new_full((1,), 7.0), x.flatten()))[1:].view(x.shape)


def _padded_rows(x):
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), 7.0, dtype=x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "width_first": _permuted(0, 3, 1, 2),
    "transposed_pixels": _permuted(0, 1, 3, 2),
    "batch_last": _permuted(1, 2, 3, 0),
    "pixels_first": _permuted(2, 3, 0, 1),
    "every_second": _every_second,
    "off_by_one": _off_by_one,
    "padded_rows": _padded_rows,
}


# ---- and those of any number of dimensions ----


def placed(order, steps=None, start=0):
    """Puts a tensor's values in memory in that order of its dimensions, the last of them together, `start` elements behind an
    aligned address. With `steps` {dimension: step} it is that part of a larger tensor: a slice (1), every second (2), .."""
    steps = steps or {}

    def place(x):
        shape, strides, count = [n * steps.get(d, 1) + 3 * (d in steps) for d, n in enumerate(x.shape)], [0] * x.dim(), 1
        for d in reversed(order):
            strides[d], count = count, count * shape[d]
        whole = x.new_full((start + count,), 7.0).as_strided(shape, strides, start)
        for d, step in steps.items():
            whole = whole.narrow(d, 1, step * x.shape[d])[(slice(None),) * d + (slice(None, None, step),)]
        return whole.copy_(x)

    return place


def placements(dims):
    """All dense orders, and in some of them parts in each dimension and a start that is not aligned."""
    forward = tuple(range(dims))
    channels_last, batch_inside = (0, *forward[2:], 1), (*forward[2:], 0, 1)
    places = {f"order {order}": placed(order) for order in itertools.permutations(forward)}
    for order in (forward, channels_last, batch_inside):
        places |= {f"a slice of {d} in order {order}": placed(order, {d: 1}) for d in forward}
        places[f"unaligned in order {order}"] = placed(order, start=1)
    for order in (forward, channels_last):
        places |= {f"every second of {d} in order {order}": placed(order, {d: 2}) for d in forward}
    return places


def expanded(x, dims):
    """The first values in these dimensions, repeated."""
    for d in dims:
        x = x.narrow(d, 0, min(1, x.shape[d])).expand(x.shape)
    return x


# ---- what counts as right ----


def assert_right(got, exact, plain):
    """flash-attention's rule: an error against float64 of at most twice that of the plain eager formula, and an ulp.

    Where the op's own arithmetic is float64 there is no truth above it: 256 ulps of the largest value are allowed.
    """
    assert got.isfinite().all()
    error = (got.double() - exact).abs()
    if got.dtype == torch.float64:
        allowed = 256 * ulp(exact.abs().max(), got.dtype).expand_as(error)
    else:
        allowed = 2 * (plain.double() - exact).abs().max() + ulp(exact, got.dtype)
    worst = (error - allowed).argmax()
    message = f"error {error.flatten()[worst]} where {allowed.flatten()[worst]} is allowed"
    assert bool((error <= allowed).all()), message


def ulp(exact, dtype):
    """The spacing of a dtype's numbers at each value."""
    info = torch.finfo(dtype)
    return exact.abs().clamp(min=info.tiny).log2().floor().exp2() * info.eps


KINDS = ("key", "tensor")


def noise_of(kind, shape, dtype=torch.float32):
    """The argument, and the numbers that it stands for."""
    if kind == "key":
        key = noise_key(1, 2, shape[0])
        return key, randn(key, shape)
    z = values(*shape, dtype=dtype, seed=9)
    return z, z


def loss_arguments(prediction_type, weight=None, num_timesteps=1000):
    """Which of x_0, x_t and weight go together."""
    weights = {"table": torch.linspace(0.5, 2.0, num_timesteps)}
    return {"prediction_type": prediction_type, "weight": weights.get(weight, weight)}


def far(one, true):
    """The largest error of one that counts as true, relative to its largest number, or to 1."""
    return float((one.double() - true).abs().max() / true.abs().max().clamp(min=1))
