"""Bad input is refused where it comes in: each error names the argument, what was expected and what was given."""

import math

import pytest
import torch
from helpers import values

from fastddpm import (
    NoiseSchedule,
    advance,
    hybrid_loss,
    mse_loss,
    noise_key,
    prior_kl,
    q_sample,
    q_sample_uniform,
    q_step,
    randn,
    reverse_step,
    samplers,
    timesteps,
    vlb_loss,
)

SCHEDULE = NoiseSchedule.linear(1000)
ROWS = samplers.ddpm(SCHEDULE)
X, KEY, T = values(4, 3, 5, 5), noise_key(1, 2, 4), torch.tensor([0, 1, 500, 999])
META = torch.device("meta")


def loss(**changed):
    arguments = {"model_output": X, "t": T, "schedule": SCHEDULE, "noise": KEY, "x_0": X, "prediction_type": "v_prediction"}
    return mse_loss(**{**arguments, **changed})


def step(**changed):
    return reverse_step(**{"model_output": X, "x_t": X, "i": T, "rows": ROWS, "noise": KEY, **changed})


LEARNED = torch.cat((X, X), 1)
TWO_STEPS = samplers.StepRows(torch.arange(1000), p_o=1.0, k_0=1.0, k_h2=0.5)
EACH = torch.ones(4)
SAMPLES = r"expected shape \[4\] \(one a sample\) or one value, got"


def bound(**changed):
    arguments = {"model_output": LEARNED, "x_0": X, "x_t": KEY, "t": T, "schedule": SCHEDULE, "variance_type": "learned"}
    return vlb_loss(**{**arguments, **changed})


def hybrid(**changed):
    arguments = {"model_output": LEARNED, "x_0": X, "x_t": X, "t": T, "schedule": SCHEDULE, "noise": KEY}
    return hybrid_loss(**{**arguments, **changed})


def learned_step(**changed):
    return step(**{"model_output": LEARNED, "rows": samplers.ddpm(SCHEDULE, variance_type="learned_range"), **changed})


def guided(guidance):
    return step(uncond_output=X, guidance=guidance)


def sample(**changed):
    return q_sample(**{"x_0": X, "t": T, "schedule": SCHEDULE, "noise": KEY, **changed})


def one_step(**changed):
    return q_step(**{"x_prev": X, "t": T, "schedule": SCHEDULE, "noise": KEY, **changed})


