"""OpenAI's trainers, patched, beside their own: twenty steps."""

import os
import pickle
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import openai_peers as peers
import openai_twin
import pytest
import torch
import torch.distributed as dist

import fastddpm

STEPS = 20
RATES = (0.9, 0.999)


class Module(torch.nn.Module):
    """A small network of several parameters, one of them of no dimension."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(*io, 3, padding=1) for io in pairwise((3, 8, 8, 8, 6)))
        self.scale = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x, t):
        first, *between, last = self.layers
        x = first(x) + self.scale * t.float().view(-1, 1, 1, 1) / 1000
        for layer in between:
            x = layer(torch.tanh(x))
        return last(torch.tanh(x))


@pytest.fixture(params=["twin", "twin of improved", "guided_diffusion", "improved_diffusion"])
def peer(request, monkeypatch):
    """With a `logged` list of what its trainer logs, and `loop()` for a trainer."""
    peer = peers.Peer(request.param)
    peer.logged = []
    names = ("logkv_mean", "logkv", "log")
    logger = SimpleNamespace(**dict.fromkeys(names, lambda *given: peer.logged.append(given)))
    if peer.twin:
        monkeypatch.setattr(openai_twin, "logger", logger)
        cls = openai_twin.GuidedLoop if peer.name == "twin" else openai_twin.ImprovedLoop
        peer.loop = lambda: cls(Module(), peer.diffusion(), 4, RATES)
        yield peer
        return
    for module in ("train_util", "fp16_util"):
        if hasattr(peers.imported(peer.name, module), "logger"):
            monkeypatch.setattr(peers.imported(peer.name, module), "logger", logger)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    names = ("batch_size", "microbatch", "lr", "ema_rate", "log_interval", "save_interval", "resume_checkpoint")
    given = dict(zip(names, (8, 4, 1e-3, ",".join(map(str, RATES)), 10, 10, ""), strict=True))
    train_util = peers.imported(peer.name, "train_util")
    peer.loop = lambda **options: train_util.TrainLoop(model=Module(), diffusion=peer.diffusion(), data=None, **given | options)
    yield peer
    dist.destroy_process_group()


def trained(peer, loop, steps=STEPS):
    """The trainer after its steps, and what it logged."""
    torch.manual_seed(0)
    np.random.seed(0)
    peer.logged.clear()
    for step in range(steps):
        loop.run_step(peers.images(size=4).repeat(2, 1, 1, 1) * (1 - step / 40), {})
    return loop, list(peer.logged), torch.get_rng_state().tolist(), str(np.random.get_state())


@pytest.fixture
def without_0(monkeypatch):
    """No t is 0, which theirs of float32 gets wrong."""
    monkeypatch.setattr(np.random, "choice", lambda n, size, p=None: 1 + np.random.randint(n - 1, size=size))


@pytest.mark.parametrize("update", [False, True])
def test_twenty_steps_are_theirs(peer, without_0, update):
    patched = peer.loop()
    handle = fastddpm.patch(patched, force=peer.twin, update=update)
    plain, wanted, *states = trained(peer, peer.loop())
    _, got, *others = trained(peer, patched)
    assert states == others and not handle.fell_back and not any(part.fell_back for part in handle.parts)
    assert len(wanted) > STEPS
    for (name, one), (other_name, other) in zip(wanted, got, strict=True):
        assert name == other_name and type(one) is type(other)
        np.testing.assert_allclose(other, one, rtol=2e-6, atol=1e-6)
    for one, other in zip(plain.ema_params, patched.ema_params, strict=True):
        torch.testing.assert_close([*other], [*one], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(patched.model.state_dict(), plain.model.state_dict(), rtol=1e-4, atol=1e-5)
    assert all(p.grad is None and p.requires_grad for average in patched.ema_params for p in average)


def test_a_functions_module_keeps_its_own(peer):
    loop = peer.loop()
    names = type(loop).forward_backward.__globals__
    before = dict(names)
    with fastddpm.patch(loop, force=peer.twin):
        loop.forward_backward(peers.images(), {})
        peer.logged.clear()
        loop.diffusion.training_losses = lambda *given, **options: {"loss": losses[0], "other": losses[1].double()}
        losses = torch.rand(2, 4, requires_grad=True)
        loop.forward_backward(peers.images(), {})
    assert names == before and {"loss", "other"} <= {name for name, _ in peer.logged}


def test_averages_and_norms_alone(peer):
    """From the same gradients."""
    plain, patched = peer.loop(), peer.loop()
    handle = fastddpm.patch(patched, force=peer.twin)
    for loop in (plain, patched):
        torch.manual_seed(1)
        for p in loop.model.parameters():
            p.grad = torch.randn_like(p)
        for average in loop.ema_params:
            for p in average:
                p.data.add_(torch.randn_like(p))
    if hasattr(plain, "mp_trainer"):
        norms = [loop.mp_trainer._compute_norms(grad_scale=4.0) for loop in (plain, patched)]
        plain._update_ema()
        patched._update_ema()
    else:
        norms = []
        for loop in (plain, patched):
            peer.logged.clear()
            loop.optimize_normal()
            norms.append([value for name, value in peer.logged if name == "grad_norm"])
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-6)
    assert [type(norm) for norm in norms[1]] == [type(norm) for norm in norms[0]]
    for one, other in zip(plain.ema_params, patched.ema_params, strict=True):
        torch.testing.assert_close([*other], [*one], rtol=1e-6, atol=1e-6)
    assert not handle.fell_back


def test_norms_of_few_tensors_are_theirs(peer):
    plain, patched = peer.loop(), peer.loop()
    handle = fastddpm.patch(patched, force=peer.twin)
    norms = []
    for loop in (plain, patched):
        peer.logged.clear()
        keeper = getattr(loop, "mp_trainer", loop)
        keeper.master_params = keeper.master_params[:2]
        for p in keeper.master_params:
            p.grad = torch.ones_like(p)
        norms.append(keeper._compute_norms() if keeper is not loop else (keeper._log_grad_norm(), list(peer.logged)))
    assert norms[0] == norms[1]
    assert sum(sum(one.fell_back.values()) for one in (handle, *handle.parts)) == 1


def test_parameters_of_another_dtype_are_theirs(peer):
    plain, patched = peer.loop(), peer.loop()
    handle = fastddpm.patch(patched, force=peer.twin)
    for loop in (plain, patched):
        loop.ema_params = [[p.detach().double() for p in average] for average in loop.ema_params]
        for p in loop.model.parameters():
            p.grad = torch.ones_like(p)
        getattr(loop, "_update_ema", getattr(loop, "optimize_normal", None))()
    for one, other in zip(plain.ema_params, patched.ema_params, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert sum(handle.fell_back.values()) == 1


def test_what_is_patched_already_stays_so(peer):
    loop = peer.loop()
    with fastddpm.patch(loop.diffusion, "philox", force=peer.twin) as first, fastddpm.patch(loop, force=peer.twin) as handle:
        assert first.obj not in [part.obj for part in handle.parts]
        loop.forward_backward(peers.images(), {})
    assert not handle.fell_back and not first.fell_back


def test_a_handle_is_pickled(peer):
    handle = fastddpm.patch(peer.loop(), force=peer.twin)
    assert pickle.loads(pickle.dumps(handle)).peer == handle.peer


@pytest.mark.parametrize("update", [False, True])
def test_undone_a_trainer_is_what_it_was(peer, update):
    loop = peer.loop()
    parts = [loop, loop.diffusion, *([loop.mp_trainer] if hasattr(loop, "mp_trainer") else []), *([loop.opt] * update)]
    before = [dict(vars(part)) for part in parts]
    with fastddpm.patch(loop, force=peer.twin, update=update) as handle:
        assert len(handle.parts) == len(parts) - 1
        trained(peer, loop)
    for part, kept in zip(parts, before, strict=True):
        assert [*vars(part)] == [*kept] and all(vars(part)[name] is kept[name] for name in kept if name != "step")


# ---- its optimizer ----


def losses(peer, loop, steps=STEPS):
    logged = trained(peer, loop, steps)[1]
    return np.array([value for name, value in logged if name in ("loss", "grad_norm")])


def test_undone_half_way_it_trains_on(peer, without_0):
    plain, patched = peer.loop(), peer.loop()
    with fastddpm.patch(patched, force=peer.twin, update=True):
        for loop in (plain, patched):
            losses(peer, loop, 10)
    wanted, got = (losses(peer, loop, 10) for loop in (plain, patched))
    np.testing.assert_allclose(got, wanted, rtol=5e-6)
    torch.testing.assert_close(patched.opt.state_dict(), plain.opt.state_dict(), rtol=1e-4, atol=1e-7)
    assert type(patched.opt) is torch.optim.AdamW and float(patched.opt.state[patched.model.scale]["step"]) == 20


@pytest.mark.parametrize("options", [{"lr_anneal_steps": 15}, {"use_fp16": True}, {"ema_rate": "0.9", "weight_decay": 0.1}])
def test_annealed_in_float16_and_decayed_it_is_theirs(peer, without_0, options, monkeypatch):
    if peer.twin:
        pytest.skip("a stand-in does neither")
    monkeypatch.setattr(Module, "convert_to_fp16", lambda self: None, raising=False)  # in float32 it rounds as finely as ours
    plain, patched = peer.loop(**options), peer.loop(**options)
    handle = fastddpm.patch(patched, update=True)
    apart = "use_fp16" in options and peer.name == "improved_diffusion"
    assert ("left to the original: the first average (optimize_fp16 averages itself)" in handle.summary()) is apart
    wanted, got = (losses(peer, loop, 14) for loop in (plain, patched))
    np.testing.assert_allclose(got, wanted, rtol=5e-6)
    assert plain.opt.param_groups[0]["lr"] == patched.opt.param_groups[0]["lr"]
    for one, other in zip(plain.ema_params, patched.ema_params, strict=True):
        torch.testing.assert_close([*other], [*one], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("saved_by", ["patched", "plain"])
def test_what_either_saved_the_other_resumes(peer, without_0, saved_by, monkeypatch, tmp_path):
    if peer.twin:
        pytest.skip("a stand-in saves nothing")
    files = {"join": os.path.join, "dirname": os.path.dirname, "exists": os.path.exists, "BlobFile": open}
    for name, function in files.items():
        monkeypatch.setattr(sys.modules["blobfile"], name, function, raising=False)
    monkeypatch.setattr(peers.imported(peer.name, "train_util"), "get_blob_logdir", lambda: str(tmp_path))
    first, uninterrupted = peer.loop(), peer.loop()
    if saved_by == "patched":
        fastddpm.patch(first, update=True)
    for loop in (first, uninterrupted):
        losses(peer, loop, 10)
        loop.step = 10
    first.save()
    resumed = peer.loop(resume_checkpoint=str(tmp_path / "model000010.pt"))
    if saved_by == "plain":
        fastddpm.patch(resumed, update=True)
    wanted, got = (losses(peer, loop, 10) for loop in (uninterrupted, resumed))
    np.testing.assert_allclose(got, wanted, rtol=5e-6)
    for one, other in zip(uninterrupted.ema_params, resumed.ema_params, strict=True):
        torch.testing.assert_close([*other], [*one], rtol=1e-5, atol=1e-6)
