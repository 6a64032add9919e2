"""NoiseSchedule: every formula against an independent statement of it (mpmath, numpy), and every error."""

import math

import mpmath
import numpy as np
import pytest
import torch
from schedules import SCHEDULES, T, close

from fastddpm import GaussianDiffusion, NoiseSchedule, samplers


def exact_tables(betas):
    """abar, beta~ and the two coefficients of mu~ in 40 digits, as math.md writes them."""
    mpmath.mp.dps = 40
    abar, before, tables = mpmath.mpf(1), None, []
    for beta in map(mpmath.mpf, betas):
        before, abar = abar, abar * (1 - beta)
        left = 1 - abar
        mean_x_0, mean_x_t = mpmath.sqrt(before) * beta / left, mpmath.sqrt(1 - beta) * (1 - before) / left
        tables.append((abar, (1 - before) / left * beta, mean_x_0, mean_x_t))
    return [np.array([float(x) for x in column]) for column in zip(*tables, strict=True)]


# ---- betas ----


def test_linear_betas():
    close(NoiseSchedule.linear(T).betas, np.linspace(1e-4, 0.02, T))
    close(NoiseSchedule.linear(7, 0.1, 0.4).betas, np.linspace(0.1, 0.4, 7))


def test_scaled_linear_betas():
    close(NoiseSchedule.scaled_linear(T).betas, np.linspace(0.00085**0.5, 0.012**0.5, T) ** 2)


def test_cosine_betas():
    mpmath.mp.dps = 40
    f = [
        mpmath.cos((mpmath.mpf(t) / T + mpmath.mpf(0.008)) / (1 + mpmath.mpf(0.008)) * mpmath.pi / 2) ** 2 for t in range(T + 1)
    ]
    betas = [float(min(1 - f[t] / f[t - 1], mpmath.mpf(0.999))) for t in range(1, T + 1)]
    close(NoiseSchedule.cosine(T).betas, betas, 1e-10)
    assert float(NoiseSchedule.cosine(T).betas[-1]) == 0.999


def test_sigmoid_betas():
    """Jabri et al. 2022 write abar; lucidrains' code takes its ratios."""

    def logistic(x):
        return 1 / (1 + np.exp(-x))

    u = np.linspace(0, 1, T + 1)
    g = (logistic(3) - logistic(u * 6 - 3)) / (logistic(3) - logistic(-3))
    betas = np.minimum(1 - g[1:] / g[:-1], 0.999)
    close(NoiseSchedule.sigmoid(T).betas, betas, 1e-9)


def test_sigmoid_takes_its_ends_and_temperature():
    tau = NoiseSchedule.sigmoid(50, start=0.0, end=3.0, tau=0.7)

    def g(u):
        return 1 / (1 + math.exp(-3 / 0.7)) - 1 / (1 + math.exp(-3 * u / 0.7))

    close(tau.alphas_cumprod[:40], [g(t / 50) / g(0) for t in range(1, 41)], 1e-9)


# ---- tables ----


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_in_forty_digits(name):
    schedule = SCHEDULES[name]()
    abar, variance, mean_x_0, mean_x_t = exact_tables(schedule.betas.tolist())
    close(schedule.alphas_cumprod, abar, 1e-11)
    close(schedule.alphas_cumprod_prev, [1, *abar[:-1]], 1e-11)
    close(schedule.alphas, 1 - schedule.betas.numpy())
    close(schedule.posterior_variance, variance, 1e-10)
    close(schedule.posterior_mean_x_0, mean_x_0, 1e-10)
    close(schedule.posterior_mean_x_t, mean_x_t, 1e-10)
    close(schedule.snr, abar / (1 - abar), 1e-10)
    assert all(x.dtype == torch.float64 for x in (schedule.betas, schedule.alphas_cumprod, schedule.posterior_variance))


def test_published_figures_of_the_linear_schedule():
    schedule = NoiseSchedule.linear(T)
    close(schedule.alphas_cumprod[-1], 4.035829765e-5, 1e-9)
    close(schedule.posterior_variance[1], 5.45318766e-5, 1e-8)
    abar = schedule.alphas_cumprod[-1]
    assert abs(float(0.5 * (-abar - torch.log1p(-abar))) - 4.07e-10) < 1e-12


