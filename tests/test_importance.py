"""Importance-sampled timesteps: the reweighted loss keeps its mean, and t and the state are the same on any rank."""

import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import same_bits
from test_no_host_reads import NoHostReads
from torch.utils._python_dispatch import TorchDispatchMode

from fastddpm import GaussianDiffusion, LossSecondMoment, NoiseSchedule, noise_key, q_sample, timesteps, vlb_loss

T = 20


def filled(losses=None, history=10, uniform_prob=0.001):
    """A sampler that has seen the loss of each t `history` times."""
    losses = torch.logspace(-3, 2, T) if losses is None else losses
    sampler = LossSecondMoment(len(losses), history, uniform_prob, "cpu")
    for _ in range(history):
        sampler.update(torch.arange(len(losses)), losses)
    return sampler


def test_probabilities_are_equation_18():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(13, T, generator=generator) * torch.logspace(-3, 2, T)
    sampler = LossSecondMoment(T, device="cpu")
    for row in losses:
        sampler.update(torch.arange(T), row)
    roots = losses[-10:].double().square().mean(0).sqrt()
    expected = 0.999 * roots / roots.sum() + 0.001 / T
    assert torch.allclose(sampler.probabilities, expected, rtol=1e-4) and float(sampler.probabilities.sum()) == 1
    _, weights = sampler.sample(noise_key(0, 0, 1000))
    assert float(weights.max()) <= 1000 * (1 + 1e-4)


@pytest.mark.parametrize("losses", [torch.logspace(-3, 2, T), torch.zeros(T), torch.eye(T)[3], torch.full((T,), 3e38)])
def test_the_reweighted_loss_keeps_its_mean_exactly(losses):
    sampler = filled(losses)
    p, every = sampler.probabilities, torch.rand(T, dtype=torch.float64)
    weights = sampler._weights.double()
    assert float(p.sum()) == 1 and bool((p > 0).all())
    assert torch.allclose((p * weights * every).sum(), every.mean(), rtol=1e-6)


def test_the_reweighted_loss_keeps_its_mean_over_draws():
    """And with less variance than uniform draws have, which is what it is for."""
    losses = torch.logspace(-3, 2, T)
    sampler, count = filled(losses), 200_000
    key = noise_key(3, 0, count)
    t, weights = sampler.sample(key)
    drawn = torch.bincount(t, minlength=T) / count
    assert torch.allclose(drawn.double(), sampler.probabilities, atol=4 * (0.25 / count) ** 0.5)
    weighted, plain = weights * losses[t], losses[timesteps(key, T)]
    assert abs(float(weighted.mean() - losses.mean())) < 4 * float(weighted.std()) / count**0.5
    assert weighted.var() < 0.01 * plain.var()


def test_uniform_until_every_t_is_filled():
    sampler, key = LossSecondMoment(T, device="cpu"), noise_key(1, 7, 500)
    for i in range(10):
        t, weights = sampler.sample(key)
        assert torch.equal(t, timesteps(key, T)) and bool((weights == 1).all())
        assert torch.allclose(sampler.probabilities, torch.full((T,), 1 / T, dtype=torch.float64))
        some = torch.arange(T) if i < 9 else torch.arange(T - 1)
        sampler.update(some, some + 1.0)
    sampler.update(torch.tensor([3]), torch.tensor([1.0]))
    assert torch.equal(sampler.sample(key)[0], timesteps(key, T))
    sampler.update(torch.tensor([T - 1]), torch.tensor([1.0]))
    assert not torch.equal(sampler.sample(key)[0], timesteps(key, T))


@pytest.mark.parametrize("history", [1, 3, 10])
def test_duplicates_all_count_in_their_order(history):
    generator = torch.Generator().manual_seed(1)
    t = torch.randint(0, 4, (60,), generator=generator)
    losses = torch.rand(60, generator=generator)
    whole, single = (LossSecondMoment(4, history, device="cpu") for _ in range(2))
    whole.update(t, losses)
    for one in range(60):
        single.update(t[one : one + 1], losses[one : one + 1])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, single.state_dict()[name]), name
    last = [losses[t == i][-history:].sort().values for i in range(4)]
    assert torch.equal(whole.state_dict()["losses"].sort(1).values, torch.stack(last))


class WrittenTwice(TorchDispatchMode):
    """Collects the values that one call writes into one place. A GPU keeps any one of them: they must be the same."""

    def __init__(self):
        super().__init__()
        self.different = self.places = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__.startswith(("index_put", "_index_put")):
            _, indices, written, *_ = args
            places = {}
            for *place, value in zip(*(x.tolist() for x in indices), written.tolist(), strict=True):
                places.setdefault(tuple(place), set()).add(value)
            self.places += len(places)
            self.different += sum(len(values) > 1 for values in places.values())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("history", [1, 3])
def test_the_order_of_writing_decides_nothing(history):
    sampler = LossSecondMoment(4, history, device="cpu")
    with WrittenTwice() as mode:
        sampler.update(torch.randint(0, 4, (60,)), torch.rand(60))
    assert mode.places == 4 * history and mode.different == 0


def test_t_does_not_depend_on_the_batch():
    sampler, key = filled(), noise_key(5, 9, 64)
    t, weights = sampler.sample(key)
    for part in (slice(0, 1), slice(10, 40)):
        assert torch.equal(sampler.sample(key[part])[0], t[part]) and same_bits(sampler.sample(key[part])[1], weights[part])


