"""OpenAI's diffusions, patched, beside their own."""

import copy
import itertools
from importlib import import_module
from pathlib import Path
from shutil import copytree

import openai_peers as peers
import pytest
import torch

import fastddpm
from fastddpm import randn
from fastddpm.integrations import torch_normals
from fastddpm.integrations.draws import drawn_key

pytestmark = pytest.mark.usefixtures("few_are_many")
TYPES = list(itertools.product(peers.MEANS, peers.VARIANCES))
LIKELIHOOD = 1e-4
"""Theirs takes a probability of 1e-12 and up as a difference of two near 1: float64 leaves four digits of it."""
SPACINGS = ({}, {"rescaled": True}, {"spacing": "ddim10", "rescaled": True}, {"spacing": "10"})


@pytest.fixture(params=peers.NAMES)
def peer(request):
    return peers.Peer(request.param)


# ---- losses ----


@pytest.mark.parametrize(("mean", "variance"), TYPES)
def test_losses_and_gradients(peer, mean, variance):
    """Float32's are as near to theirs of float64 at t = 0, where theirs of float32 are not, as at every other t."""
    for loss, dtype in itertools.product(peers.LOSSES, (torch.float32, torch.float64)):
        plain, patched, handle = peer.pair(mean, variance, loss)
        exact, x = peers.network(variance, torch.float64), peers.images(dtype)
        model, noise = peers.network(variance, dtype), peers.noise_like(peers.images())
        wanted = plain.training_losses(exact, x.double(), peers.BATCH, noise=noise.double())
        got = patched.training_losses(model, x, peers.BATCH, noise=noise.to(dtype))
        assert list(got) == list(wanted) and not handle.fell_back
        for name, term in got.items():
            peers.close(term, wanted[name].to(dtype), LIKELIHOOD)
            exact.zero_grad()
            model.zero_grad()
            wanted[name].sum().backward(retain_graph=True)
            term.sum().backward(retain_graph=True)
            peers.close(model.weight.grad, exact.weight.grad.to(dtype), LIKELIHOOD)


@pytest.mark.parametrize("dtypes", list(itertools.product((torch.float32, torch.float16), repeat=3)), ids=str)
def test_dtypes_of_losses(peer, dtypes):
    """Half precision is promoted by their float32 tables, but for an error of two half tensors."""
    of_x, of_noise, of_output = dtypes
    kinds = (("LEARNED_RANGE", "MSE"), ("LEARNED_RANGE", "KL"), ("FIXED_SMALL", "MSE"))
    for mean, (variance, loss) in itertools.product(peers.MEANS, kinds):
        plain, patched, handle = peer.pair(mean, variance, loss)
        x = peers.images(of_x)
        model, noise = peers.network(variance, output=of_output), peers.noise_like(x).to(of_noise)
        wanted, got = (d.training_losses(model, x, peers.BATCH, noise=noise) for d in (plain, patched))
        assert not handle.fell_back
        assert {name: term.dtype for name, term in got.items()} == {name: term.dtype for name, term in wanted.items()}
        later = peers.BATCH > 0
        peers.close(got["loss"][later], wanted["loss"][later], 2e-3)


@pytest.mark.parametrize("loss", ["MSE", "KL"])
def test_timesteps_are_free_once_a_loss_of_half_precision_is_there(peer, loss):
    plain, patched, handle = peer.pair(loss=loss)
    grads = []
    for diffusion in (plain, patched):
        model, x, t = peers.network("LEARNED_RANGE", output=torch.bfloat16), peers.images(), peers.BATCH.clamp(min=1)
        total = diffusion.training_losses(model, x, t, noise=peers.noise_like(x))["loss"].sum()
        t.zero_()
        total.backward()
        grads.append(model.weight.grad)
    peers.close(grads[1], grads[0], 2e-2)
    assert not handle.fell_back


@pytest.mark.parametrize("options", SPACINGS, ids=str)
def test_what_the_model_is_given(peer, options):
    plain, patched, _ = peer.pair("EPSILON", "FIXED_SMALL", "MSE", **options)
    t = torch.tensor([0, 1, 5, plain.num_timesteps - 1])
    calls = []
    for diffusion in (plain, patched):
        model = peers.network("FIXED_SMALL")
        diffusion.training_losses(model, peers.images(), t, {"y": 3})
        with torch.no_grad():
            diffusion.p_sample(model, peers.images(), t.int())
        calls.append(model.calls)
    for (one, one_kwargs), (other, other_kwargs) in zip(*calls, strict=True):
        assert torch.equal(one, other) and one.dtype is other.dtype and one_kwargs == other_kwargs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_noising(peer, dtype):
    plain, patched, handle = peer.pair()
    x = peers.images(dtype)
    wanted, got = peers.of_both(plain, patched, "q_sample", x, peers.BATCH)
    peers.close(got["q_sample"], wanted["q_sample"], 1e-6)
    leaf = x.clone().requires_grad_()
    patched.q_sample(leaf, peers.BATCH).sum().backward()
    assert leaf.grad is not None and not handle.fell_back