def test_variances():
    schedule = NoiseSchedule.linear(T)
    small, large = schedule.variance("fixed_small"), schedule.variance("fixed_large")
    assert float(small[0]) == 0 and torch.equal(small, schedule.posterior_variance)
    assert float(large[0]) == float(small[1]) and torch.equal(large[1:], schedule.betas[1:])
    assert float(NoiseSchedule.linear(1, 0.3, 0.3).variance("fixed_large")) == 0.3


GIVEN = {"list": list, "tuple": tuple, "array": np.array, "tensor": lambda x: torch.tensor(x, dtype=torch.float64)}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_from_betas_keeps_float64(given):
    betas = np.linspace(1e-4, 0.02, 100).tolist()
    assert NoiseSchedule.from_betas(given(betas)).betas.tolist() == betas
    abar = np.cumprod(1 - np.array(betas)).tolist()
    assert NoiseSchedule.from_alphas_cumprod(given(abar)).alphas_cumprod.tolist() == abar


def test_a_schedule_does_not_follow_the_tensor_it_was_made_from():
    betas = torch.linspace(1e-4, 0.02, 10, dtype=torch.float64, requires_grad=True)
    schedule = NoiseSchedule.from_betas(betas)
    assert not schedule.betas.requires_grad
    with torch.no_grad():
        betas.fill_(0.5)
    assert float(schedule.betas[0]) == 1e-4


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_from_alphas_cumprod_finds_the_betas(name):
    schedule = SCHEDULES[name]()
    again = NoiseSchedule.from_alphas_cumprod(schedule.alphas_cumprod)
    close(again.betas, schedule.betas, 1e-9)
    assert torch.equal(again.alphas_cumprod, schedule.alphas_cumprod)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_a_zero_terminal_snr_ends_in_noise_and_stays_finite(name):
    ours = SCHEDULES[name]()
    zero = ours.zero_terminal_snr()
    assert float(zero.alphas_cumprod[-1]) == 0 and zero.has_zero_terminal_snr and not ours.has_zero_terminal_snr
    close(zero.alphas_cumprod[0], ours.alphas_cumprod[0])
    assert torch.equal(zero.timesteps, ours.timesteps) and float(zero.betas[-1]) == 1
    for table in (zero.posterior_variance, zero.posterior_mean_x_0, zero.posterior_mean_x_t, zero.snr):
        assert bool(table.isfinite().all())


# ---- respacing ----


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_respaced_chain_has_the_levels_of_its_steps(spacing):
    whole = NoiseSchedule.cosine(T)
    short = whole.respace(37, spacing)
    abar = whole.alphas_cumprod[short.timesteps]
    assert torch.equal(short.alphas_cumprod, abar) and len(short) == 37 and short.is_respaced
    close(short.betas, 1 - abar / torch.cat((torch.ones(1, dtype=torch.float64), abar[:-1])))
    _, variance, mean_x_0, mean_x_t = exact_tables(short.betas.tolist())
    close(short.posterior_variance, variance, 1e-9)
    close(short.posterior_mean_x_0, mean_x_0, 1e-9)
    close(short.posterior_mean_x_t, mean_x_t, 1e-9)


def test_trailing_is_the_default_and_ends_on_the_last_step():
    schedule = NoiseSchedule.linear(T)
    assert torch.equal(schedule.respace(10).timesteps, schedule.respace(10, "trailing").timesteps)
    assert int(schedule.respace(1).timesteps) == T - 1


def test_all_steps_are_the_chain_itself():
    schedule = NoiseSchedule.linear(T)
    same = schedule.respace(T)
    assert not same.is_respaced and torch.equal(same.alphas_cumprod, schedule.alphas_cumprod)
    close(same.betas, schedule.betas, 1e-10)


def test_respacing_nests():
    """The timesteps are always those the network was trained on."""
    twice = NoiseSchedule.linear(T).respace(100, "leading").respace([0, 10, 99])
    assert twice.timesteps.tolist() == [0, 100, 990]
    close(twice.alphas_cumprod, NoiseSchedule.linear(T).alphas_cumprod[[0, 100, 990]])
    zero = NoiseSchedule.linear(T).respace(10).zero_terminal_snr()
    assert zero.timesteps.tolist() == NoiseSchedule.linear(T).respace(10).timesteps.tolist()


# ---- weights ----


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights(gamma):
    schedule = NoiseSchedule.cosine(T)
    snr = (schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)).numpy()
    least = np.minimum(snr, gamma)
    close(schedule.min_snr_weights("sample", gamma), least)
    close(schedule.min_snr_weights("epsilon", gamma), least / snr)
    close(schedule.min_snr_weights("v_prediction", gamma), least / (snr + 1))


