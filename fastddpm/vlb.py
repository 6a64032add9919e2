"""The variational bound's public functions: check the arguments, pick the rows, call the op.

Shapes, dtypes and errors are as in `functional`. All losses are bits a dimension: nats / (D ln 2). Nichol & Dhariwal 2021,
section 3.1, is the source of the learned variances and of the hybrid loss; Ho et al. 2020, eq. 5 and 13, of the terms.
"""

import math
from numbers import Real

import torch
from torch import Tensor

from . import autograd, ops
from .checks import check_data, check_no_grad, check_noise, check_one_of, check_output, describe
from .coefficients import prior_kl_rows, vlb_rows
from .functional import REDUCTIONS, arithmetic, check_reduction, check_weight, row_index, weighted
from .schedule import VARIANCE_TYPES, NoiseSchedule, check_schedule

CDFS = ("exact", "tanh")


def vlb_loss(
    model_output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor | int,
    schedule: NoiseSchedule,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip_denoised: bool = False,
    cdf: str = "exact",
    first_variance: str = "posterior",
    reduction: str = "mean",
) -> Tensor:
    """The bound's term of each sample's t: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), at index 0 -log p(x_0 | x_1).

    KL = 1/2 (log sigma^2 - log beta~ + beta~ / sigma^2 - 1 + (mu~ - mu)^2 / sigma^2);  the likelihood is that of x_0's one of
    256 levels of [-1, 1], those at the ends open.

    Args:
        model_output: the network's output at x_t: of x_0's shape, or `[B, 2C, ...]` for a learned variance: the channels of
            the mean, then those of the variance.
        x_0: the data.
        x_t: the noised data; or the key that `q_sample` made it of: it is then made again, not read.
        t, schedule: as `q_sample` had them.
        prediction_type: as in `mse_loss`.
        variance_type: "fixed_small" (beta~), "fixed_large" (beta), "learned" (the output is log sigma^2), or "learned_range"
            (-1 is log beta~ and +1 log beta; between and beyond, on the line through them).
        clip_denoised: clamp x_0_hat to [-1, 1]; of no effect for "previous", whose mean is the output.
        cdf: "exact", finite and with a gradient everywhere; or "tanh", the approximation (within 1.8e-4) and the clamp at 1e-12
            of the published code.
        first_variance: log beta~ at index 0, where beta~ is 0: "posterior" (index 1's, as in the published code) or "beta".
        reduction: "mean", "sum", or "none" for `[B]`.

    Returns:
        float32 (float64 for float64) bits a dimension: a scalar, or `[B]`. Differentiable in model_output.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, shape, device or name, named.
        IndexError: t out of range, on the CPU.
    """
    index = _checked(model_output, x_0, x_t, t, schedule, prediction_type, variance_type, cdf)
    check_reduction(reduction)
    dtype = arithmetic(model_output)
    rows = vlb_rows(schedule, prediction_type, variance_type, clip_denoised, first_variance, None, x_0.device, dtype)
    given, key = (None, x_t) if _is_key(x_t) else (x_t, None)
    return autograd.vlb_loss(model_output, x_0, given, key, index, rows, cdf == "tanh", REDUCTIONS[reduction])