def test_state_is_restored_to_the_bit():
    before, after = filled(), LossSecondMoment(T, device="cpu")
    before.update(torch.tensor([2, 2, 5]), torch.tensor([9.0, 8.0, 7.0]))
    state = before.state_dict()
    after.load_state_dict(state)
    for _ in range(2):
        assert all(same_bits(x, after.state_dict()[name]) for name, x in before.state_dict().items())
        key = noise_key(0, 1, 300)
        assert all(same_bits(a, b) for a, b in zip(before.sample(key), after.sample(key), strict=True))
        for sampler in (before, after):
            sampler.update(torch.tensor([1, 2, 1]), torch.tensor([4.0, 5.0, 6.0]))
    assert not torch.equal(state["losses"], before.state_dict()["losses"])  # a state is a copy
    with pytest.raises(ValueError, match=r"state: expected losses \[21, 10\]"):
        LossSecondMoment(21, device="cpu").load_state_dict(state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_loss_does_not_end_the_probabilities(bad):
    sampler = filled()
    sampler.update(torch.tensor([4]), torch.tensor([bad]))
    assert sampler.probabilities.isfinite().all() and float(sampler.probabilities.sum()) == 1


def test_large_and_small_chains():
    assert torch.equal(filled(torch.ones(1)).sample(noise_key(0, 0, 5))[0], torch.zeros(5, dtype=torch.int64))
    many = filled(torch.logspace(-20, 10, 100_000), history=1)
    t, weights = many.sample(noise_key(0, 0, 1000))
    assert int(t.max()) < 100_000 and weights.isfinite().all() and bool((many.probabilities > 0).all())


def test_bad_input():
    for arguments, named in (((0,), "num_timesteps"), ((T, 0), "history"), ((T, 10, 0.0), "uniform_prob")):
        with pytest.raises(ValueError, match=named):
            LossSecondMoment(*arguments)
    sampler = LossSecondMoment(T, device="cpu")
    with pytest.raises(TypeError, match="t: expected int64"):
        sampler.update(torch.rand(3), torch.rand(3))
    with pytest.raises(TypeError, match=r"key: expected an int64 key .* from noise_key, got int"):
        sampler.sample(3)
    with pytest.raises(ValueError, match=r"losses: expected floating \[3\]"):
        sampler.update(torch.arange(3), torch.rand(4))
    for t in (-1, T):
        with pytest.raises(IndexError, match=rf"t: expected 0 \.\. {T - 1}, got (-1 \.\. 2|2 \.\. 20)"):
            sampler.update(torch.tensor([2, t]), torch.ones(2))
    with pytest.raises(ValueError, match="state: expected losses that are finite"):
        sampler.load_state_dict({**sampler.state_dict(), "losses": torch.full((T, 10), math.nan)})
    assert not sampler.state_dict()["losses"].any(), "nothing of what was refused is kept"


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_training_loss_takes_it(reduction):
    schedule, model = NoiseSchedule.linear(T, 1e-3, 0.3), torch.nn.Conv2d(1, 1, 3, padding=1)
    diffusion, sampler, key = GaussianDiffusion(schedule, loss="kl"), filled(), noise_key(4, 2, 6)
    x_0 = torch.rand(6, 1, 4, 4) * 2 - 1
    t, weights = sampler.sample(key)
    x_t = q_sample(x_0, t, schedule, key)
    losses = vlb_loss(model(x_t), x_0, x_t, t, schedule, reduction="none")
    expected = filled()
    expected.update(t, losses)

    loss = diffusion.training_loss(lambda x, t: model(x), x_0, key, reduction=reduction, t_sampler=sampler)
    weighted = weights * losses
    assert torch.allclose(loss, weighted if reduction == "none" else getattr(weighted, reduction)(), rtol=1e-6)
    assert all(same_bits(x, expected.state_dict()[name]) for name, x in sampler.state_dict().items())
    gradients = [torch.autograd.grad(x, model.weight)[0] for x in (loss.sum(), weighted.sum())]
    scale = 6 if reduction == "mean" else 1
    assert torch.allclose(scale * gradients[0], gradients[1], rtol=1e-4)
    with pytest.raises(ValueError, match=r"t_sampler: expected one of 20 timesteps, got 21"):
        diffusion.training_loss(model, x_0, key, t_sampler=LossSecondMoment(21, device="cpu"))


def test_nothing_waits_for_the_host():
    sampler, key, losses = filled(), noise_key(1, 0, 8), torch.rand(8)
    for uploads in (True, False):
        with NoHostReads(uploads):
            t, _ = sampler.sample(key)
            sampler.update(t, losses)


# ---- ranks ----

BATCH, STEPS = 12, 40


def run_steps(first, count):
    """State and draws after some steps of the samples first .. first + count - 1; a loss is a function of sample and t."""
    sampler, draws = LossSecondMoment(T, history=4, device="cpu"), []
    for step in range(STEPS):
        t, weights = sampler.sample(noise_key(2, step, count, first_sample=first))
        sampler.update(t, torch.sin(torch.arange(first, first + count) + 3 * t) ** 2 * (1 + t))
        draws.append(torch.stack((t.double(), weights.double()), 1))
    assert bool(sampler._filled)
    return {**sampler.state_dict(), "draws": torch.stack(draws)}


def rank_main(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(run_steps(rank * BATCH // 2, BATCH // 2), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_are_one(tmp_path):
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    one, two = run_steps(0, BATCH), [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for name in ("losses", "counts"):
        assert same_bits(two[0][name], one[name]) and same_bits(two[1][name], one[name]), name
    assert same_bits(torch.cat([rank["draws"] for rank in two], 1), one["draws"])
