"""OpenAI's diffusions, patched: the calls that are left to the originals, and what is noticed."""

import openai_peers as peers
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastddpm


@pytest.fixture(params=peers.NAMES)
def peer(request):
    return peers.Peer(request.param)


# ---- what is left to the original ----


def half_way(x, *_, **__):
    return x * 0.5


def in_float64(model):
    return lambda *given: model(*given).double()


FALLBACKS = {
    "denoised_fn": ("p_sample", lambda m, x, t: ((m, x, t), {"denoised_fn": half_way})),
    "an eta above 1": ("ddim_sample", lambda m, x, t: ((m, x, t), {"eta": 1.5})),
    "an eta that is a tensor": ("ddim_sample", lambda m, x, t: ((m, x, t), {"eta": torch.tensor(0.5)})),
    "a gradient through the data": ("training_losses", lambda m, x, t: ((m, x.clone().requires_grad_(), t), {})),
    "a gradient through noise": ("q_sample", lambda m, x, t: ((x, t, x.clone().requires_grad_()), {})),
    "noise of float64": ("training_losses", lambda m, x, t: ((m, x, t, None, x.double()), {})),
    "a negative timestep": ("training_losses", lambda m, x, t: ((m, x, t - 1), {})),
    "a loss of float64": ("training_losses", lambda m, x, t: ((in_float64(m), x, t), {})),
    "a step of float64": ("p_sample", lambda m, x, t: ((in_float64(m), x, t), {})),
    "one timestep for all": ("q_sample", lambda m, x, t: ((x, t[1:2]), {})),
}


@pytest.mark.parametrize("kind", FALLBACKS)
def test_what_falls_back_is_theirs(peer, kind):
    plain, patched, handle = peer.pair()
    name, arguments = FALLBACKS[kind]
    given, options = arguments(peers.network("LEARNED_RANGE"), peers.images(), peers.BATCH)
    wanted, got = peers.of_both(plain, patched, name, *given, **options)
    for part in wanted:
        torch.testing.assert_close(got[part], wanted[part], rtol=1e-5, atol=1e-5, equal_nan=True)
    assert handle.fell_back and all(reason in handle.summary() for reason in handle.fell_back)


def test_cond_fn_is_theirs(peer):
    if "improved" in peer.name:
        pytest.skip("improved-diffusion has no cond_fn")
    plain, patched, handle = peer.pair()
    given = (peers.network("LEARNED_RANGE"), peers.images(), peers.BATCH)
    wanted, got = peers.of_both(plain, patched, "p_sample", *given, cond_fn=half_way, model_kwargs={})
    assert torch.equal(got["sample"], wanted["sample"]) and len(handle.fell_back) == 1


@pytest.mark.parametrize("name", ["twin of improved", "improved_diffusion"])
def test_improved_diffusions_samplers_have_no_cond_fn(name):
    peer = peers.Peer(name)
    patched, model = peer.diffusion(), peers.network("LEARNED_RANGE")
    with fastddpm.patch(patched, force=peer.twin) as handle:
        assert handle.peer.name == "improved_diffusion.GaussianDiffusion"
        for sample in (patched.p_sample, patched.ddim_sample):
            sample(model, peers.images(), peers.BATCH, True, None, {"y": 1})
            with pytest.raises(TypeError):
                sample(model, peers.images(), peers.BATCH, cond_fn=half_way)
    assert [kwargs for _, kwargs in model.calls] == [{"y": 1}] * 2 and not handle.fell_back


def test_an_error_is_theirs(peer):
    plain, patched, _ = peer.pair()
    model, x = peers.network("FIXED_SMALL"), peers.images()
    calls = (
        lambda d: d.training_losses(model, x, peers.BATCH),  # an output without the variance's channels
        lambda d: d.training_losses(model, x, peers.BATCH + 1),
        lambda d: d.q_sample(x, peers.BATCH, x[:1]),
        lambda d: d.ddim_reverse_sample(model, x, peers.BATCH, eta=1.0),
        lambda d: d.p_sample(model, x, peers.BATCH.float()),
        lambda d: d.calc_bpd_loop(model, x.long()),
    )
    for call in calls:
        raised = []
        for diffusion in (plain, patched):
            with pytest.raises(Exception) as error:
                call(diffusion)
            raised.append(error.type)
        assert raised[0] is raised[1]


def test_strict_calls_theirs_in_half_precision(peer):
    plain, patched, handle = peer.pair(strict=True)
    model, x = peers.network("LEARNED_RANGE"), peers.images(torch.float16)
    wanted, got = peers.of_both(plain, patched, "training_losses", model, x, peers.BATCH)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted) and handle.fell_back


