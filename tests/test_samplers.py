"""Samplers by themselves: OpenAI's ddim_sample, the limits of their formulas, and what they refuse.

diffusers' loops beside them are in test_samplers_diffusers.py, their orders of convergence in test_orders.py.
"""

import math
import pickle

import pytest
import torch
from helpers import values
from sampling_loops import model, walk
from test_golden import GOLDEN, TOLERANCES, close, golden, timesteps_of

from fastddpm import NoiseSchedule, reverse_step, samplers
from fastddpm.samplers import SAMPLERS, Levels
from fastddpm.samplers.levels import levels_of
from fastddpm.spacings import EVEN

SCHEDULE = NoiseSchedule.linear(100)
ZERO_SNR = SCHEDULE.zero_terminal_snr()


# ---- OpenAI's ----


@pytest.mark.parametrize("schedule", ["linear1000", "cosine1000"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_ddim_sample(schedule, prediction_type, clip, eta, dtype):
    """Theirs takes epsilon from the clipped x_0_hat, with one formula for all variances."""
    at = f"{schedule}/t0/{prediction_type}/fixed_small"
    chain = NoiseSchedule.from_betas(GOLDEN[f"betas/{schedule}"])
    rows = samplers.ddim(chain, prediction_type, clip_denoised=bool(clip), eta=eta, use_clipped_model_output=True)
    out, x_t = golden(f"{at}/model_output", dtype), golden(f"{schedule}/t0/x_t", dtype)
    noise = golden("step_noise", dtype) if eta else "none"
    close(reverse_step(out, x_t, timesteps_of(schedule), rows, noise)[0], f"{at}/clip{clip}/ddim_eta{eta}")


# ---- the kernels ----


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_reverse_step_walks_every_sampler(name, prediction_type, dtype, tolerance):
    if name == "plms" and prediction_type != "epsilon":
        pytest.skip("epsilon only")
    rows = SAMPLERS[name](SCHEDULE, prediction_type, steps=10)
    first, noises = values(2, 3, 4, 4, dtype=dtype), values(20, 2, 3, 4, 4, seed=1, dtype=dtype)
    x, history = first, [torch.full_like(first, torch.nan)] * 3
    for n, i in enumerate(range(len(rows) - 1, -1, -1)):
        noise = noises[n] if rows.adds_noise else None
        out = model(x, rows.timesteps[i], 100)
        x, x_0, kept = reverse_step(out, x, i, rows, noise, history=history[: rows.history], return_kept=True)
        history = [kept if rows.keeps else x_0, *history[:2]]
    exact = walked(rows, first.double(), noises)
    assert float((x - exact).abs().max() / exact.abs().max()) <= tolerance


# ---- samplers that are one ----


def same_rows(one, other):
    for name, mine, theirs in zip(one.columns._fields, one.columns, other.columns, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def walked(rows, x, noises):
    return walk(rows, x, noises, lambda x, t: model(x, t, 100))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (samplers.euler, SAMPLERS["dpmpp_1"]),
        (samplers.euler, samplers.ddim),
        (samplers.euler_ancestral, lambda *given, **options: samplers.ddim(*given, eta=1.0, **options)),
        (samplers.euler_ancestral, lambda *given, **options: samplers.dpmpp_sde(*given, order=1, **options)),
        (samplers.euler_ancestral, samplers.ddpm),
    ],
)
def test_first_order_samplers_are_two(one, other, prediction_type):
    x, noises = values(2, 3, dtype=torch.float64), values(10, 2, 3, dtype=torch.float64)
    options = {"steps": 10, "spacing": "trailing", "clip_denoised": False}
    results = [walked(make(SCHEDULE, prediction_type, **options), x, noises) for make in (one, other)]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


def test_the_inversion_is_undone():
    """By DDIM over the same levels, for a network that says the same at both ends of a step."""
    x, epsilon = values(2, 3, dtype=torch.float64), values(2, 3, seed=1, dtype=torch.float64)
    options = {"steps": 7, "clip_denoised": False}
    noise = walk(samplers.ddim_inverse(SCHEDULE, **options), x, None, lambda x, t: epsilon)
    torch.testing.assert_close(walk(samplers.ddim(SCHEDULE, **options), noise, None, lambda x, t: epsilon), x)
    assert samplers.ddim_inverse(SCHEDULE, **options).timesteps.tolist() == [84, 70, 56, 42, 28, 14, 0]


# ---- samplers whose papers go back to an earlier sample ----


@pytest.mark.parametrize(
    ("name", "prediction_type", "level_after", "first"),
    [
        ("unipc_3", "sample", lambda row: row + 1, 0),
        ("heun", "epsilon", lambda row: row // 2 + 1, 0),
        ("plms", "epsilon", lambda row: max(row, 1), 4),
    ],
)
def test_an_edit_between_steps_is_kept(name, prediction_type, level_after, first):
    """Under a network that answers the same to any x, what is added to x shrinks as x itself (PLMS: from the fifth row on)."""
    levels = Levels(torch.arange(10).flip(0), torch.linspace(5, 0.1, 11, dtype=torch.float64))
    scale = (1 + levels.sigmas**2).rsqrt() * (levels.sigmas if prediction_type == "sample" else 1)
    rows = SAMPLERS[name](levels, prediction_type)
    x, answer = values(2, 3, dtype=torch.float64), values(2, 3, seed=1, dtype=torch.float64)
    plain = walk(rows, x, None, lambda x, t: answer)
    for row in range(len(rows)):
        edited = walk(rows, x, None, lambda x, t: answer, edit=lambda n, x, row=row: x + (n == row))
        kept, expected = edited - plain, scale[-1] / scale[level_after(row)]
        if row >= first:
            torch.testing.assert_close(kept, expected.expand_as(kept))
        else:
            assert bool((kept / expected > 0.9).all()) and bool((kept / expected < 1.7).all())


# ---- zero terminal SNR, to which diffusers' DPM-Solver and UniPC come no closer than abar = 2^-24 ----


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("heun", "plms", "ddim_inverse")])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_zero_terminal_snr_is_the_limit(name, steps):
    """Of rows whose first sigma grows; DPM-Solver's and UniPC's come closer as 1 / log sigma, half as far at its square."""

    def rows(sigma):
        given = Levels(torch.arange(steps).flip(0), torch.tensor([sigma, *range(steps, 0, -1)], dtype=torch.float64) / 2)
        return SAMPLERS[name](given, "v_prediction")

    if name == "ddpm":
        pytest.skip("walks a schedule only")
    x, noises = values(2, 3, dtype=torch.float64), values(10, 2, 3, dtype=torch.float64)
    exact, near, nearer = (walked(rows(sigma), x, noises) for sigma in (math.inf, 1e150, 1e300))
    assert exact.isfinite().all()
    torch.testing.assert_close(2 * nearer - near, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_zero_terminal_snr_in_a_loop(name, steps, prediction_type):
    if name in ("heun", "plms") or (name, prediction_type) == ("ddim_inverse", "sample") or (name == "lcm" and steps > 50):
        pytest.skip("refused")
    rows = SAMPLERS[name](ZERO_SNR, prediction_type, steps=steps, spacing="lcm" if name == "lcm" else "trailing")
    result = walked(rows, values(2, 3, dtype=torch.float64), values(100, 2, 3, dtype=torch.float64))
    assert result.isfinite().all() and result.abs().max() < 10
    assert rows.timesteps[0 if name == "ddim_inverse" else -1] == 99


# ---- what rows say of themselves ----


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_ends_where_it_is_told(name):
    """At x_0_hat, but for the multistep methods that extrapolate there, and PLMS, which stops at the first level."""
    rows = SAMPLERS[name](SCHEDULE, steps=10)
    k = rows.columns
    if name not in ("ddim_inverse", "plms", "lms", "lcm"):
        assert [float(column[0]) for column in (k.k_x, k.k_0, k.k_o, k.k_h1, k.k_h2, k.k_h3)] == [0, 1, 0, 0, 0, 0]
    assert k.sigma[0] == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_first_rows_read_no_history(name):
    k = SAMPLERS[name](SCHEDULE, steps=10).columns
    assert not any(column[-n:].any() for n, column in enumerate((k.k_h1, k.k_h2, k.k_h3), 1))


def test_all_timesteps_are_walked_where_none_are_named():
    for name, make in SAMPLERS.items():
        rows = make(SCHEDULE)
        expected = {"heun": 199, "plms": 101}.get(name, 100)
        assert len(rows) == expected and set(rows.timesteps.tolist()) == set(range(100)), name


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
def test_a_short_schedule(name, total):
    for spacing in ("trailing",) if name == "ddpm" else ("trailing", "karras"):
        for steps in (None, 1, total):
            columns = SAMPLERS[name](NoiseSchedule.linear(total, 0.3, 0.4), steps=steps, spacing=spacing).columns
            assert all(column.isfinite().all() for column in columns._replace(bound=columns.sigma))


@pytest.mark.parametrize("name", SAMPLERS)
def test_none_is_a_sampler_s_own_default(name):
    """Whether it clips, as docs/samplers.md says, and how it spaces."""
    rows, plain = SAMPLERS[name](SCHEDULE, steps=10, clip_denoised=None, spacing=None), SAMPLERS[name](SCHEDULE, steps=10)
    assert bool(rows.columns.bound.isfinite().all()) == (name in ("ddpm", "ddim", "ddim_inverse"))
    assert torch.equal(rows.timesteps, plain.timesteps) and all(map(torch.equal, rows.columns, plain.columns))


def test_fractional_timesteps_only_where_there_are_some():
    assert samplers.euler(SCHEDULE, steps=10).timesteps.dtype == torch.int64  # 99 / 9 is 11
    assert samplers.euler(SCHEDULE, steps=9).timesteps.dtype == torch.float32
    assert samplers.dpmpp(SCHEDULE, steps=9, spacing="karras").timesteps.dtype == torch.int64


def test_a_respaced_schedule_gives_the_network_its_own_timesteps():
    chain = SCHEDULE.respace(10, "trailing")
    assert samplers.ddim(chain, steps=5, spacing="trailing").timesteps.tolist() == [19, 39, 59, 79, 99]
    assert samplers.euler(chain, steps=[8.5, 1.25]).timesteps.tolist() == [21.5, 94.0]


def test_a_learned_variance_is_left_alone():
    rows = samplers.ddim(SCHEDULE, variance_type="learned_range", steps=5)
    x = values(2, 3, 4, 4)
    both = torch.cat((x / 2, values(2, 3, 4, 4, seed=1)), 1)
    plain = reverse_step(x / 2, x, 3, samplers.ddim(SCHEDULE, steps=5))[0]
    assert torch.equal(reverse_step(both, x, 3, rows)[0], plain)


# ---- what is refused ----

REFUSED = {
    "no schedule": (lambda: samplers.ddim(100), TypeError, "schedule: expected a NoiseSchedule, .*got int"),
    "no schedule for ddpm": (lambda: samplers.ddpm(None), TypeError, "schedule: expected a NoiseSchedule, got NoneType"),
    "prediction": (lambda: samplers.euler(SCHEDULE, "previous"), ValueError, "prediction_type: expected one of .*'previous'"),
    "plms of v": (lambda: samplers.plms(SCHEDULE, "v_prediction"), ValueError, "prediction_type: expected one of 'epsilon'"),
    "steps 0": (lambda: samplers.ddim(SCHEDULE, steps=0), ValueError, r"steps: expected 1 \.\. 100, got 0"),
    "steps T + 1": (lambda: samplers.ddpm(SCHEDULE, steps=101), ValueError, r"steps: expected 1 \.\. 100, got 101"),
    "steps half": (lambda: samplers.ddim(SCHEDULE, steps=2.5), TypeError, "steps: expected an int or a list of ints"),
    "steps True": (lambda: samplers.ddim(SCHEDULE, steps=True), TypeError, "steps: expected an int or a list .*True"),
    "steps twice": (lambda: samplers.dpmpp(SCHEDULE, steps=100), ValueError, "steps: expected fewer for spacing 'linspace'"),
    "list rises": (lambda: samplers.ddim(SCHEDULE, steps=[1, 2]), ValueError, r"steps: expected ints that fall, .*\[1, 2\]"),
    "list too far": (lambda: samplers.heun(SCHEDULE, steps=[100, 2]), ValueError, r"steps: .*among 0 \.\. 99, got \[100, 2\]"),
    "list below": (lambda: samplers.ddim(SCHEDULE, steps=[3, -1]), ValueError, r"steps: expected ints that fall"),
    "empty list": (lambda: samplers.ddim(SCHEDULE, steps=[]), TypeError, "steps: expected an int or a list of ints"),
    "fractions": (lambda: samplers.ddim(SCHEDULE, steps=[9.5, 1.0]), TypeError, "steps: expected .* ints, got float32"),
    "spacing": (lambda: samplers.ddim(SCHEDULE, spacing="even"), ValueError, "spacing: expected one of .*got 'even'"),
    "spacing of ddpm": (
        lambda: samplers.ddpm(SCHEDULE, steps=5, spacing="even"),
        ValueError,
        "spacing: expected one of .*got 'even'",
    ),
    "offset": (lambda: samplers.ddim(SCHEDULE, steps=100, steps_offset=1), ValueError, "steps_offset: .*got 1"),
    "final": (lambda: samplers.euler(SCHEDULE, final_sigmas_type="one"), ValueError, "final_sigmas_type: .*got 'one'"),
    "eta": (lambda: samplers.ddim(SCHEDULE, eta=1.5), ValueError, r"eta: expected 0 \.\. 1, got 1.5"),
    "eta of a kind": (lambda: samplers.ddim(SCHEDULE, eta="a"), ValueError, r"eta: expected 0 \.\. 1, got 'a'"),
    "eta NaN": (lambda: samplers.ddim(SCHEDULE, eta=math.nan), ValueError, r"eta: expected 0 \.\. 1, got nan"),
    "order of dpmpp": (lambda: samplers.dpmpp(SCHEDULE, order=4), ValueError, "order: expected one of 1, 2, 3, got 4"),
    "order of the SDE": (lambda: samplers.dpmpp_sde(SCHEDULE, order=3), ValueError, "order: expected one of 1, 2, got 3"),
    "order of unipc": (lambda: samplers.unipc(SCHEDULE, order=0), ValueError, "order: expected one of 1, 2, 3, got 0"),
    "order of lms": (lambda: samplers.lms(SCHEDULE, order=5), ValueError, "order: expected one of 1, 2, 3, 4, got 5"),
    "order of a kind": (lambda: samplers.unipc(SCHEDULE, order=2.0), TypeError, "order: expected an int, got float"),
    "offset of a kind": (
        lambda: samplers.ddim(SCHEDULE, steps=5, steps_offset=0.5),
        TypeError,
        "steps_offset: expected an int",
    ),
    "unknown option": (lambda: samplers.euler(SCHEDULE, eta=1.0), TypeError, "unexpected keyword argument 'eta'"),
    "clip": (lambda: samplers.euler(SCHEDULE, clip_denoised=1), TypeError, "clip_denoised: expected True or False, got 1"),
    "clip range": (lambda: samplers.euler(SCHEDULE, clip_range=-1), ValueError, "clip_range: expected a value above 0, got -1"),
    "clip range of a kind": (lambda: samplers.euler(SCHEDULE, clip_range="1"), ValueError, "clip_range: .*above 0, got '1'"),
    "no type": (lambda: samplers.euler(SCHEDULE, ""), ValueError, "prediction_type: expected one of .*, got ''"),
    "epsilon at zero SNR": (lambda: samplers.ddim(ZERO_SNR), ValueError, "prediction_type: .*zero terminal SNR, got 'epsilon'"),
    "epsilon at infinity": (
        lambda: samplers.ddim(Levels(torch.tensor([1]), torch.tensor([math.inf, 0], dtype=torch.float64))),
        ValueError,
        "prediction_type: .*sigma is infinite",
    ),
    "heun at zero SNR": (lambda: samplers.heun(ZERO_SNR, "sample"), ValueError, "schedule: .*above 0 for heun"),
    "karras at zero SNR": (lambda: samplers.euler(ZERO_SNR, "sample", spacing="karras"), ValueError, "spacing: .*got 'karras'"),
    "inversion of x_0": (lambda: samplers.ddim_inverse(SCHEDULE, "sample"), ValueError, "prediction_type: .*got 'sample'"),
    "karras of a list": (
        lambda: samplers.euler(SCHEDULE, steps=[9, 1], spacing="karras"),
        TypeError,
        "steps: expected an int for spacing 'karras', got list",
    ),
    "lcm beyond": (lambda: samplers.lcm(SCHEDULE, steps=51), ValueError, r"steps: expected 1 \.\. 50 .*got 51"),
    "original steps": (
        lambda: samplers.lcm_timesteps(10, 4),
        ValueError,
        r"original_inference_steps: expected 1 \.\. 10, got 50",
    ),
    "levels of a list": (
        lambda: samplers.euler(Levels([1], [1.0, 0.0])),
        TypeError,
        "timesteps: expected int64 or .*, got list",
    ),
    "levels that rise": (
        lambda: samplers.euler(Levels(torch.arange(2), torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))),
        ValueError,
        "sigmas: expected values that fall",
    ),
    "levels that stay": (
        lambda: samplers.euler(Levels(torch.arange(3), torch.tensor([2.0, 2.0, 1.0, 0.0], dtype=torch.float64))),
        ValueError,
        "sigmas: expected values that fall",
    ),
    "levels of float32": (
        lambda: samplers.euler(Levels(torch.arange(2), torch.tensor([2.0, 1.0, 0.0]))),
        ValueError,
        "sigmas: expected float64",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("timesteps", [100, 1000, 4000])
@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc_2", "plms"])
def test_karras_levels_end_at_the_schedule_s_own(name, timesteps):
    """The seventh power of a seventh root may lie some ulps beside it, and below the level where the last step ends."""
    schedule = NoiseSchedule.linear(timesteps)
    sigmas = levels_of(schedule, 10, "karras", 0, "sigma_min", EVEN, fractional=False).sigmas
    assert torch.equal(sigmas[[-1, -2, 0]], schedule.snr.rsqrt()[[0, 0, -1]])
    SAMPLERS[name](schedule, steps=10, spacing="karras", final_sigmas_type="sigma_min")  # takes them


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_pickled_by_its_name(name):
    again = pickle.loads(pickle.dumps(SAMPLERS[name]))
    assert getattr(again, "func", again) is getattr(SAMPLERS[name], "func", SAMPLERS[name])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_default_device_does_not_move_the_rows(name):
    with torch.device("meta"):
        rows = SAMPLERS[name](SCHEDULE, steps=5)
    assert torch.equal(rows.columns.k_0, SAMPLERS[name](SCHEDULE, steps=5).columns.k_0)