def test_min_snr_weights_at_zero_terminal_snr():
    zero = NoiseSchedule.linear(T).zero_terminal_snr()
    for prediction_type in ("sample", "v_prediction"):
        weights = zero.min_snr_weights(prediction_type)
        assert bool(weights.isfinite().all()) and float(weights[-1]) == 0


# ---- errors ----


@pytest.mark.parametrize("make", ["linear", "scaled_linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("num_timesteps", [0, -1, 2.5])
def test_no_steps_is_an_error(make, num_timesteps):
    with pytest.raises(ValueError, match=rf"num_timesteps: expected an int of 1 or more, got {num_timesteps}"):
        getattr(NoiseSchedule, make)(num_timesteps)


@pytest.mark.parametrize(
    ("betas", "got"),
    [
        ([0.1, math.nan, 0.2], "got nan at index 1"),
        ([0.1, 0.0], r"got 0.0 at index 1"),
        ([-0.1, 0.1], r"got -0.1.* at index 0"),
        ([0.1, 0.2, 1.5], r"got 1.5 at index 2"),
        ([math.inf], "got inf at index 0"),
        ([0.1, 1.0, 0.5], "got 1.0 at index 1"),
    ],
)
def test_betas_out_of_range_are_an_error(betas, got):
    with pytest.raises(ValueError, match=rf"betas: expected values in \(0, 1\), the last in \(0, 1\], {got}"):
        NoiseSchedule.from_betas(betas)


def test_betas_that_leave_nothing_before_the_last_step_are_an_error():
    with pytest.raises(ValueError, match=r"the product of 1 - betas: expected values above 0 .*, got 0.0 at index 1\d\d"):
        NoiseSchedule.from_betas([0.999] * 200)


@pytest.mark.parametrize("betas", [[], [[0.1, 0.2]], 0.1])
def test_betas_of_another_shape_are_an_error(betas):
    with pytest.raises(ValueError, match=r"betas: expected one dimension and one value or more, got shape \["):
        NoiseSchedule.from_betas(betas)


@pytest.mark.parametrize(
    ("abar", "message"),
    [
        ([0.9, 0.9], "strictly decreasing, got 0.9 at index 1"),
        ([0.5, 0.6], "strictly decreasing, got 0.6.* at index 1"),
        ([1.0, 0.5], r"in \(0, 1\), the last in \[0, 1\), got 1.0 at index 0"),
        ([0.5, 0.0, 0.0], "got 0.0 at index 1"),
        ([0.5, -0.1], "got -0.1.* at index 1"),
        ([0.5, math.nan], "got nan at index 1"),
    ],
)
def test_levels_out_of_order_are_an_error(abar, message):
    with pytest.raises(ValueError, match=rf"alphas_cumprod: expected values .*{message}"):
        NoiseSchedule.from_alphas_cumprod(abar)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_an_error(steps):
    with pytest.raises(ValueError, match=rf"steps: expected 1 .. 1000, got {steps}"):
        NoiseSchedule.linear(T).respace(steps)


@pytest.mark.parametrize("steps", [[3, 3], [5, 2, 9], [-1, 4], [4, 1000], [0, 5, 3]])
def test_a_list_out_of_order_is_an_error(steps):
    with pytest.raises(ValueError, match=r"steps: expected different indices 0 .. 999 in order, got \["):
        NoiseSchedule.linear(T).respace(steps)


@pytest.mark.parametrize("steps", [[], [1.5, 2.5], [[1, 2]], [True, False]])
def test_a_list_of_something_else_is_an_error(steps):
    with pytest.raises(ValueError, match=r"steps: expected an int or a list of ints, got "):
        NoiseSchedule.linear(T).respace(steps)


def test_unknown_names_are_errors():
    schedule = NoiseSchedule.linear(T)
    with pytest.raises(ValueError, match="spacing: expected one of 'leading', 'trailing', 'linspace', got 'even'"):
        schedule.respace(10, "even")
    with pytest.raises(ValueError, match="variance_type: expected one of 'fixed_small', 'fixed_large', got 'learned'"):
        schedule.variance("learned")
    with pytest.raises(ValueError, match=r"prediction_type: expected one of 'epsilon', .*, got 'eps'"):
        schedule.check_prediction("eps")
    with pytest.raises(ValueError, match=r"prediction_type: expected one of .*, got 'previous'"):
        schedule.min_snr_weights("previous")
    with pytest.raises(ValueError, match="gamma: expected a value above 0, got 0"):
        schedule.min_snr_weights("epsilon", 0)


def test_ends_out_of_range_are_errors():
    with pytest.raises(ValueError, match="beta_start: expected a value above 0, got -1"):
        NoiseSchedule.scaled_linear(10, -1)
    with pytest.raises(ValueError, match="beta_end: expected a value above 0, got nan"):
        NoiseSchedule.scaled_linear(10, 0.1, math.nan)
    with pytest.raises(ValueError, match=r"betas: expected values in \(0, 1\), the last in \(0, 1\], got 1.15.* at index 5"):
        NoiseSchedule.linear(10, 0.1, 2.0)


def test_a_sigmoid_that_is_none_is_refused():
    with pytest.raises(ValueError, match="tau: expected a value above 0, got 0"):
        NoiseSchedule.sigmoid(10, tau=0)
    for start, end in ((1, 1), (40, 80)):
        with pytest.raises(ValueError, match=f"start, end: expected a sigmoid that rises .*, got {start} and {end}"):
            NoiseSchedule.sigmoid(10, start, end)
    with pytest.raises(ValueError, match="num_timesteps: expected an int of 1 or more, got True"):
        NoiseSchedule.linear(True)


def test_a_sigmoid_that_begins_far_off():
    assert 0 < NoiseSchedule.sigmoid(10, -30, 3).betas[0] < NoiseSchedule.sigmoid(10, -3, 3).betas[0]
    with pytest.raises(ValueError, match=r"betas: expected values in \(0, 1\), .*got 0.0 at index 0"):
        NoiseSchedule.sigmoid(10, -1e4, 3)


def test_zero_terminal_snr_refuses_epsilon():
    zero = NoiseSchedule.linear(T).zero_terminal_snr()
    message = "prediction_type: expected 'v_prediction' or 'sample' on a schedule of zero terminal SNR, got 'epsilon'"
    for refused in (
        lambda: zero.check_prediction("epsilon"),
        lambda: zero.min_snr_weights("epsilon"),
        lambda: samplers.ddpm(zero, "epsilon"),
        lambda: GaussianDiffusion(zero),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert len(GaussianDiffusion(zero, "v_prediction").schedule) == T


def test_zero_terminal_snr_needs_two_steps():
    with pytest.raises(ValueError, match="zero_terminal_snr: expected a schedule of 2 steps or more, got 1"):
        NoiseSchedule.linear(1, 0.1, 0.1).zero_terminal_snr()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_chain_is_respaced_as_a_samplers_steps_are(spacing):
    """By numpy's rounding, of which halves are a matter."""
    chain = NoiseSchedule.linear(1000)
    for steps in (*range(1, 130), 500, 501, 999, 1000):
        respaced = chain.respace(steps, spacing).timesteps
        assert torch.equal(respaced, samplers.ddpm(chain, steps=steps, spacing=spacing).timesteps)
        if spacing == "linspace":
            assert respaced.tolist() == np.linspace(0, 999, steps).round().tolist()


def test_a_default_device_does_not_move_the_tables():
    with torch.device("meta"):
        schedule = NoiseSchedule.cosine(20).zero_terminal_snr().respace(10).respace(5, "leading").respace([0, 2, 4])
        assert schedule.betas.device.type == schedule.timesteps.device.type == "cpu"
        assert schedule.indices_on(torch.device("cpu")).device.type == "cpu"


@pytest.mark.parametrize("make", [lambda chain: chain, samplers.ddpm], ids=["schedule", "rows"])
def test_the_step_at_each_timestep(make):
    chain = make(NoiseSchedule.linear(T).respace(10))
    assert [chain.step_at(int(t)) for t in chain.timesteps] == list(range(10))
    assert chain.step_at(chain.timesteps[3]) == 3 and make(NoiseSchedule.linear(T)).step_at(7) == 7


def test_the_step_at_a_timestep_between_whole_ones():
    rows = samplers.euler(NoiseSchedule.linear(T), steps=7, spacing="karras")
    fractions = [t for t in rows.timesteps.tolist() if t % 1]
    assert fractions and [rows.timesteps[rows.step_at(t)] for t in fractions] == fractions
