"""Densities of t: the answers that docs/noise.md promises, the published formulas, and that what is drawn has them."""

import copy
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import same_bits, values
from scipy import stats
from test_no_host_reads import UPLOADS, NoHostReads

from fastddpm import GaussianDiffusion, LossSecondMoment, NoiseSchedule, densities, levels, noise_key, q_sample, timesteps
from fastddpm.densities import CosMap, Discrete, LogitNormal, LogNormal, Mode

CPU = torch.device("cpu")
CHAIN = NoiseSchedule.linear(1000)
OF_TIME = {
    "logit-normal": LogitNormal(),
    "logit-normal, moved": LogitNormal(-0.5, 0.7),
    "mode": Mode(),
    "mode, to the ends": Mode(-0.8),
    "mode, most": Mode(Mode.MOST),
    "mode, least": Mode(Mode.LEAST),
    "cosmap": CosMap(),
}
OF_T = OF_TIME | {
    "sigma": LogNormal().at(CHAIN.snr[:100].rsqrt()),
    "table": Discrete([0.0, 3.0, *range(98)]),
}
"""With 100 timesteps."""


def published(density, t):
    """Esser et al. 2024: equation 19, the derivative of the inverse of 20, and 21."""
    if isinstance(density, LogitNormal):
        logit = np.log(t / (1 - t))
        peak = np.exp(-((logit - density.mean) ** 2) / (2 * density.std**2))
        return peak / (density.std * np.sqrt(2 * np.pi) * t * (1 - t))
    if isinstance(density, CosMap):
        return 2 / (np.pi - 2 * np.pi * t + 2 * np.pi * t**2)
    u = np.linspace(0, 1, 2**20 + 1)[::-1]
    f = 1 - u - density.scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    return np.gradient(np.interp(t, f, 1 - u), t)


# ---- known answers ----

ANSWERS = re.findall(
    r"^\| `([^`]*)` \|([ \d]*)\|([ \d]*)\|([ \d.]*)\|$", (Path(__file__).parents[1] / "docs" / "noise.md").read_text(), re.M
)


@pytest.mark.parametrize("row", ANSWERS, ids=lambda row: row[0])
def test_bounds_timesteps_and_levels_are_the_documents(row):
    density = eval(row[0], vars(densities) | {"chain": CHAIN})
    bounds, t, level = (column.split() for column in row[1:])
    key = noise_key(3, 7, 4)
    assert len(t) == 4 or len(level) == 4
    if bounds:
        assert density.bounds_on(1000, CPU)[[99, 499, 899]].tolist() == [int(bound) for bound in bounds]
    if t:
        assert timesteps(key, 1000, density).tolist() == [int(index) for index in t]
    if level:
        np.testing.assert_allclose(levels(key, density).numpy(), [float(x) for x in level], atol=6e-7)


def test_the_document_has_every_density():
    assert {row[0].split("(")[0] for row in ANSWERS} == {"None", "LogitNormal", "Mode", "CosMap", "LogNormal", "Discrete"}


# ---- the densities ----


SMOOTH = {name: density for name, density in OF_TIME.items() if name != "mode, most"}
"""Without the one whose density has a pole."""


@pytest.mark.parametrize("name", SMOOTH)
def test_probabilities_are_the_published_density(name):
    p = OF_TIME[name].probabilities(1000)
    t = (np.arange(1000) + 0.5) / 1000
    inner = slice(50, 950)  # where a middle stands for its cell
    np.testing.assert_allclose(1000 * p.numpy()[inner], published(OF_TIME[name], t)[inner], rtol=2e-3, atol=1e-6)
    assert float(p.sum()) == 1


@pytest.mark.parametrize("name", ["logit_normal", "mode"])
def test_probabilities_are_diffusers_histogram(name):
    training_utils = pytest.importorskip("diffusers.training_utils")
    density = {"logit_normal": LogitNormal(0.3, 0.8), "mode": Mode(1.1)}[name]
    u = training_utils.compute_density_for_timestep_sampling(
        name, 200_000, 0.3, 0.8, 1.1, generator=torch.Generator().manual_seed(0)
    )
    counts = np.bincount((u * 25).long().numpy(), minlength=25)
    assert 1e-4 < stats.chisquare(counts, 200_000 * density.probabilities(25).numpy()).pvalue < 1 - 1e-4