def hybrid_loss(
    model_output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor | int,
    schedule: NoiseSchedule,
    noise: Tensor | None = None,
    vlb_weight: float | None = None,
    prediction_type: str = "epsilon",
    variance_type: str = "learned_range",
    clip_denoised: bool = False,
    cdf: str = "exact",
    first_variance: str = "posterior",
    weight: str | Tensor | None = None,
    reduction: str = "mean",
) -> dict[str, Tensor]:
    """mse + vlb_weight vlb in one pass, the mean detached in the vlb: it learns from the mse alone, the variance from the vlb.

    Args:
        noise: the noise of `q_sample`: a key or a tensor, for the mean squared error's target. Not needed for "sample" and
            "previous". Where x_t is a key, that same key or None.
        vlb_weight: None for T / 1000. That is OpenAI's RESCALED_MSE, and L_simple + 0.001 L_vlb of Nichol & Dhariwal 2021,
            whose L_vlb is T times the mean term.
        weight: of the mean squared error over t, as in `mse_loss`.
        variance_type: of a fixed variance the vlb has no gradient, and adds but its value.
        others: as in `vlb_loss`.

    Returns:
        "loss", "mse" and "vlb", each as `vlb_loss` returns it, and each differentiable in model_output.

    Raises:
        As `vlb_loss`.
    """
    index = _checked(model_output, x_0, x_t, t, schedule, prediction_type, variance_type, cdf)
    check_reduction(reduction)
    given, noise = _hybrid_noise(x_0, x_t, noise, prediction_type)
    name = check_weight(weight, prediction_type, len(schedule), x_0)
    dtype = arithmetic(model_output)
    rows = vlb_rows(schedule, prediction_type, variance_type, clip_denoised, first_variance, name, x_0.device, dtype)
    rows = weighted(rows, weight)
    scale = len(schedule) / 1000 if vlb_weight is None else _number("vlb_weight", vlb_weight)
    inputs = (model_output, x_0, given, noise, index, rows, cdf == "tanh", scale, REDUCTIONS[reduction])
    loss, mse, vlb = autograd.hybrid_loss(*inputs)
    return {"loss": loss, "mse": mse, "vlb": vlb}


def prior_kl(x_0: Tensor, schedule: NoiseSchedule) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)) of each sample: (abar_T x_0^2 - abar_T - log(1 - abar_T)) / (2 ln 2), its mean over D.

    Returns:
        float32 (float64 for float64) `[B]`, bits a dimension. Differentiable in x_0. 0 at zero terminal SNR.

    Raises:
        TypeError: x_0 or schedule of a wrong type, named.
    """
    check_data("x_0", x_0)
    check_schedule(schedule)
    rows, first = prior_kl_rows(schedule, x_0.device, arithmetic(x_0)), schedule.indices_on(x_0.device)[0]
    abar = schedule.last_alpha_cumprod
    constant = (-abar - math.log1p(-abar)) / (2 * math.log(2))
    return autograd.mse_loss(x_0, None, None, None, first, rows, ops.NONE) + constant


def _checked(model_output, x_0, x_t, t, schedule, prediction_type, variance_type, cdf) -> Tensor:
    """The checks that the two losses share; t as a tensor."""
    check_data("x_0", x_0)
    check_schedule(schedule)
    if variance_type not in VARIANCE_TYPES:
        check_one_of("variance_type", variance_type, VARIANCE_TYPES)
    check_output(model_output, variance_type, "x_0", x_0)
    check_no_grad("x_0", x_0)
    check_noise(x_t, "x_0", x_0, "x_t")
    schedule.check_prediction(prediction_type)
    if cdf not in CDFS:
        check_one_of("cdf", cdf, CDFS)
    return row_index("t", t, x_0, schedule)


def _hybrid_noise(x_0, x_t, noise, prediction_type) -> tuple[Tensor | None, Tensor | None]:
    """The op's x_t and noise: None and the key where x_t is to be made again."""
    if _is_key(x_t):
        if noise is not None and noise is not x_t:
            raise ValueError(
                f"noise: expected the very tensor given as x_t (a copy is not compared), or None, got {describe(noise)}"
            )
        return None, x_t
    if prediction_type in ("sample", "previous"):
        return x_t, None
    if noise is None:
        raise ValueError(f"noise: expected a key or a tensor for prediction_type {prediction_type!r}, got None")
    check_noise(noise, "x_0", x_0)
    return x_t, noise


def _is_key(x_t: Tensor) -> bool:
    return x_t.dtype is torch.int64


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number or None, got {describe(value)}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number
