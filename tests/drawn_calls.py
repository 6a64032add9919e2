"""Calls of the public functions as hypothesis draws them: operands with their dtypes and places, options, and beside each
function its formula on plain tensors."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import plain
import torch
from helpers import DTYPES, KINDS, SIZES, expanded, on_reference, placed
from hypothesis import strategies as st

from fastddpm import NoiseSchedule, hybrid_loss, mse_loss, prior_kl, q_sample, q_step, reverse_step, vlb_loss
from fastddpm.functional import REDUCTIONS
from fastddpm.schedule import LEARNED_VARIANCE_TYPES, PREDICTION_TYPES, VARIANCE_TYPES
from fastddpm.vlb import CDFS

T = 1000
SCHEDULE = NoiseSchedule.linear(T)
WEIGHTS = {"1": None, "min_snr": "min_snr", "table": torch.linspace(0.5, 2.0, T)}

# ---- the functions, and their formulas: results by name, a formula's loss that of each sample ----


class Function(NamedTuple):
    operands: tuple[str, ...]  # beside the noise; the first decides the arithmetic
    call: Callable  # (call, operands by name, t, reduction)
    formula: Callable  # (call, operands by name, t, dtype)
    like: str = ""  # the operand as which its results lie; none where they are losses


def noising(function, formula):
    return Function(
        ("x_0",),
        lambda call, v, t, reduction: {"x_t": function(v["x_0"], t, SCHEDULE, v["noise"])},
        lambda call, v, t, dtype: {"x_t": formula(v["x_0"], t, SCHEDULE, v["noise"], dtype)},
        like="x_0",
    )


def mse(call, v, t, reduction):
    x_t = v["x_t"] if call.from_x_t else None
    given = (SCHEDULE, v["noise"], v["x_0"], x_t, call.prediction_type, WEIGHTS[call.weight], reduction)
    return {"loss": mse_loss(v["out"], t, *given)}


def mse_formula(call, v, t, dtype):
    x_t = v["x_t"] if call.from_x_t else None
    given = (SCHEDULE, v["noise"], v["x_0"], x_t, call.prediction_type, WEIGHTS[call.weight], dtype)
    return {"loss": plain.mse_loss(v["out"], t, *given)}


@cache
def rows_of(prediction_type, variance_type, clip):
    return plain.ddpm_rows(SCHEDULE, prediction_type, variance_type, clip)


def reverse(call, v, t, reduction):
    rows = rows_of(call.prediction_type, call.variance_type, call.clip)
    noise = "none" if call.noise_kind == "none" else v["noise"]
    return dict(zip(("x_prev", "x_0"), reverse_step(v["out"], v["x_t"], t, rows, noise), strict=True))


def reverse_formula(call, v, t, dtype):
    noise = v["noise"] * (call.noise_kind != "none")
    given = (SCHEDULE, noise, call.prediction_type, call.variance_type, call.clip, dtype)
    return dict(zip(("x_prev", "x_0"), plain.reverse_step(v["out"], v["x_t"], t, *given), strict=True))


def vlb(call, v, t, reduction):
    options = (call.prediction_type, call.variance_type, call.clip is not None, call.cdf, call.first_variance)
    return {"loss": vlb_loss(v["out"], v["x_0"], v["x_t"], t, SCHEDULE, *options, reduction=reduction)}


def hybrid(call, v, t, reduction):
    noise = None if v["x_t"].dtype == torch.int64 else v["noise"]
    options = (noise, 0.3, call.prediction_type, call.variance_type, call.clip is not None, call.cdf, call.first_variance)
    weight = {"weight": WEIGHTS[call.weight], "reduction": reduction}
    return hybrid_loss(v["out"], v["x_0"], v["x_t"], t, SCHEDULE, *options, **weight)


def on_the_reference(function):
    """Of the bound plain.py has no formula for every argument."""

    def formula(call, v, t, dtype):
        with on_reference():
            return function(call, v, t, "none")

    return formula


def prior(call, v, t, reduction):
    return {"loss": prior_kl(v["x_0"], SCHEDULE)}


def prior_formula(call, v, t, dtype):
    abar = float(SCHEDULE.alphas_cumprod[-1])
    return {"loss": (abar * v["x_0"].flatten(1) ** 2 - abar - math.log1p(-abar)).mean(1) / (2 * math.log(2))}


FUNCTIONS = {
    "q_sample": noising(q_sample, plain.q_sample),
    "q_step": noising(q_step, plain.q_step),
    "mse_loss": Function(("out", "x_0", "x_t"), mse, mse_formula),
    "reverse_step": Function(("x_t", "out"), reverse, reverse_formula, like="x_t"),
    "vlb_loss": Function(("out", "x_0", "x_t"), vlb, on_the_reference(vlb)),
    "hybrid_loss": Function(("out", "x_0", "x_t"), hybrid, on_the_reference(hybrid)),
    "prior_kl": Function(("x_0",), prior, prior_formula),
}

# ---- what is drawn ----


class Operand(NamedTuple):
    dtype: torch.dtype
    order: list[int]
    steps: dict[int, int]
    start: int
    repeated: list[int]

    def place(self, values):
        return expanded(placed(self.order, self.steps, self.start)(values.to(self.dtype)), self.repeated)


@dataclass
class Call:
    function: str
    shape: tuple[int, ...]
    t: list[int]
    operands: dict[str, Operand]
    form_of_t: str
    noise_kind: str
    x_t_kind: str
    prediction_type: str
    variance_type: str
    clip: float | None
    cdf: str
    first_variance: str
    weight: str
    reduction: str
    size: str

    @property
    def bound(self):
        return self.function in ("vlb_loss", "hybrid_loss")

    @property
    def from_x_t(self):
        return self.x_t_kind == "tensor" and self.prediction_type == "previous"

    @property
    def arithmetic(self):
        first = FUNCTIONS[self.function].operands[0]
        return torch.float64 if self.operands[first].dtype == torch.float64 else torch.float32

    def shape_of(self, name):
        learned = self.variance_type in LEARNED_VARIANCE_TYPES and (self.bound or self.function == "reverse_step")
        batch, channels, *rest = self.shape
        return (batch, channels * (1 + (name == "out" and learned)), *rest)

    def indices(self):
        """t in its form, and as one of each sample."""
        batch, each = self.shape[0], torch.tensor(self.t, dtype=torch.int64)
        one = self.t[0] if self.t else 0
        same = torch.full((batch,), one)
        return {
            "int": (one, same),
            "0-d": (torch.tensor(one), same),
            "int32, one": (torch.tensor([one], dtype=torch.int32), same),
            "int64": (each, each),
            "int32": (each.int(), each),
            "every second": (each.repeat_interleave(2)[::2], each),
        }[self.form_of_t]


SIZE = st.sampled_from((0, *range(1, 10), *range(1, 10)))  # seldom empty
LONG = st.integers(10, 700)
BATCH = st.sampled_from((0, *range(1, 5), *range(1, 5)))
SIZES_OF_A_SAMPLE = st.lists(SIZE, min_size=1, max_size=4)
INDICES = [st.lists(st.integers(0, 2) | st.integers(0, T - 1), min_size=batch, max_size=batch) for batch in range(5)]


@st.composite
def shapes(draw):
    """Up to four dimensions beside the batch, of which one may be long."""
    shape = [draw(BATCH), *draw(SIZES_OF_A_SAMPLE)]
    if draw(st.booleans()):
        shape = [min(n, 3) for n in shape]
        shape[draw(st.integers(1, len(shape) - 1))] = draw(LONG)
    return tuple(shape)


@cache
def operands(dims):
    return st.builds(
        Operand,
        dtype=st.sampled_from(DTYPES),
        order=st.permutations(range(dims)),
        steps=st.dictionaries(st.integers(0, dims - 1), st.integers(1, 3), max_size=2),
        start=st.integers(0, 1),
        repeated=st.lists(st.integers(0, dims - 1), max_size=1),
    )


OPTIONS = {
    "form_of_t": ("int64", "int32", "every second", "int", "0-d", "int32, one"),
    "noise_kind": (*KINDS, "none"),
    "x_t_kind": KINDS,
    "prediction_type": PREDICTION_TYPES,
    "variance_type": VARIANCE_TYPES,
    "clip": (None, 1.0),
    "cdf": CDFS,
    "first_variance": ("posterior", "beta"),
    "weight": WEIGHTS,
    "reduction": REDUCTIONS,
    "size": SIZES,
}
OPTIONS = st.fixed_dictionaries({name: st.sampled_from(list(choices)) for name, choices in OPTIONS.items()})
FUNCTION = st.sampled_from(list(FUNCTIONS))


@st.composite
def calls(draw):
    function, shape, options = draw(FUNCTION), draw(shapes()), draw(OPTIONS)
    if options["prediction_type"] == "previous" and options["weight"] == "min_snr":
        options["weight"] = "1"
    if options["noise_kind"] == "none" and function != "reverse_step":
        options["noise_kind"] = "key"
    if function == "prior_kl":
        options["reduction"] = "none"
    names = (*FUNCTIONS[function].operands, "noise")
    operands_of_it = {name: draw(operands(len(shape))) for name in names}
    return Call(function, shape, draw(INDICES[shape[0]]), operands_of_it, **options)