@pytest.mark.parametrize("density", [*SMOOTH.values(), LogNormal()], ids=[*SMOOTH, "sigma"])
def test_quantile_is_the_inverse_of_cdf(density):
    share = torch.linspace(1e-3, 1 - 1e-3, 301, dtype=torch.float64)
    back = [density.cdf(level) for level in density.quantile(share).tolist()]
    np.testing.assert_allclose(back, share.numpy(), atol=1e-9)


def test_sigmas_are_drawn_as_what_is_nearest_to_them():
    """By ln sigma; a sigma of 0 and one that is infinite take what lies beyond."""
    sigmas = np.array([0.0, 0.1, 0.5, 4.0, np.inf])
    ends = np.array([0.0, math.sqrt(0.05), math.sqrt(2.0), np.inf, np.inf])
    expected = np.diff(stats.lognorm(1.2, scale=math.exp(-1.2)).cdf(ends), prepend=0)
    got = LogNormal().at(sigmas.tolist()).probabilities(5)
    np.testing.assert_allclose(got, expected, atol=2**-30)


# ---- what is drawn ----


@pytest.mark.parametrize("name", OF_T)
def test_t_is_drawn_with_its_probability(name):
    t = timesteps(noise_key(8, 1, 200_000), 100, OF_T[name])
    counts, expected = np.bincount(t.numpy(), minlength=100), 200_000 * OF_T[name].probabilities(100).numpy()
    assert len(counts) == 100 and not counts[expected == 0].any()
    often = expected >= 5
    counts, expected = ([*x[often], x[~often].sum()] for x in (counts, expected))
    keep = np.array(expected) > 0
    assert 1e-4 < stats.chisquare(np.array(counts)[keep], np.array(expected)[keep]).pvalue < 1 - 1e-4


def test_a_word_belongs_to_the_index_behind_its_bound():
    key = noise_key(3, 7, 1)
    n = int(timesteps(key, densities.WORDS))
    for bound, t in ((n - 1, 1), (n, 1), (n + 1, 0)):
        density = Discrete([bound, densities.WORDS - bound])
        assert density.bounds_on(2, CPU)[0] == bound and int(timesteps(key, 2, density)) == t


@pytest.mark.parametrize("name", OF_TIME)
def test_t_is_its_levels_index(name):
    """The word is one: they differ where float32 has rounded a level over the edge."""
    key = noise_key(8, 2, 20_000)
    level, t = 100 * levels(key, OF_TIME[name]), timesteps(key, 100, OF_TIME[name])
    assert level.dtype == torch.float32 and t.dtype == torch.int64
    near = (level - level.round()).abs() < 1e-4
    assert torch.equal(level.floor().long()[~near], t[~near]) and int(near.sum()) < 500


def test_without_a_density_t_is_what_it_was_and_levels_are_even():
    key = noise_key(8, 3, 1000)
    assert torch.equal(timesteps(key, 1000, None), timesteps(key, 1000))
    assert torch.equal((1000 * levels(key)).long(), timesteps(key, 1000))


@pytest.mark.parametrize("density", [None, LogitNormal(), Mode(), CosMap()])
def test_the_top_words_are_below_1(density):
    """This key's share is 1 - 1.4e-8, which float32 rounds to 1; of sigma there is no such bound."""
    key = noise_key(0, 0, 1, first_sample=98330283)
    assert timesteps(key, 1 << 30).item() == 1073741809
    assert 0.99 < levels(key, density).item() <= 1 - 2**-24 and levels(key, LogNormal()).item() > 1


def test_a_batch_split_in_two_draws_the_same():
    key, density = noise_key(8, 4, 12, first_sample=100), LogitNormal()
    parts = (noise_key(8, 4, 5, first_sample=100), noise_key(8, 4, 7, first_sample=105, stream="user"))
    for draw in (lambda k: timesteps(k, 1000, density), lambda k: levels(k, density)):
        assert torch.equal(torch.cat([draw(k) for k in parts]), draw(key))


