"""The public functions: check the arguments, pick the rows, call the op.

Shapes: B is the batch, D the elements of one sample; x tensors are `[B, ...]`, float32, bfloat16, float16 or (on the CPU)
float64, each of its own dtype and any layout; `t` holds indices 0..T-1, int32 or int64 `[B]` or one value for all. Of a
continuous process (`FlowMatching`, `EDM`) t may be numbers too, floating, whose range nobody checks: that would wait for a GPU.
Arithmetic is float32 (float64 where the first tensor is float64), the result cast last. `noise` is a key (`noise_key`) or a
tensor.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import autograd, ops
from .checks import (
    as_int,
    as_samples,
    check_data,
    check_index,
    check_key,
    check_like,
    check_no_grad,
    check_noise,
    check_one_of,
    check_output,
    check_samples,
    describe,
)
from .coefficients import mse_rows, q_sample_rows, q_step_rows, velocity_rows
from .process import LEVEL_FREE, Process, check_process, is_number
from .samplers import StepRows
from .schedule import NoiseSchedule, check_schedule

REDUCTIONS = {"none": ops.NONE, "mean": ops.MEAN, "sum": ops.SUM}


def q_sample(x_0: Tensor, t: Tensor | int | float, schedule: Process, noise: Tensor) -> Tensor:
    """x_t = a x_0 + s z: a draw of q(x_t | x_0); of a chain sqrt(abar_t) x_0 + sqrt(1 - abar_t) z (Ho et al. 2020, eq. 4).

    Args:
        x_0: data `[B, ...]`.
        t: indices into the schedule, or numbers.
        schedule: a `NoiseSchedule`, `FlowMatching` or `EDM`.
        noise: a key of B rows, whose normals are made on the way, or a tensor of x_0's shape.

    Returns:
        x_t, of x_0's shape, dtype and layout. Differentiable in x_0.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, shape or device, named.
        IndexError: t out of range, on the CPU. On a GPU, where reading it would wait, that sample becomes NaN.
    """
    check_data("x_0", x_0)
    check_process(schedule)
    number, index = number_or_index("t", t, x_0, schedule)
    check_noise(noise, "x_0", x_0)
    return autograd.noising(x_0, noise, index, q_sample_rows(schedule, x_0.device, arithmetic(x_0), number))


def q_sample_uniform(x_0: Tensor, schedule: Process, key: Tensor) -> tuple[Tensor, Tensor]:
    """x_t at a t drawn evenly for each sample: `timesteps` and `q_sample` in one launch, to the same bits.

    Args:
        x_0: data `[B, ...]`.
        schedule: a `NoiseSchedule` or `FlowMatching`.
        key: int64 `[B, 2]`: t and the noise are functions of it.

    Returns:
        (x_t, t): x_t as `q_sample` gives it, t as `timesteps(key, T)`. x_t is differentiable in x_0.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, shape or device, named.
    """
    check_data("x_0", x_0)
    check_process(schedule)
    if not schedule.num_timesteps:
        raise TypeError(f"schedule: expected a NoiseSchedule or FlowMatching, which have indices to draw, got {schedule!r}")
    check_key("key", key)
    check_noise(key, "x_0", x_0, "key")
    return autograd.noising_uniform(x_0, key, q_sample_rows(schedule, x_0.device, arithmetic(x_0)))


def q_step(x_prev: Tensor, t: Tensor | int, schedule: NoiseSchedule, noise: Tensor) -> Tensor:
    """x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) z: one step of the forward chain (Ho et al. 2020, eq. 2). As `q_sample`."""
    return _noised("x_prev", x_prev, t, schedule, noise, q_step_rows)


def velocity(x_0: Tensor, t: Tensor | int, schedule: NoiseSchedule, noise: Tensor) -> Tensor:
    """v = sqrt(abar_t) z - sqrt(1 - abar_t) x_0, the target of v-prediction (Salimans & Ho 2022, appendix D). As `q_sample`."""
    return _noised("x_0", x_0, t, schedule, noise, velocity_rows)


def _noised(name, x, t, schedule, noise, rows_on) -> Tensor:
    check_data(name, x)
    check_schedule(schedule)
    t = row_index("t", t, x, schedule)
    check_noise(noise, name, x)
    rows = rows_on(schedule, x.device, arithmetic(x))
    return autograd.noising(x, noise, t, rows)


def mse_loss(
    model_output: Tensor,
    t: Tensor | int | float,
    schedule: Process,
    noise: Tensor | None = None,
    x_0: Tensor | None = None,
    x_t: Tensor | None = None,
    prediction_type: str | None = None,
    weight: str | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """w_t mean_D (model_output - target)^2 for each sample (Ho et al. 2020, eq. 14), its mean or its sum over the batch.

    Args:
        model_output: the network's output `[B, ...]`.
        t, schedule: as `q_sample` had them.
        noise: the noise of `q_sample`: the same key (it is made again, not stored), or the tensor. Not needed for "sample".
        x_0: the data. Needed by every prediction type but "epsilon".
        x_t: for "previous" only: the noised data, in place of `noise`.
        prediction_type: what the target is: "epsilon" the noise; "sample" x_0; "v_prediction" sqrt(abar) z - sqrt(1 - abar) x_0
            (Salimans & Ho 2022); "previous" the posterior mean mu~(x_t, x_0) (Ho et al. 2020, eq. 7); "velocity" z - x_0;
            "edm" (see `EDM`). None for the process's own: "epsilon" of a chain.
        weight: None for 1; "min_snr" (Hang et al. 2023, gamma = 5); of `FlowMatching` also SD3's "sigma_sqrt", s^-2, and
            "cosmap", 2 / (pi (1 - 2 s + 2 s^2)) (diffusers' `compute_loss_weighting_for_sd3`); or a floating `[T]` table on the
            data's device (of numbers t `[B]`, one for each).
        reduction: "mean", "sum", or "none" for `[B]`.

    Returns:
        float32 (float64 for float64): a scalar, or `[B]`. Differentiable in model_output.

    Raises:
        TypeError, ValueError: an argument missing, or of a wrong dtype, shape or device, named.
        IndexError: t out of range, on the CPU.
    """
    check_data("model_output", model_output)
    check_process(schedule)
    number, index = number_or_index("t", t, model_output, schedule)
    prediction_type = prediction_type or schedule.prediction_types[0]
    schedule.check_prediction(prediction_type)
    check_reduction(reduction)
    noise, x_0, x_t = _target_inputs(prediction_type, model_output, noise, x_0, x_t)
    target = prediction_type if x_t is None else "previous_from_x_t"
    count = len(schedule) if number is None else model_output.shape[0]
    name = check_weight(weight, prediction_type, count, model_output)
    if number is not None and weight is None and schedule.num_timesteps and prediction_type in LEVEL_FREE:
        number, index = None, schedule.index_on(model_output.device, 0)  # any row of the table: nothing is made for this call
    if number is not None and isinstance(weight, Tensor) and len(number) < count:
        index = torch.arange(count, device=model_output.device)  # one number for all, but a weight for each
    rows = weighted(mse_rows(schedule, target, name, model_output.device, arithmetic(model_output), number), weight)
    return autograd.mse_loss(model_output, noise, x_0, x_t, index, rows, REDUCTIONS[reduction])


def _target_inputs(prediction_type, model_output, noise, x_0, x_t):
    """The tensors that this target is made of, checked; None for the rest."""
    needs_x_0 = prediction_type != "epsilon"
    if x_0 is not None:
        check_like("x_0", x_0, "model_output", model_output)
        if needs_x_0:
            check_no_grad("x_0", x_0)
    elif needs_x_0:
        raise ValueError(f"x_0: expected a tensor for prediction_type {prediction_type!r}, got None")
    if x_t is not None:
        check_like("x_t", x_t, "model_output", model_output)
        if prediction_type == "previous":
            check_no_grad("x_t", x_t)
            return None, x_0, x_t
    if prediction_type == "sample":
        return None, x_0, None
    if noise is None:
        raise ValueError(f"noise: expected a key or a tensor for prediction_type {prediction_type!r}, got None")
    check_noise(noise, "model_output", model_output)
    return noise, x_0 if needs_x_0 else None, None


def check_reduction(reduction: str) -> None:
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        check_one_of("reduction", reduction, tuple(REDUCTIONS))


def check_weight(weight: str | Tensor | None, prediction_type: str, count: int, x: Tensor) -> str | None:
    """The name of the weights that the schedule makes: None where they are a table of the caller's (`weighted`)."""
    if weight is None or isinstance(weight, str):
        if prediction_type == "previous" and weight == "min_snr":
            raise ValueError("weight: expected None or a table for prediction_type 'previous', got 'min_snr'")
        return weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.shape != (count,):
        raise ValueError(f"weight: expected None, 'min_snr' or a floating [{count}] table, got {describe(weight)}")
    if weight.device != x.device:
        raise ValueError(f"weight: expected model_output's device {x.device}, got {weight.device}")
    check_no_grad("weight", weight)
    return None


def weighted(rows: Tensor, weight: str | Tensor | None) -> Tensor:
    """The rows with a table of the caller's for their last column."""
    if not isinstance(weight, Tensor):
        return rows
    fixed = rows[:, :-1].expand(len(weight), -1)  # w is the last of MseRow and of VlbRow
    return torch.cat((fixed, weight.to(rows.dtype)[:, None]), 1)


def reverse_step(
    model_output: Tensor,
    x_t: Tensor,
    i: Tensor | int,
    rows: StepRows,
    noise: Tensor | str | None = None,
    return_x_0: bool = True,
    *,
    uncond_output: Tensor | None = None,
    guidance: Tensor | float | None = None,
    bound: Tensor | None = None,
    history: Sequence[Tensor] = (),
    return_kept: bool = False,
) -> tuple[Any, ...]:
    """One reverse update, x_t to x_{t-1}, for any sampler that is a table of rows (for DDPM, Ho et al. 2020, algorithm 2).

    out' = u + g (out - u);  x_0_hat = clamp(p_x x_t + p_o out', bound);
    x_prev = k_x x_t + k_0 x_0_hat + k_o out' + sum_j k_hj h_j + sigma exp(k_v v) z;  kept = c_x x_t + c_0 x_0_hat.

    Args:
        model_output: the network's output at x_t: `out` of its shape, or `[B, 2C, ...]` of out and v for rows of a learned
            variance. Under guidance the output with the condition, whose v is taken.
        x_t: the current sample `[B, ...]`.
        i: indices into the rows: the last one first, 0 for the final step. A tensor, or an int. Not a timestep, from which they
            differ in a chain of fewer steps: `rows.step_at(timestep)` is its index.
        rows: a sampler's table, e.g. `samplers.ddpm(schedule)`.
        noise: a key of B rows (of stream "reverse"; `noise_key`'s default is the training noise), or a tensor of x_t's shape.
            None where the rows add no noise; "none" to leave it out of rows that do.
        return_x_0: False leaves x_0_hat unwritten and returns None for it.
        uncond_output: u, the output without the condition, of model_output's shape, for classifier-free guidance (Ho & Salimans
            2022, with g = 1 + w). Both may be halves of one output of a stacked batch.
        guidance: g, a number or `[B]`; None for the rows'.
        bound: `[B]`, in place of the rows': x_0_hat is clamped to it and divided by it (dynamic thresholding; Saharia et al.
            2022, 2.3).
        history: what earlier steps kept, the last one's first, of x_t's shape; `rows.history` of them are read, and one whose
            coefficient is 0 at a sample's row may hold anything there.
        return_kept: also return what later steps want for their history, where `rows.keeps` (else it is x_0_hat).

    Returns:
        (x_prev, x_0_hat), with return_kept (x_prev, x_0_hat, kept), of x_t's shape, dtype and layout. Differentiable in
        model_output, uncond_output, x_t and history.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, shape or device, named.
        IndexError: i out of range: on the CPU, or given as an int.
    """
    check_data("x_t", x_t)
    if not isinstance(rows, StepRows):
        raise TypeError(f"rows: expected the StepRows of a sampler such as samplers.ddpm(schedule), got {describe(rows)}")
    check_output(model_output, rows.variance_type, "x_t", x_t)
    index = row_index("i", i, x_t, rows)
    noise = _step_noise(noise, x_t, rows)
    table = rows.on(x_t.device, arithmetic(x_t))
    options: tuple = ()
    if history != () or rows.history or return_kept or not (uncond_output is guidance is bound is None):
        options = _step_options(uncond_output, guidance, bound, history, return_kept, rows, x_t)
    x_prev, x_0, kept = autograd.reverse_step(model_output, x_t, noise, index, table, return_x_0, *options)
    returned = (x_prev, x_0 if return_x_0 else None)
    return (*returned, kept) if return_kept else returned


def _step_options(uncond_output, guidance, bound, history, return_kept, rows: StepRows, x_t: Tensor) -> tuple:
    if uncond_output is not None:
        check_output(uncond_output, rows.variance_type, "x_t", x_t, "uncond_output")
    guidance = _guidance(guidance, uncond_output, x_t)
    if bound is not None:
        check_samples("bound", bound, x_t.shape[0], x_t.device)
        bound = bound.to(arithmetic(x_t))
    return uncond_output, guidance, bound, _history(history, rows, x_t), return_kept


def _guidance(guidance: Tensor | float | None, uncond_output: Tensor | None, x_t: Tensor) -> Tensor | None:
    if guidance is None:
        return None
    if uncond_output is None:
        raise ValueError("uncond_output: expected the output without the condition, since guidance is given, got None")
    return as_samples("guidance", guidance, x_t.shape[0], x_t.device, arithmetic(x_t))


def _history(history: Sequence[Tensor], rows: StepRows, x_t: Tensor) -> list[Tensor]:
    if not isinstance(history, Sequence):
        raise TypeError(f"history: expected a sequence of tensors, got {describe(history)}")
    if len(history) < rows.history:
        raise ValueError(f"history: expected {rows.history} tensors, which these rows read, got {len(history)}")
    read = list(history)[: rows.history]
    for j, h in enumerate(read):
        check_like(f"history[{j}]", h, "x_t", x_t)
    return read


def _step_noise(noise: Tensor | str | None, x_t: Tensor, rows: StepRows) -> Tensor | None:
    if isinstance(noise, str):
        check_one_of("noise", noise, ("none",))
        return None
    if noise is not None:
        check_noise(noise, "x_t", x_t)
    elif rows.adds_noise:
        raise ValueError("noise: expected a key or a tensor, since these rows add noise, or 'none' to leave it out, got None")
    return noise


def arithmetic(x: Tensor) -> torch.dtype:
    """The dtype that a function computes in whose first tensor is x."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def number_or_index(name: str, t: Tensor | int | float, x: Tensor, process: Process) -> tuple[Tensor | None, Tensor]:
    """Numbers t of a continuous process, `[B]` or `[1]`, and the index of each in rows made of them; or None and an index."""
    if not (process.is_continuous and is_number(t)):
        if not process.num_timesteps:
            raise TypeError(f"{name}: expected floating t, since {type(process).__name__} has no table to index, got indices")
        return None, row_index(name, t, x, process)
    numbers = as_samples(name, t, x.shape[0], x.device, arithmetic(x)).reshape(-1)
    return numbers, torch.arange(len(numbers), device=x.device)


def row_index(name: str, t: Any, x: Tensor, table: Process | StepRows) -> Tensor:
    if isinstance(t, Tensor):
        check_index(name, t, x)
        return t
    index = as_int(name, t, "an int32 or int64 tensor [B] or an int")
    if not 0 <= index < len(table):
        fewer = index > 0 and float(table.timesteps.max()) >= len(table)  # steps than timesteps: perhaps it is one
        hint = " (an index of steps; of a timestep it is .step_at(timestep))" if fewer else ""
        raise IndexError(f"{name}: expected 0 .. {len(table) - 1}, got {index}{hint}")
    return table.index_on(x.device, index)
