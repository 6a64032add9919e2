"""numpy's integers are integers, as t, step, seed, T and wherever an int is taken; and what a schedule keeps alive."""

import gc
import weakref

import numpy as np
import pytest
import torch
from helpers import values

from fastddpm import (
    GaussianDiffusion,
    LossSecondMoment,
    NoiseSchedule,
    advance,
    mse_loss,
    noise_key,
    q_sample,
    randn,
    reverse_step,
    samplers,
    timesteps,
)

SCHEDULE = NoiseSchedule.linear(100)


def moved(steps):
    return advance(noise_key(1, 2, 3), steps)


CALLS = {
    "seed": (lambda n: noise_key(n, 2, 3), 7),
    "step": (lambda n: noise_key(7, n, 3), 2),
    "batch_size": (lambda n: noise_key(7, 2, n), 3),
    "first_sample": (lambda n: noise_key(7, 2, 3, n), 4),
    "stream": (lambda n: noise_key(7, 2, 3, stream=n), 2),
    "steps of advance": (moved, 5),
    "num_timesteps": (lambda n: timesteps(noise_key(1, 2, 3), n), 100),
    "shape": (lambda n: randn(noise_key(1, 2, 3), (n, 5)), 3),
    "t": (lambda n: q_sample(values(3, 5), n, SCHEDULE, noise_key(1, 2, 3)), 50),
    "t of a loss": (lambda n: mse_loss(values(3, 5), n, SCHEDULE, noise_key(1, 2, 3)), 50),
    "i": (lambda n: reverse_step(values(3, 5), values(3, 5), n, samplers.ddpm(SCHEDULE), "none")[0], 50),
    "T": (lambda n: NoiseSchedule.linear(n).betas, 10),
    "T of a curve": (lambda n: NoiseSchedule.cosine(n).betas, 10),
    "steps": (lambda n: SCHEDULE.respace(n).betas, 10),
    "history": (lambda n: LossSecondMoment(10, n).probabilities, 3),
    "steps of sample": (
        lambda n: GaussianDiffusion(SCHEDULE).sample(lambda x, t: x, (2, 3), steps=n, seed=n, progress=False),
        3,
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpys_integers_are_integers(name, kind):
    call, value = CALLS[name]
    assert torch.equal(call(kind(value)), call(value))


@pytest.mark.parametrize("name", ["seed", "step", "t", "i", "num_timesteps"])
@pytest.mark.parametrize("value", [True, np.bool_(True), 2.0, np.float64(2.0), "2"])
def test_what_is_no_integer_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=f"{name}: expected an? .*int.*, got {type(value).__name__}"):
        CALLS[name][0](value)


def test_a_schedule_that_is_dropped_is_gone():
    """With its tables, at once: on a GPU they would wait for a collection."""
    gc.disable()
    try:
        schedule = NoiseSchedule.linear(100)
        rows = samplers.ddpm(schedule)
        q_sample(values(3, 5), 5, schedule, noise_key(1, 2, 3))
        table = schedule.indices_on(torch.device("cpu"))
        kept = [weakref.ref(x) for x in (schedule, rows, table, rows.on(torch.device("cpu"), torch.float32))]
        del schedule, rows, table
        assert not any(ref() is not None for ref in kept)
    finally:
        gc.enable()