def test_keys_in_place_of_noise(peer):
    """The loss's noise is x_t's, and a step's is a draw of its own."""
    for mean, variance, loss in itertools.product(peers.MEANS, ("FIXED_LARGE", "LEARNED_RANGE"), ("MSE", "KL")):
        plain, patched, handle = peer.pair(mean, variance, loss, noise="philox")
        model, x = peers.network(variance), peers.images()
        torch.manual_seed(5)
        key = drawn_key(len(x), x.device)
        torch.manual_seed(5)
        got = patched.training_losses(model, x, peers.BATCH)["loss"]
        with fastddpm.patch(plain, force=peer.twin):
            wanted = plain.training_losses(model, x, peers.BATCH, noise=randn(key, x.shape))["loss"]
        peers.close(got, wanted, 1e-6)
        with torch.no_grad():
            one, other = (patched.p_sample(model, x, peers.BATCH)["sample"] for _ in range(2))
        assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
        bound = patched.calc_bpd_loop(model, x)
        assert all(term.isfinite().all() for term in bound.values()) and not handle.fell_back


def test_a_key_is_made_noise_of_where_the_original_takes_over(peer):
    _, patched, handle = peer.pair("START_X", "FIXED_SMALL", "MSE", noise="philox")
    model, x = peers.network("FIXED_SMALL", output=torch.float64), peers.images()
    torch.manual_seed(5)
    got = patched.training_losses(model, x, peers.BATCH)["loss"]
    torch.manual_seed(5)
    noise = randn(drawn_key(len(x), x.device), x.shape)
    ((reason, count),) = handle.fell_back.items()
    assert count == 1 and "precision" in reason
    peers.close(got, patched.training_losses(model, x, peers.BATCH, noise=noise)["loss"], 1e-6)


# ---- steps ----


@pytest.mark.parametrize(("mean", "variance"), TYPES)
def test_steps(peer, mean, variance):
    for options, dtype in zip(SPACINGS, (torch.float32, torch.float16, torch.float64, torch.float32), strict=True):
        plain, patched, handle = peer.pair(mean, variance, **options)
        x, t = peers.images(dtype) * 1.5, torch.tensor([0, 1, 5, plain.num_timesteps - 1])
        model = peers.network(variance, torch.float64 if dtype is torch.float64 else torch.float32)
        calls = [("p_sample", {}), ("ddim_sample", {}), ("ddim_sample", {"eta": 1.0}), ("ddim_reverse_sample", {})]
        for (name, given), clip in itertools.product(calls, (True, False)):
            with torch.no_grad():
                wanted, got = peers.of_both(plain, patched, name, model, x, t, clip_denoised=clip, **given)
            for part in wanted:
                peers.close(got[part], wanted[part], peers.ROUNDING)
        assert not handle.fell_back


def test_dtypes_of_steps(peer):
    """Of a network in half precision: what it predicts directly stays so."""
    for mean, of_x in itertools.product(peers.MEANS, (torch.float32, torch.float16)):
        plain, patched, handle = peer.pair(mean, "LEARNED")
        model = peers.network("LEARNED", output=torch.float16)
        with torch.no_grad():
            wanted, got = peers.of_both(plain, patched, "p_sample", model, peers.images(of_x), peers.BATCH)
        for part in wanted:
            peers.close(got[part], wanted[part], 2e-3)
        assert not handle.fell_back


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("mean", "variance"), TYPES)
def test_twenty_steps_draw_what_theirs_draw(peer, mean, variance, layout):
    """Also where the network's images have another layout than the noise: then the next draw has it."""
    plain, patched, handle = peer.pair(mean, variance, spacing="20")
    network, after = peers.network(variance), []

    def model(*given):
        return network(*given).contiguous(memory_format=layout)

    for diffusion in (plain, patched):
        torch.manual_seed(0)
        x, t = peers.images(), torch.full((len(peers.BATCH),), 19)
        with torch.no_grad():
            while t[0] >= 0:
                x = diffusion.p_sample(model, x, t)["sample"]
                x, t = diffusion.ddim_sample(model, x, t, eta=0.5)["sample"], t - 1
        after.append((x, torch.get_rng_state()))
    (wanted, state), (got, other) = after
    assert torch.equal(state, other)
    peers.close(got, wanted, 1e-4)
    assert got.stride() == wanted.stride() and not handle.fell_back


def test_the_default_device_is_not_the_datas(peer):
    plain, patched, handle = peer.pair()
    model, x = peers.network("LEARNED_RANGE"), peers.images()
    torch_normals._as_torch.cache_clear()
    with torch.no_grad(), torch.device("meta"):
        for name in ("p_sample", "ddim_sample", "ddim_reverse_sample", "training_losses"):
            peers.of_both(plain, patched, name, model, x, peers.BATCH)
    assert not handle.fell_back


def test_gradients_through_a_step(peer):
    plain, patched, handle = peer.pair()
    grads = []
    for diffusion in (plain, patched):
        x, model = peers.images().requires_grad_(), peers.network("LEARNED_RANGE")
        torch.manual_seed(0)
        step = diffusion.p_sample(model, x, peers.BATCH)
        (step["sample"].square().sum() + step["pred_xstart"].sum()).backward()
        grads.append((x.grad, model.weight.grad))
    for got, wanted in zip(grads[1], grads[0], strict=True):
        peers.close(got, wanted, 1e-5)
    assert not handle.fell_back