@pytest.mark.parametrize("name", ["alphas_cumprod", "posterior_mean_coef1", "sqrt_one_minus_alphas_cumprod"])
def test_a_table_that_is_assigned_is_noticed(peer, name):
    plain, patched, handle = peer.pair()
    model, x = peers.network("LEARNED_RANGE"), peers.images()
    with torch.no_grad():
        patched.ddim_sample(model, x, peers.BATCH)
        assert not handle.fell_back
        for diffusion in (plain, patched):
            setattr(diffusion, name, getattr(diffusion, name) * 0.9)
        wanted, got = peers.of_both(plain, patched, "ddim_sample", model, x, peers.BATCH)
    assert torch.equal(got["sample"], wanted["sample"])
    assert list(handle.fell_back) == ["ddim_sample: tables that do not follow from the betas, or are not of num_timesteps"]


def test_a_table_that_is_written_into_while_another_stands_in_its_place_is_noticed(peer):
    _, patched, handle = peer.pair()
    table = patched.alphas_cumprod

    def step():
        with torch.no_grad():
            patched.ddim_sample(peers.network("LEARNED_RANGE"), peers.images(), peers.BATCH)
        return sum(handle.fell_back.values())

    assert step() == 0
    patched.alphas_cumprod = table * 0.9
    assert step() == 1
    table *= 0.9
    patched.alphas_cumprod = table
    assert step() == 2


def test_a_number_of_timesteps_that_is_assigned_is_noticed(peer):
    plain, patched, handle = peer.pair()
    model, x = peers.network("LEARNED_RANGE"), peers.images()
    patched.calc_bpd_loop(model, x)
    assert not handle.fell_back
    for diffusion in (plain, patched):
        diffusion.num_timesteps = 10
    wanted, got = peers.of_both(plain, patched, "calc_bpd_loop", model, x)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted) and got["vb"].shape == (len(x), 10)


def test_a_type_that_is_assigned_is_noticed(peer):
    plain, patched, handle = peer.pair("EPSILON", "FIXED_SMALL", "MSE")
    x, noise = peers.images(), peers.noise_like(peers.images())
    patched.training_losses(peers.network("FIXED_SMALL"), x, peers.BATCH)
    for diffusion in (plain, patched):
        diffusion.model_mean_type, diffusion.loss_type = peer.code.ModelMeanType.START_X, peer.code.LossType.KL
    wanted, got = (
        d.training_losses(peers.network("FIXED_SMALL"), x, peers.BATCH, noise=noise)["loss"] for d in (plain, patched)
    )
    peers.close(got[1:], wanted[1:], peers.ROUNDING)
    assert not handle.fell_back


# ---- compilers and tracers ----


def test_a_whole_graph_compiles_as_theirs(peer):
    x, noise = peers.images(), peers.noise_like(peers.images())
    graphs = (
        lambda d: d.q_sample(x, peers.BATCH, noise),
        lambda d: d.training_losses(lambda x, t: torch.cat((x, x), 1), x, peers.BATCH, noise=noise)["loss"],
        lambda d: d.ddim_sample(lambda x, t: torch.cat((x, x), 1), x, peers.BATCH)["pred_xstart"],
    )
    plain, patched, handle = peer.pair()
    for graph in graphs:
        torch._dynamo.reset()
        got = torch.compile(lambda graph=graph: graph(patched), backend="eager", fullgraph=True)()
        assert torch.equal(got, graph(plain))
    assert not handle.fell_back


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_transforms_are_of_theirs(peer):
    plain, patched, handle = peer.pair()
    model, x, noise = peers.network("LEARNED_RANGE"), peers.images(), peers.noise_like(peers.images())

    def loss(diffusion):
        def one(x, t, z):
            return diffusion.training_losses(model, x[None], t[None], noise=z[None])["loss"][0]

        return torch.vmap(one)(x, peers.BATCH, noise)

    def slope(diffusion):
        return torch.func.jvp(lambda x: diffusion.ddim_sample(model, x, peers.BATCH)["sample"], (x,), (noise,))[1]

    for transformed in (loss, slope):
        assert torch.equal(transformed(patched), transformed(plain))
    assert not handle.fell_back


def test_a_first_call_of_no_values_leaves_nothing_behind(peer):
    plain, patched, handle = peer.pair()
    model, x, noise = peers.network("LEARNED_RANGE"), peers.images(), peers.noise_like(peers.images())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = patched.q_sample(*map(mode.from_tensor, (x, peers.BATCH, noise)))
        patched.ddim_sample(lambda x, t: torch.cat((x, x), 1), *map(mode.from_tensor, (x, peers.BATCH)))
    assert fake.shape == x.shape and fake.dtype is x.dtype
    handle.fell_back.clear()
    wanted, got = peers.of_both(plain, patched, "ddim_sample", model, x, peers.BATCH)
    peers.close(got["sample"], wanted["sample"], peers.ROUNDING)
    assert not handle.fell_back