def test_a_copy_of_a_density_draws_the_same():
    key = noise_key(8, 5, 50)
    for density in OF_T.values():
        expected = timesteps(key, 100, density)
        for other in (copy.deepcopy(density), pickle.loads(pickle.dumps(density))):
            assert torch.equal(timesteps(key, 100, other), expected)


def test_nothing_waits_for_the_host():
    key = noise_key(8, 6, 5)
    for uploads in (True, False):
        with NoHostReads(uploads):
            timesteps(key, 100, OF_T["mode"])
    with NoHostReads() as mode:
        for density in OF_TIME.values():
            levels(key, density)
    assert not set(UPLOADS) & set(mode.seen)


def test_a_compiled_call_draws_the_same():
    def draw(key, of_t, of_time):
        return timesteps(key, 100, of_t), levels(key, of_time)

    key, compiled = noise_key(8, 7, 50), torch.compile(draw, backend="eager", fullgraph=True)
    for given in ((OF_T["mode"], None), (OF_T["table"], LogNormal())):
        assert all(map(torch.equal, compiled(key, *given), draw(key, *given)))


# ---- in training ----


def test_a_training_step_draws_t_of_its_density():
    diffusion, key, x_0 = GaussianDiffusion(CHAIN, density=LogitNormal()), noise_key(8, 8, 4), values(4, 3, 5, 5)
    seen = []
    loss = diffusion.training_loss(lambda x, t: (seen.append((x, t)), x)[1], x_0, key)
    ((x_t, t),) = seen
    assert torch.equal(t, timesteps(key, 1000, LogitNormal())) and same_bits(x_t, q_sample(x_0, t, CHAIN, key))
    assert same_bits(loss, GaussianDiffusion(CHAIN).training_loss(lambda x, t: x, x_0, key, t=t))


# ---- bad input ----

X, KEY = values(2, 3), noise_key(1, 2, 2)
BAD = {
    "a name": (lambda: timesteps(KEY, 10, "mode"), TypeError, "density: expected one of fastddpm.densities or None, got str"),
    "no T": (lambda: LogitNormal().bounds_on(0, CPU), ValueError, "num_timesteps: expected 1 or more, got 0"),
    "another T": (lambda: timesteps(KEY, 10, Discrete([1.0])), ValueError, "density: expected Discrete of 10 timesteps, got 1"),
    "sigma as t": (lambda: timesteps(KEY, 10, LogNormal()), ValueError, r"density: expected one of t, got LogNormal"),
    "levels of t": (
        lambda: levels(KEY, Discrete([1.0])),
        ValueError,
        "density: expected one of continuous levels, got Discrete",
    ),
    "std": (lambda: LogitNormal(0, 0), ValueError, "std: expected a finite number above 0, got 0"),
    "mean": (lambda: LogNormal(math.nan), ValueError, "mean: expected a finite number, got nan"),
    "scale": (lambda: Mode(1.8), ValueError, r"scale: expected -1 \.\. 2 / \(pi - 2\), got 1.8"),
    "a negative weight": (lambda: Discrete([1.0, -1.0]), ValueError, "weights: expected .* 0 or more"),
    "no weight": (lambda: Discrete(torch.zeros(3)), ValueError, r"weights: expected .* not all 0, got float32 \[3\]"),
    "a NaN": (lambda: Discrete([1.0, math.nan]), ValueError, "weights: expected .* finite"),
    "falling sigmas": (lambda: LogNormal().at([2.0, 1.0]), ValueError, r"sigmas: expected \[T\] that rise"),
    "of a diffusion": (lambda: GaussianDiffusion(CHAIN, density="mode"), TypeError, "density: expected one of"),
    "of a diffusion of another T": (
        lambda: GaussianDiffusion(CHAIN, density=Discrete([1.0])),
        ValueError,
        "density: expected Discrete of 1000 timesteps",
    ),
    "with a t_sampler": (
        lambda: GaussianDiffusion(CHAIN, density=CosMap()).training_loss(None, X, KEY, t_sampler=LossSecondMoment(1000)),
        ValueError,
        "t_sampler: expected None, since this diffusion has a density of t, got both",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
