"""What the lane's modules share: shapes, keys and noise, rows, a call of every op, and the comparison."""

import torch
from helpers import LAYOUTS, same_bits, spread, values

from fastddpm import NoiseSchedule, coefficients, noise_key, ops, samplers
from fastddpm.rows import VlbRow, pack, unpack

SCHEDULE = NoiseSchedule.linear(1000)
CPU = torch.device("cpu")
ON_CPU = (CPU, torch.float32)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NO_OPTIONS = (None, None, None)
"""A reverse step's u, guidance and bound."""
SIZES = ((3,), (3, 1), (2, 3), (3, 4), (2, 5), (3, 127), (2, 4097), (0, 5), (3, 0), (2, 3, 4, 5), (2, 2, 3, 4, 5))
IMAGE = (3, 4, 5, 6)
NOISES = ("key", "tensor", "none")
AT_BOUND = torch.tensor([[-0.75, -0.5, 0.25, 0.5, 0.75]])
"""Beyond a bound of 0.5, exactly at it, and within."""


def same(got, wanted):
    assert got.stride() == wanted.stride()
    assert same_bits(got, wanted)


def key(batch, seed=-(2**62) + 12345, step=9):
    return noise_key(seed, step, batch, first_sample=(1 << 32) - 1 - batch)


def noise_of(kind, shape, dtype=torch.float32):
    return {"key": key(shape[0]), "tensor": values(*shape, dtype=dtype, seed=5), "none": None}[kind]


def rows_q():
    return coefficients.q_sample_rows(SCHEDULE, *ON_CPU)


def vlb_rows(prediction_type, variance_type, first_variance="posterior", clip=True):
    return coefficients.vlb_rows(SCHEDULE, prediction_type, variance_type, clip, first_variance, None, *ON_CPU)


def changed(kind, rows, **columns):
    """Rows of that kind with other columns."""
    return pack(unpack(kind, rows)._replace(**columns))


def part(kind, rows):
    """What a table of VlbRow holds of a NoisingRow or an MseRow."""
    row = unpack(VlbRow, rows)
    return pack(kind(*(getattr(row, name) for name in kind._fields)))


def calls():
    """(an op's name, its arguments), every op in turn."""
    x, out = (LAYOUTS["channels_last"](values(2, 3, 2, 2, seed=n)) for n in range(2))
    both = LAYOUTS["channels_last"](values(2, 6, 2, 2, seed=3))
    t, noise = spread(2), key(2)
    target = (out, noise, x, None, t, coefficients.mse_rows(SCHEDULE, "v_prediction", None, *ON_CPU))
    terms = (both, x, None, noise, t, vlb_rows("epsilon", "learned_range"), False)
    rows = samplers.ddpm(SCHEDULE).on(*ON_CPU)
    learned = samplers.ddpm(SCHEDULE, variance_type="learned").on(*ON_CPU)
    return (
        ("fill_key_", (torch.empty(3, 2, dtype=torch.int64), 7, 1 << 40)),
        ("advance_", (key(2), 3)),
        ("timesteps", (key(2), 1000)),
        ("randn_", (torch.empty_like(x), noise)),
        ("noising", (x, noise, t, rows_q())),
        ("noising_uniform", (x, noise, rows_q())),
        ("mse_loss", (*target, ops.MEAN, False)),
        ("mse_loss", (*target, ops.NONE, True)),
        ("mse_loss_backward", (*target, ops.NONE, torch.ones(2))),
        ("scale_grad_", (torch.ones_like(out), torch.tensor([1.0, 2.0]))),
        ("reverse_step", (out, x.contiguous(), noise, t, rows, True)),
        ("reverse_step", (both, x, noise, t, learned, False, both, torch.ones(2), torch.ones(2), [x, out], True)),
        ("reverse_step_backward", (x, None, out, x.contiguous(), None, t, rows)),
        ("reverse_step_backward", (x, None, both, x.contiguous(), noise, t, learned, both, torch.ones(2), None, x)),
        ("vlb_loss", (*terms, ops.MEAN, False)),
        ("vlb_loss", (*terms, ops.NONE, True)),
        ("vlb_loss_backward", (*terms, ops.NONE, torch.ones(2))),
        ("hybrid_loss", (*terms, 1e-3, ops.NONE, False)),
        ("hybrid_loss", (*terms, 1e-3, ops.MEAN, True)),
        ("hybrid_loss_backward", (*terms, 1e-3, ops.SUM, torch.ones(()), None, torch.ones(()))),
        ("vlb_terms", (*terms, noise, t)),
        ("vlb_terms", (*terms, None, None)),
    )