FLOATING = "expected a float32, bfloat16, float16 or float64 tensor"
SHAPES = r"expected {}'s shape \[4, 3, 5, 5\], got \[4, 3, 5\]"
CHANNELS = r"expected \[B, 2C, \.\.\.\] = \[4, 6, 5, 5\] for variance_type '{}' .*, got \[4, 3, 5, 5\]"
INDEX = r"expected an int32 or int64 tensor \[B\].*, got"
ROWS_OF_KEY = r"noise: expected a key of 4 rows \(the batch of {}\), got 3"
CASES = {
    # the data
    "x_0 of integers": (lambda: sample(x_0=X.long()), TypeError, rf"x_0: {FLOATING} \[B, \.\.\.\], got int64 \[4, 3, 5, 5\]"),
    "x_0 of booleans": (lambda: sample(x_0=X > 0), TypeError, rf"x_0: {FLOATING} .*got bool"),
    "x_0 complex": (lambda: sample(x_0=X + 0j), TypeError, rf"x_0: {FLOATING} .*got complex64"),
    "x_0 no tensor": (lambda: sample(x_0=X.tolist()), TypeError, rf"x_0: {FLOATING} .*got list"),
    "x_0 a scalar": (lambda: sample(x_0=torch.tensor(1.0)), TypeError, rf"x_0: {FLOATING} .*got float32 \[\]"),
    "x_prev of integers": (lambda: one_step(x_prev=X.int()), TypeError, rf"x_prev: {FLOATING} .*got int32"),
    "uniform, of integers": (lambda: q_sample_uniform(X.long(), SCHEDULE, KEY), TypeError, rf"x_0: {FLOATING} .*got int64"),
    "uniform, no schedule": (lambda: q_sample_uniform(X, None, KEY), TypeError, "schedule: expected"),
    "uniform, noise in place of a key": (
        lambda: q_sample_uniform(X, SCHEDULE, X),
        TypeError,
        r"key: expected an int64 key \[B, 2\] from noise_key, got float32 \[4, 3, 5, 5\]",
    ),
    "uniform, a key of another batch": (
        lambda: q_sample_uniform(X, SCHEDULE, KEY[:3]),
        ValueError,
        r"key: expected a key of 4 rows \(the batch of x_0\), got 3",
    ),
    "output of integers": (lambda: loss(model_output=X.long()), TypeError, rf"model_output: {FLOATING} .*got int64"),
    "output None": (lambda: step(model_output=None), TypeError, rf"model_output: {FLOATING}, got NoneType"),
    "output of another shape": (lambda: step(model_output=X[..., 0]), ValueError, "model_output: " + SHAPES.format("x_t")),
    "output of another batch": (lambda: step(model_output=X[:2]), ValueError, r"model_output: .*got \[2, 3, 5, 5\]"),
    "output elsewhere": (lambda: step(model_output=X.to(META)), ValueError, "model_output: .*device cpu, got meta"),
    "x_t of integers": (lambda: step(x_t=X.long()), TypeError, rf"x_t: {FLOATING} .*got int64"),
    "loss x_0 of another shape": (lambda: loss(x_0=X[..., 0]), ValueError, "x_0: " + SHAPES.format("model_output")),
    "loss x_0 elsewhere": (lambda: loss(x_0=X.to(META)), ValueError, "x_0: expected model_output's device cpu, got meta"),
    "loss x_0 of integers": (lambda: loss(x_0=X.long()), TypeError, f"x_0: {FLOATING}, got int64"),
    "loss x_0 missing": (lambda: loss(x_0=None), ValueError, "x_0: expected a tensor for .*'v_prediction', got None"),
    "loss x_t of another shape": (
        lambda: loss(x_t=X[..., 0], prediction_type="previous"),
        ValueError,
        "x_t: " + SHAPES.format("model_output"),
    ),
    "epsilon with an x_0 of another shape": (
        lambda: loss(x_0=X[:, :1], prediction_type="epsilon"),
        ValueError,
        r"x_0: expected model_output's shape \[4, 3, 5, 5\], got \[4, 1, 5, 5\]",
    ),
    # t
    "t of floats": (lambda: sample(t=T.float()), TypeError, rf"t: {INDEX} float32 \[4\] on cpu"),
    "t a float": (lambda: sample(t=5.0), TypeError, f"t: {INDEX} float"),
    "t a bool": (lambda: sample(t=True), TypeError, f"t: {INDEX} bool"),
    "t of bytes": (lambda: sample(t=T.to(torch.uint8)), TypeError, f"t: {INDEX} uint8"),
    "t a list": (lambda: loss(t=[0, 1, 2, 3]), TypeError, f"t: {INDEX} list"),
    "t None": (lambda: loss(t=None), TypeError, f"t: {INDEX} NoneType"),
    "t of another batch": (lambda: sample(t=T[:3]), ValueError, r"t: expected shape \[4\] .*, got \[3\]"),
    "t of two dimensions": (lambda: sample(t=T[:, None]), ValueError, r"t: expected shape \[4\] .*, got \[4, 1\]"),
    "t elsewhere": (lambda: sample(t=T.to(META)), ValueError, "t: expected the data's device cpu, got meta"),
    "t too large": (lambda: sample(t=T + 1), IndexError, r"t: expected 0 \.\. 999, got 1000"),
    "t negative": (lambda: loss(t=T - 1), IndexError, r"t: expected 0 \.\. 999, got -1"),
    "t an int too large": (lambda: sample(t=1000), IndexError, r"t: expected 0 \.\. 999, got 1000$"),
    "t an int negative": (lambda: one_step(t=-1), IndexError, r"t: expected 0 \.\. 999, got -1"),
    "i of floats": (lambda: step(i=T.double()), TypeError, rf"i: {INDEX} float64 \[4\]"),
    "i an int too large": (lambda: step(i=1000), IndexError, r"i: expected 0 \.\. 999, got 1000"),
    "i a timestep of a respaced chain": (
        lambda: step(i=981, rows=samplers.ddpm(SCHEDULE.respace(50))),
        IndexError,
        r"i: expected 0 \.\. 49, got 981 \(an index of steps; of a timestep it is \.step_at\(timestep\)\)",
    ),
    "t a timestep of a respaced chain": (
        lambda: sample(t=999, schedule=SCHEDULE.respace(50)),
        IndexError,
        r"t: expected 0 \.\. 49, got 999 \(an index of steps; of a timestep it is \.step_at\(timestep\)\)",
    ),
    "step_at a word": (lambda: SCHEDULE.step_at("a"), TypeError, "timestep: expected a number, got str"),
    "a timestep of no step": (
        lambda: samplers.ddpm(SCHEDULE.respace(50)).step_at(1000),
        ValueError,
        r"timestep: expected one of 19, 39, 59, \.\., 959, 979, 999 that one step has, got 1000, of 0",
    ),
    "a timestep of two steps": (
        lambda: samplers.plms(SCHEDULE, steps=5).step_at(600),
        ValueError,
        "timestep: expected one of .* that one step has, got 600, of 2",
    ),
    "i too large": (lambda: step(i=T + 1), IndexError, r"expected 0 \.\. 999, got 1000"),
    # the noise
    "key of another batch": (lambda: sample(noise=KEY[:3]), ValueError, ROWS_OF_KEY.format("x_0")),
    "loss key of another batch": (lambda: loss(noise=KEY[:3]), ValueError, ROWS_OF_KEY.format("model_output")),
    "step key of another batch": (lambda: step(noise=KEY[:3]), ValueError, ROWS_OF_KEY.format("x_t")),
    "key of one row": (lambda: sample(noise=KEY[:1]), ValueError, "noise: expected a key of 4 rows .*, got 1"),
    "key elsewhere": (lambda: sample(noise=KEY.to(META)), ValueError, "noise: expected x_0's device cpu, got meta"),
    "key of three columns": (
        lambda: sample(noise=torch.zeros(4, 3, dtype=torch.int64)),
        TypeError,
        r"noise: expected an int64 key \[4, 2\] from noise_key.*, got int64 \[4, 3\]",
    ),
    "noise of another shape": (lambda: sample(noise=X[..., 0]), ValueError, "noise: " + SHAPES.format("x_0")),
    "noise of int32": (lambda: sample(noise=KEY.int()), TypeError, rf"noise: {FLOATING} \(a key is int64\), got int32"),
    "noise a seed": (lambda: sample(noise=42), TypeError, rf"noise: {FLOATING} \(a key is int64\), got int"),
    "noise elsewhere": (lambda: sample(noise=X.to(META)), ValueError, "noise: expected x_0's device cpu, got meta"),
    "noise that wants a gradient": (
        lambda: sample(noise=X.clone().requires_grad_()),
        ValueError,
        "noise: expected a tensor that does not require grad",
    ),
    "weight with a gradient": (
        lambda: loss(weight=torch.ones(1000, requires_grad=True)),
        ValueError,
        "weight: expected a tensor that does not require grad",
    ),
    "loss without noise": (lambda: loss(noise=None), ValueError, "noise: expected a key or a tensor for .*, got None"),
    # names
    "prediction type": (
        lambda: loss(prediction_type="eps"),
        ValueError,
        "prediction_type: expected one of .*'epsilon'.*got 'eps'",
    ),
    "reduction": (lambda: loss(reduction="max"), ValueError, "reduction: expected one of 'none', 'mean', 'sum', got 'max'"),
    "weight name": (lambda: loss(weight="snr"), ValueError, "weight: expected one of .*'min_snr', got 'snr'"),
    "weight of another length": (
        lambda: loss(weight=torch.ones(999)),
        ValueError,
        r"weight: expected None, 'min_snr' or a floating \[1000\] table, got float32 \[999\]",
    ),
    "weight of integers": (lambda: loss(weight=torch.ones(1000).long()), ValueError, "weight: expected .*got int64"),
    "weight a number": (lambda: loss(weight=2.0), ValueError, "weight: expected .*got float"),
    "weight elsewhere": (lambda: loss(weight=torch.ones(1000, device=META)), ValueError, "weight: .*device cpu, got meta"),
    "rows a schedule": (
        lambda: step(rows=SCHEDULE),
        TypeError,
        r"rows: expected the StepRows of a sampler .*got NoiseSchedule",
    ),
    "schedule betas": (lambda: sample(schedule=SCHEDULE.betas), TypeError, "schedule: expected a NoiseSchedule, .*got float64"),
    "loss schedule": (lambda: loss(schedule=ROWS), TypeError, "schedule: expected a NoiseSchedule, .*got StepRows"),
    "variance type": (lambda: samplers.ddpm(SCHEDULE, variance_type="large"), ValueError, "variance_type: .*got 'large'"),
    "schedule variance": (lambda: SCHEDULE.variance("learned"), ValueError, "variance_type: .*'fixed_large', got 'learned'"),
    "clip range": (lambda: samplers.ddpm(SCHEDULE, clip_range=0), ValueError, "clip_range: expected a value above 0, got 0"),
    "clip range NaN": (lambda: samplers.ddpm(SCHEDULE, clip_range=math.nan), ValueError, "clip_range: .*got nan"),
    # learned variances
    "step without variance channels": (
        lambda: learned_step(model_output=X),
        ValueError,
        "model_output: " + CHANNELS.format("learned_range"),
    ),
    "step with variance channels": (lambda: step(model_output=LEARNED), ValueError, r"model_output: .*, got \[4, 6, 5, 5\]"),
    "step without channels": (
        lambda: learned_step(model_output=X[:, 0, 0, 0], x_t=X[:, 0, 0, 0]),
        ValueError,
        r"x_t: expected \[B, C, \.\.\.\] for variance_type 'learned_range', got \[4\]",
    ),
    "step's learned output of integers": (
        lambda: learned_step(model_output=LEARNED.long()),
        TypeError,
        "model_output: .*int64",
    ),
    "step's learned output elsewhere": (
        lambda: learned_step(model_output=LEARNED.to(META)),
        ValueError,
        "model_output: expected x_t's device cpu, got meta",
    ),
    "bound without variance channels": (
        lambda: bound(model_output=X),
        ValueError,
        "model_output: " + CHANNELS.format("learned"),
    ),
    "bound with variance channels": (
        lambda: bound(variance_type="fixed_small"),
        ValueError,
        r"model_output: expected x_0's shape \[4, 3, 5, 5\], got \[4, 6, 5, 5\]",
    ),
    "hybrid without variance channels": (
        lambda: hybrid(model_output=X),
        ValueError,
        "model_output: " + CHANNELS.format("learned_range"),
    ),
    # the bound
    "bound x_0 of integers": (lambda: bound(x_0=X.long()), TypeError, rf"x_0: {FLOATING} .*got int64"),
    "bound x_t of another shape": (lambda: bound(x_t=X[..., 0]), ValueError, "x_t: " + SHAPES.format("x_0")),
    "bound x_t of int32": (lambda: bound(x_t=KEY.int()), TypeError, rf"x_t: {FLOATING}, got int32"),
    "bound x_t None": (lambda: bound(x_t=None), TypeError, rf"x_t: {FLOATING}, got NoneType"),
    "bound x_t a key of another batch": (lambda: bound(x_t=KEY[:3]), ValueError, r"x_t: expected a key of 4 rows .*x_0.*got 3"),
    "bound x_t that wants a gradient": (
        lambda: bound(x_t=X.clone().requires_grad_()),
        ValueError,
        "x_t: expected a tensor that does not require grad",
    ),
    "bound x_0 that wants a gradient": (
        lambda: hybrid(x_0=X.clone().requires_grad_()),
        ValueError,
        "x_0: expected a tensor that does not require grad",
    ),
    "bound t": (lambda: bound(t=T.float()), TypeError, f"t: {INDEX} float32"),
    "bound t too large": (lambda: bound(t=T + 1), IndexError, r"t: expected 0 \.\. 999, got 1000"),
    "hybrid t negative": (lambda: hybrid(t=T - 1), IndexError, r"t: expected 0 \.\. 999, got -1"),
    "bound schedule": (lambda: bound(schedule=ROWS), TypeError, "schedule: expected a NoiseSchedule, got StepRows"),
    "bound variance type": (lambda: bound(variance_type="large"), ValueError, "variance_type: .*'learned_range', got 'large'"),
    "bound prediction type": (lambda: bound(prediction_type="eps"), ValueError, "prediction_type: expected one of .*'eps'"),
    "bound cdf": (lambda: bound(cdf="erf"), ValueError, "cdf: expected one of 'exact', 'tanh', got 'erf'"),
    "bound first variance": (
        lambda: hybrid(first_variance=1),
        ValueError,
        "first_variance: expected one of 'posterior', 'beta', got 1",
    ),
    "bound clip": (lambda: bound(clip_denoised=[2]), TypeError, r"clip_denoised: expected True or False, got \[2\]"),
    "reduction of a kind": (lambda: loss(reduction=[]), ValueError, r"reduction: expected one of 'none', .*got \[\]"),
    "bound reduction": (lambda: hybrid(reduction="max"), ValueError, "reduction: expected one of 'none', .*got 'max'"),
    "bound without signal": (
        lambda: bound(schedule=SCHEDULE.zero_terminal_snr()),
        ValueError,
        "prediction_type: expected 'v_prediction' or 'sample' on a schedule of zero terminal SNR, got 'epsilon'",
    ),
    # a step's options
    "u of another shape": (
        lambda: step(uncond_output=X[..., 0]),
        ValueError,
        "uncond_output: " + SHAPES.format("x_t"),
    ),
    "uncond_output without its variance": (
        lambda: learned_step(uncond_output=X),
        ValueError,
        "uncond_output: " + CHANNELS.format("learned_range"),
    ),
    "guidance of nothing": (
        lambda: step(guidance=2.0),
        ValueError,
        "uncond_output: .* since guidance is given, got None",
    ),
    "guidance nan": (lambda: guided(torch.nan), ValueError, r"guidance: expected a finite number .*, got nan"),
    "guidance infinite": (lambda: guided(-torch.inf), ValueError, r"guidance: expected a finite number .*, got -inf"),
    "guidance a word": (lambda: guided("4"), ValueError, r"guidance: expected a finite number or a floating .*, got '4'"),
    "guidance of integers": (lambda: guided(T), TypeError, r"guidance: expected a floating tensor \[B\], got int64 \[4\]"),
    "guidance of another batch": (lambda: guided(EACH[:3]), ValueError, rf"guidance: {SAMPLES} \[3\]"),
    "guidance elsewhere": (lambda: guided(EACH.to(META)), ValueError, "guidance: expected the data's device cpu, got meta"),
    "guidance that wants a gradient": (
        lambda: guided(EACH.clone().requires_grad_()),
        ValueError,
        "guidance: expected a tensor that does not require grad",
    ),
    "own bound a number": (lambda: step(bound=1.0), TypeError, r"bound: expected a floating tensor \[B\], got float"),
    "own bound of each element": (lambda: step(bound=X), ValueError, rf"bound: {SAMPLES} \[4, 3, 5, 5\]"),
    "own bound that wants a gradient": (
        lambda: step(bound=EACH.clone().requires_grad_()),
        ValueError,
        "bound: expected a tensor that does not require grad",
    ),
    "no history": (lambda: step(rows=TWO_STEPS), ValueError, "history: expected 2 tensors, which these rows read, got 0"),
    "a tensor for history": (
        lambda: step(rows=TWO_STEPS, history=X),
        TypeError,
        "history: expected a sequence of tensors, got",
    ),
    "history of another shape": (
        lambda: step(rows=TWO_STEPS, history=[X, X[..., 0]]),
        ValueError,
        r"history\[1\]: " + SHAPES.format("x_t"),
    ),
    "history elsewhere": (
        lambda: step(rows=TWO_STEPS, history=[X.to(META), X]),
        ValueError,
        r"history\[0\]: expected x_t's device cpu, got meta",
    ),
    "hybrid without noise": (lambda: hybrid(noise=None), ValueError, "noise: expected a key or a tensor for .*, got None"),
    "hybrid noise of another shape": (lambda: hybrid(noise=X[..., 0]), ValueError, "noise: " + SHAPES.format("x_0")),
    "hybrid of two keys": (
        lambda: hybrid(x_t=KEY, noise=KEY.clone()),
        ValueError,
        r"noise: expected the very tensor given as x_t \(.*\), or None, got int64 \[4, 2\]",
    ),
    "hybrid weight": (lambda: hybrid(weight="snr"), ValueError, "weight: expected one of .*'min_snr', got 'snr'"),
    "hybrid min_snr of previous": (
        lambda: hybrid(prediction_type="previous", weight="min_snr"),
        ValueError,
        "weight: expected None or a table .*, got 'min_snr'",
    ),
    "hybrid vlb_weight": (lambda: hybrid(vlb_weight="1"), TypeError, "vlb_weight: expected a number or None, got str"),
    "prior of integers": (lambda: prior_kl(X.long(), SCHEDULE), TypeError, rf"x_0: {FLOATING} .*got int64"),
    "prior schedule": (lambda: prior_kl(X, SCHEDULE.betas), TypeError, "schedule: expected a NoiseSchedule, got float64"),
    # epsilon at zero terminal SNR
    "epsilon without signal": (
        lambda: loss(schedule=SCHEDULE.zero_terminal_snr(), prediction_type="epsilon"),
        ValueError,
        "prediction_type: expected 'v_prediction' or 'sample' on a schedule of zero terminal SNR, got 'epsilon'",
    ),
    # keys
    "step negative": (lambda: noise_key(0, -1), ValueError, r"step: expected 0 <= step < 2\^28, got -1"),
    "step too large": (lambda: noise_key(0, 1 << 28), ValueError, r"step: expected 0 <= step < 2\^28, got 268435456"),
    "step a float": (lambda: noise_key(0, 1.5), TypeError, "step: expected an int, got float"),
    "sample too large": (
        lambda: noise_key(0, 0, 2, 2**32 - 1),
        ValueError,
        r"first_sample: .*2\^32 - 1, got 4294967295 with 2",
    ),
    "sample negative": (lambda: noise_key(0, 0, 2, -1), ValueError, "first_sample: expected .*, got -1"),
    "sample a float": (lambda: noise_key(0, 0, 2, 0.5), TypeError, "first_sample: expected an int, got float"),
    "batch negative": (lambda: noise_key(0, 0, -1), ValueError, "batch_size: expected 0 or more, got -1"),
    "batch a float": (lambda: noise_key(0, 0, 2.0), TypeError, "batch_size: expected an int, got float"),
    "stream too large": (lambda: noise_key(0, stream=16), ValueError, "stream: expected 0 <= stream < 16, got 16"),
    "seed a float": (lambda: noise_key(1.5), TypeError, r"seed: expected an int or an integer tensor \[B\], got float"),
    "seeds of floats": (lambda: noise_key(X[0, 0, 0]), TypeError, r"seed: expected .*, got float32 \[5\]"),
    "seeds of two dimensions": (lambda: noise_key(KEY), TypeError, r"seed: expected .*, got int64 \[4, 2\]"),
    "seeds of another batch": (lambda: noise_key(T, 0, 3), ValueError, r"batch_size: expected 4 .*, got 3"),
    "seeds and a sample too large": (lambda: noise_key(T, first_sample=2**32), ValueError, "first_sample: .*got 4294967296"),
    "randn key": (lambda: randn(T, (4, 3)), TypeError, r"key: expected an int64 key \[B, 2\] from noise_key, got int64 \[4\]"),
    "randn shape": (lambda: randn(KEY, (3, 4)), ValueError, r"shape: expected a first size of 4 .*, got \(3, 4\)"),
    "randn no shape": (lambda: randn(KEY, ()), ValueError, r"shape: expected \(B, ...\), got \(\)"),
    "randn a size": (lambda: randn(KEY, 4), ValueError, r"shape: expected \(B, ...\), got 4"),
    "randn a negative size": (lambda: randn(KEY, (4, -1)), ValueError, r"shape: expected \(B, ...\), got \(4, -1\)"),
    "advance by a float": (lambda: advance(noise_key(0), 1.5), TypeError, "steps: expected an int, got float"),
    "advance what is expanded": (lambda: advance(noise_key(0).expand(4, 2)), ValueError, "key: expected rows of their own"),
    "timesteps of a float": (lambda: timesteps(KEY, 2.5), TypeError, "num_timesteps: expected an int, got float"),
    "step none": (lambda: noise_key(0, None), TypeError, "step: expected an int, got NoneType"),
    "min_snr of previous": (
        lambda: mse_loss(X, T, SCHEDULE, x_0=X, x_t=X, prediction_type="previous", weight="min_snr"),
        ValueError,
        "weight: expected None or a table .*, got 'min_snr'",
    ),
    "data that wants a gradient": (
        lambda: mse_loss(X, T, SCHEDULE, x_0=X.clone().requires_grad_(), prediction_type="sample"),
        ValueError,
        "x_0: expected a tensor that does not require grad",
    ),
    "step's index out of range": (
        lambda: reverse_step(X, X, torch.tensor([0, 1, 2, 9999]), samplers.ddpm(SCHEDULE), "none"),
        IndexError,
        "i: expected 0 .*, got 9999",
    ),
    "randn dtype": (lambda: randn(KEY, (4, 3), torch.int32), TypeError, "dtype: expected float32, .*, got torch.int32"),
    "timesteps key": (lambda: timesteps(X, 10), TypeError, r"key: expected an int64 key .*, got float32 \[4, 3, 5, 5\]"),
    "timesteps none": (lambda: timesteps(KEY, 0), ValueError, r"num_timesteps: expected 1 <= T < 2\^31, got 0"),
    "timesteps too many": (lambda: timesteps(KEY, 2**31), ValueError, r"num_timesteps: expected .*, got 2147483648"),
    "advance key": (lambda: advance(T), TypeError, r"key: expected an int64 key .*, got int64 \[4\]"),
    "advance too far": (lambda: advance(KEY.clone(), 2**28), OverflowError, r"steps: expected .*2\^28.*, got 268435456"),
    # the schedule (all of its errors: test_schedule.py)
    "betas NaN": (lambda: NoiseSchedule.from_betas([0.1, math.nan]), ValueError, r"betas: .*\(0, 1\], got nan at index 1"),
    "betas too large": (lambda: NoiseSchedule.from_betas([1.5]), ValueError, r"betas: .*\(0, 1\], got 1.5 at index 0"),
    "no steps": (lambda: NoiseSchedule.linear(0), ValueError, "num_timesteps: expected an int of 1 or more, got 0"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


def test_what_is_not_used_is_not_checked():
    """A sample-predicting loss makes no noise, and a v-predicting one needs no x_t."""
    assert loss(prediction_type="sample", noise=None).shape == ()
    with torch.no_grad():
        assert sample(noise=X.clone().requires_grad_()).shape == X.shape
