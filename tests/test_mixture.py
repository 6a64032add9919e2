"""Two modes in the plane, whose best network is known: samplers converge to its paths, and each process learns the same."""

import math
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the suite is no part of the package

from benchmarks import mixture, plots
from fastddpm import GaussianDiffusion, samplers

CASES = mixture.CASES
X_T = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def runge_kutta(slope, x, levels):
    """The classical one of order 4, over levels that fall."""
    for level, after in pairwise(levels):
        h, middle = after - level, (level + after) / 2
        one = slope(x, level)
        two = slope(x + h / 2 * one, middle)
        three = slope(x + h / 2 * two, middle)
        x = x + h / 6 * (one + 2 * two + 2 * three + slope(x + h * three, after))
    return x


def flow_slope(x, s):
    x_0, z = mixture.best(x, 1 - s, s)
    return z - x_0


def edm_slope(y, sigma):
    return mixture.best(y, torch.ones_like(sigma), sigma)[1]


@cache
def end_of(name):
    """Of the exact paths from X_T: of EDM to the least sigma, and from there in one step to E[x_0 | y], as the samplers go."""
    if name == "flow":
        return runge_kutta(flow_slope, X_T, torch.linspace(1, 0, 401, dtype=torch.float64))
    sigmas = mixture.EDM.walk(400)[1][:-1]
    y = runge_kutta(edm_slope, X_T / mixture.EDM.levels_at(sigmas[0])[0], sigmas)
    return mixture.best(y, torch.ones(()), sigmas[-1])[0]


@pytest.mark.parametrize(
    ("name", "sampler", "order"),
    [("flow", "euler", 1), ("flow", "heun", 2), ("edm", "euler", 1), ("edm", "heun", 2), ("edm", "dpmpp", 2)],
)
def test_order_of_convergence(name, sampler, order):
    """Of the median: a path that begins between the modes may end at either."""
    case, errors = CASES[name], []
    for steps in (100, 200):
        spacing = "trailing" if name == "flow" else None
        options = {"lower_order_final": False} if sampler == "dpmpp" else {}
        rows = getattr(samplers, sampler)(case.process, steps=steps, spacing=spacing, **options)
        x = GaussianDiffusion(case.process).sample(case.exact, X_T.shape, rows, x_T=X_T, dtype=torch.float64, progress=False)
        errors.append(float((x - end_of(name)).abs().median()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(mixture, "SAMPLES", 1024)


def test_the_distance_tells_what_is_wide_or_shared_otherwise(few):
    x = mixture.data(1024, 0)
    moved = torch.cat((mixture.MEANS[:1].expand(100, 2), x[100:]))
    assert abs(mixture.distance(x)) < 4e-3 < min(mixture.distance(1.1 * x), mixture.distance(moved))


@pytest.mark.parametrize("name", CASES)
def test_the_best_network_draws_the_data(name, few):
    assert abs(mixture.distance(CASES[name].drawn(CASES[name].exact, 0))) < 4e-3


@pytest.mark.parametrize("name", CASES)
def test_a_network_learns_the_data(name, few):
    first, last = (mixture.distance(x) for x in mixture.train(CASES[name], 0, (0, 250)))
    assert last < 0.15 < 0.2 < first


def test_the_table_and_the_plot_have_every_process(tmp_path, monkeypatch):
    for name, value in {"MARKS": (0, 1, 2, 3, 4), "SEEDS": 2, "SAMPLES": 64}.items():
        monkeypatch.setattr(mixture, name, value)
    monkeypatch.setattr(mixture, "train", lambda case, seed: [mixture.data(64, seed + n) for n in mixture.MARKS])
    measured = mixture.measure()
    rows = mixture.fill("<!-- mixture: distances --><!-- /mixture -->", measured).splitlines()
    assert all(any(row.startswith(f"| {case.title} | ") for row in rows) for case in CASES.values())
    figure = mixture.draw(measured)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [case.title for case in CASES.values()]
    assert {path.suffix for path in plots.write(figure, tmp_path / "mixture") if path.stat().st_size > 1000} == {".png", ".svg"}


@pytest.mark.slow
def test_each_process_ends_at_the_distance_of_the_data_s_own_draws():
    """Of which the best of 16 seeds and the worst are that far apart."""
    floor = [mixture.distance(mixture.data(mixture.SAMPLES, seed)) for seed in range(16)]
    for case in CASES.values():
        assert min(floor) < mixture.distance(mixture.train(case, 0, (mixture.MARKS[-1],))[0]) < max(floor)