# ---- bits per dimension ----


@pytest.mark.parametrize(("mean", "variance"), TYPES)
def test_bits_per_dimension(peer, mean, variance):
    """Theirs of float32 is far off at t = 0 alone: the last column, and with it the sum."""
    for clip, options in itertools.product((True, False), ({}, {"spacing": "10"})):
        plain, patched, handle = peer.pair(mean, variance, **options)
        model, x = peers.network(variance), peers.images()
        wanted, got = peers.of_both(plain, patched, "calc_bpd_loop", model, x, clip_denoised=clip)
        for name in ("prior_bpd", "xstart_mse", "mse"):
            peers.close(got[name], wanted[name], peers.ROUNDING)
        peers.close(got["vb"][:, :-1], wanted["vb"][:, :-1], peers.ROUNDING)
        assert torch.equal(got["total_bpd"], got["vb"].sum(1) + got["prior_bpd"]) and not handle.fell_back


@pytest.mark.parametrize("clip", [True, False])
def test_one_term(peer, clip):
    for mean, variance in TYPES:
        plain, patched, handle = peer.pair(mean, variance)
        x = peers.images()
        x_t = plain.q_sample(x, peers.BATCH, peers.noise_like(x))
        exact, model = peers.network(variance, torch.float64), peers.network(variance)
        wanted = plain._vb_terms_bpd(exact, x.double(), x_t.double(), peers.BATCH, clip_denoised=clip)
        got = patched._vb_terms_bpd(model, x, x_t, peers.BATCH, clip_denoised=clip)
        for name in wanted:
            peers.close(got[name], wanted[name].float(), LIKELIHOOD)
        assert not handle.fell_back


def test_a_model_that_answers_in_float64_is_theirs_step_by_step(peer):
    plain, patched, handle = peer.pair()
    model, x = peers.network("LEARNED_RANGE", output=torch.float64), peers.images()
    wanted, got = peers.of_both(plain, patched, "calc_bpd_loop", model, x)
    for name in wanted:
        peers.close(got[name], wanted[name], peers.ROUNDING)
    assert sum(handle.fell_back.values()) == peers.STEPS


# ---- copies ----


def test_undone_it_is_what_it_was(peer):
    plain = peer.diffusion(spacing="10")
    before = dict(vars(plain))
    with fastddpm.patch(plain, force=peer.twin):
        plain.training_losses(peers.network("LEARNED_RANGE"), peers.images(), torch.tensor([0, 1, 2, 3]))
    assert list(vars(plain)) == list(before) and all(vars(plain)[name] is before[name] for name in before)


def test_a_copy_is_patched_for_itself(peer):
    patched = peer.diffusion(spacing="10")
    handle = fastddpm.patch(patched, force=peer.twin)
    copied = copy.deepcopy(patched)
    handle.undo()
    assert copied.training_losses.__self__ is copied
    copied.training_losses(peers.network("LEARNED_RANGE"), peers.images(), torch.tensor([0, 1, 2, 3]), noise=peers.images())


# ---- whose they are ----


def test_a_subclass_that_overrides_what_is_gone_round_is_refused(peer):
    if peer.twin:
        pytest.skip("the stand-in's methods are none that are known")

    class Mine(peer.respace.SpacedDiffusion):
        def p_mean_variance(self, *args, **kwargs):
            return super().p_mean_variance(*args, **kwargs)

    class Same(peer.respace.SpacedDiffusion):
        def more(self):
            return 1

    plain = peer.diffusion(spacing="10")
    plain.__class__ = Mine
    with pytest.raises(ValueError, match="Mine whose p_mean_variance is one that fastddpm does not know"):
        fastddpm.patch(plain)
    plain.__class__ = Same
    assert fastddpm.patch(plain).peer.name == f"{peer.name}.SpacedDiffusion"


def test_a_changed_function_of_the_module_is_refused(peer, monkeypatch):
    if peer.twin:
        pytest.skip("the stand-in's functions are none that are known")
    monkeypatch.setattr(peer.code, "mean_flat", lambda x: x.flatten(1).sum(1))
    with pytest.raises(ValueError, match="whose mean_flat is one that fastddpm does not know"):
        fastddpm.patch(peer.diffusion())


def test_a_copy_of_the_files_in_another_package_is_taken(peer, tmp_path, monkeypatch):
    if peer.twin:
        pytest.skip("the stand-in is no file of theirs")
    copytree(Path(peer.code.__file__).parent, tmp_path / f"copy_of_{peer.name}")
    monkeypatch.syspath_prepend(tmp_path)
    modules = ("gaussian_diffusion", "respace")
    peer.code, peer.respace = (import_module(f"copy_of_{peer.name}.{module}") for module in modules)
    for spacing in (None, "10"):
        handle = fastddpm.patch(peer.diffusion(spacing=spacing))
        assert handle.peer.name == f"{peer.name}.{type(handle.obj).__name__}"
