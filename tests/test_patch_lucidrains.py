"""lucidrains' GaussianDiffusion, patched: every configuration against the original, and every odd call."""

import copy
import itertools
import pickle
import random
import weakref

import lucidrains
import pytest
import torch

import fastddpm
from fastddpm.integrations.draws import drawn_key
from fastddpm.integrations.patch import MARK

pytestmark = pytest.mark.usefixtures("few_are_many")
theirs = lucidrains.module()

OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")
SCHEDULES = ("linear", "cosine", "sigmoid")
SHAPE = (3, 2, 4, 4)
T = torch.tensor([0, 11, 29])
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
METHODS = ("predict_start_from_noise", "predict_noise_from_start", "predict_v", "predict_start_from_v", "q_sample")


class Network(torch.nn.Module):
    """Of no meaning, with what the original asks of a network."""

    channels = out_dim = SHAPE[1]

    def __init__(self, self_condition=False, out=None):
        super().__init__()
        self.self_condition, self.out, self.calls = self_condition, out, 0
        self.scale = torch.nn.Parameter(torch.tensor([1.3]))

    def forward(self, x, t, x_self_cond=None):
        self.calls += 1
        out = torch.tanh(self.scale * x + t.view(-1, 1, 1, 1) / 30) + (0 if x_self_cond is None else 0.1 * x_self_cond)
        return out.to(self.out or x.dtype)


def pair(noise="torch", strict=False, self_condition=False, out=None, to=torch.float32, **options):
    """A diffusion and a patched one."""
    options = {"timesteps": 30, "objective": "pred_v", "image_size": SHAPE[2:], **options}
    plain = theirs.GaussianDiffusion(Network(self_condition, out), **options).to(to)
    patched = copy.deepcopy(plain)
    fastddpm.patch(patched, noise, strict=strict)
    return plain, patched


def data(dtype=torch.float32, seed=3):
    return (torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(dtype)


def both(diffusions, call):
    """What a call returns for the plain one and for the patched, the same generators before and after."""
    results, states = [], []
    for diffusion in diffusions:
        torch.manual_seed(1)
        random.seed(2)
        results.append(call(diffusion))
        states.append((torch.get_rng_state().tolist(), random.getstate()))
    assert states[0] == states[1]
    return results


def agree(wanted, came, error=1e-6):
    if isinstance(wanted, tuple):
        for one, other in zip(wanted, came, strict=True):
            agree(one, other, error)
        return
    assert came.dtype is wanted.dtype
    scale = max(1.0, float(wanted.abs().nan_to_num(0, 0, 0).max()))
    torch.testing.assert_close(came, wanted, rtol=0, atol=error * scale, equal_nan=True)


def trained(diffusion, steps=4, **options):
    """Losses and the gradient of their sum."""
    diffusion.zero_grad()
    losses = [diffusion(data(seed=i), **options) for i in range(steps)]
    torch.stack(losses).sum().backward()
    return (*(loss.detach() for loss in losses), diffusion.model.scale.grad.clone())


def fell_back(diffusion):
    return getattr(diffusion, MARK).fell_back


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_loss_and_its_gradient_are_the_original_s(objective, schedule):
    for snr, self_condition, offset, immiscible in itertools.product((False, True), (False, True), (0.0, 0.1), (False, True)):
        options = {"min_snr_loss_weight": snr, "offset_noise_strength": offset, "immiscible": immiscible}
        diffusions = pair(objective=objective, beta_schedule=schedule, self_condition=self_condition, **options)
        agree(*both(diffusions, trained))
        assert not fell_back(diffusions[1])


def test_self_conditioning_is_tossed_for_as_in_the_original():
    diffusions = pair(self_condition=True)
    agree(*both(diffusions, lambda one: trained(one, 40)))
    assert diffusions[0].model.calls == diffusions[1].model.calls


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_in_double_stays_as_exact(objective):
    diffusions = pair(objective=objective, out=torch.float32)
    wanted, came = both(diffusions, lambda one: one.p_losses(data(torch.float64), T).detach())
    assert wanted.dtype is torch.float64
    agree(wanted, came, error=1e-14)


@pytest.mark.skipif(
    not hasattr(theirs.GaussianDiffusion, "random_times"), reason="a version without times= and loss_reduction="
)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_loss_of_each_image_at_given_times(objective):
    diffusions = pair(objective=objective, min_snr_loss_weight=True)
    wanted, came = both(diffusions, lambda one: trained(one, times=T, loss_reduction="none"))
    assert came[0].shape == (len(T),) and not fell_back(diffusions[1])
    agree(wanted, came)
    agree(*both(diffusions, lambda one: one.p_losses(data(), T, None, None, "none").detach()))


@pytest.mark.parametrize("self_condition", [False, True], ids=["", "self-conditioned"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_images_are_the_original_s(objective, schedule, self_condition):
    diffusions = pair(objective=objective, beta_schedule=schedule, self_condition=self_condition)
    agree(*both(diffusions, lambda one: one.sample(3)), error=1e-5)
    agree(*both(diffusions, lambda one: one.sample(3, return_all_timesteps=True)), error=1e-5)
    for one in diffusions:
        one.sampling_timesteps, one.is_ddim_sampling = 7, True
    for eta in (0.0, 0.4, 1.0):
        for one in diffusions:
            one.ddim_sampling_eta = eta
        agree(*both(diffusions, lambda one: one.sample(3)), error=1e-5)
        agree(*both(diffusions, lambda one: one.sample(3, return_all_timesteps=True)), error=1e-5)
    assert not fell_back(diffusions[1])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_images_of_a_network_in_channels_last_are_the_original_s(objective):
    """Where it predicts the image, what is drawn next has its layout."""
    diffusions = pair(objective=objective, sampling_timesteps=7, ddim_sampling_eta=0.4)
    for one in diffusions:
        one.model.register_forward_hook(lambda model, given, out: out.contiguous(memory_format=torch.channels_last))
    for call in (lambda one: one.p_sample_loop(SHAPE), lambda one: one.ddim_sample(SHAPE)):
        wanted, came = both(diffusions, call)
        agree(wanted, came, error=1e-5)
        assert came.stride() == wanted.stride()


def test_the_default_device_is_not_the_buffers():
    patched = pair(sampling_timesteps=7)[1]
    wanted, came = [], []
    for device, made in (("cpu", wanted), ("meta", came)):
        torch.manual_seed(1)
        with torch.device(device):
            made.append(patched.ddim_sample(SHAPE))
    assert torch.equal(*wanted, *came)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_is_the_original_s(objective):
    diffusions = pair(objective=objective)
    for t in (29, 11, 1, 0):
        agree(*both(diffusions, lambda one, t=t: one.p_sample(data(), t)))
        agree(*both(diffusions, lambda one, t=t: one.p_sample(data(), t, data(seed=4))))
    agree(*both(diffusions, lambda one: one.interpolate(data(), data(seed=4), 5, 0.3)))


def calls(diffusion, dtype):
    """Everything that is replaced, once."""
    x, z = data(dtype), data(dtype, 4)
    made = [diffusion.p_losses(x, T, z.clone()), diffusion.p_losses(x, T), diffusion.q_sample(x, T)]
    made += [getattr(diffusion, name)(x, T, z) for name in METHODS]
    made += [*diffusion.p_sample(x, 12), *diffusion.p_sample(x, 0), diffusion.ddim_sample(SHAPE)]
    return tuple(one.detach() for one in made)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("buffers", DTYPES, ids=str)
def test_every_result_has_the_dtype_that_the_original_gives_it(buffers, objective):
    cases = [(given, out, False) for given in DTYPES for out in (None, torch.bfloat16, torch.float64)]
    for given, out, cast in [*cases, *((given, None, True) for given in DTYPES)]:
        diffusions = pair(objective=objective, to=buffers, out=out, beta_schedule="linear", sampling_timesteps=4)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            wanted, came = both(diffusions, lambda one, given=given: calls(one, given))
        coarsest = max(torch.finfo(dtype).eps for dtype in (buffers, given, out or given, torch.bfloat16 if cast else given))
        agree(wanted, came, error=8 * max(coarsest, 1e-7))
        assert not fell_back(diffusions[1])


# ---- noise ----


@pytest.mark.parametrize("self_condition", [False, True], ids=["", "self-conditioned"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_noise_of_the_kernels_is_its_key_s(objective, self_condition, monkeypatch):
    """With it in the place of torch's normals the original gives the same, and leaves the same state."""

    def normals(shape, device=None):
        return fastddpm.randn(drawn_key(shape[0], torch.device("cpu")), shape) if len(shape) == 4 else randn(shape)

    randn = torch.randn
    monkeypatch.setattr(torch, "randn", normals)
    monkeypatch.setattr(torch, "randn_like", lambda like: normals(like.shape))
    for offset, immiscible in itertools.product((0.0, 0.1), (False, True)):
        options = {"offset_noise_strength": offset, "immiscible": immiscible, "self_condition": self_condition}
        diffusions = pair("philox", objective=objective, ddim_sampling_eta=0.5, sampling_timesteps=6, **options)
        agree(*both(diffusions, trained))
        agree(*both(diffusions, lambda one: one.q_sample(data(), T)))
    for call in (lambda one: one.p_sample(data(), 9), lambda one: one.p_sample_loop(SHAPE), lambda one: one.ddim_sample(SHAPE)):
        agree(*both(diffusions, call), error=1e-5)
    assert not fell_back(diffusions[1])


def test_a_ddim_without_noise_draws_no_key():
    _, patched = pair("philox", sampling_timesteps=6)
    torch.manual_seed(0)
    patched.ddim_sample(SHAPE)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    drawn_key(SHAPE[0], torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("noise", ["torch", "philox"])
def test_offset_noise_goes_into_the_caller_s(noise):
    diffusions = pair(noise, offset_noise_strength=0.1)

    def noised(diffusion):
        z = data(seed=4)
        return diffusion.p_losses(data(), T, z).detach(), z, diffusion.p_losses(data(), T, z, 0.0).detach()

    agree(*both(diffusions, noised))
    assert not torch.equal(noised(diffusions[1])[1], data(seed=4))


# ---- what is not covered ----


def by_x_start(diffusion):
    x = data().requires_grad_()
    loss = diffusion.p_losses(x, T, data(seed=4))
    return (loss.detach(), *torch.autograd.grad(loss, (x, diffusion.model.scale)))


def by_noise(diffusion):
    z = data(seed=4).requires_grad_()
    return torch.autograd.grad(diffusion.q_sample(data(), T, z).square().sum(), z)


def wider(call):
    """Of a network whose output is broadcast."""

    def called(diffusion):
        diffusion.model.register_forward_hook(lambda model, given, out: out[:, :1])
        return call(diffusion)

    return called


UNCOVERED = {
    "a gradient through the target": by_x_start,
    "a gradient through the second tensor": by_noise,
    "a t that is no int64": lambda one: one.q_sample(data(), T.int()),
    "a second tensor of another shape": lambda one: one.q_sample(data(), T, data(seed=4)[:1]),
    "an x that is no floating tensor": lambda one: one.q_sample(data().long(), T, data(seed=4)),
    "p_sample: an unknown objective, or a t": lambda one: one.p_sample(data(), torch.tensor(3)),
    "p_losses: a model's output": wider(lambda one: one.p_losses(data(), T).detach()),
    "p_sample: a model's output": wider(lambda one: one.p_sample(data(), 3)),
    "ddim_sample: a model's output": wider(lambda one: one.ddim_sample(SHAPE)),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("noise", ["torch", "philox"])
@pytest.mark.parametrize("reason", UNCOVERED)
def test_what_is_not_covered_ends_as_the_original_does(reason, noise):
    diffusions = pair(noise, sampling_timesteps=6, self_condition=True, ddim_sampling_eta=0.5)
    for one in diffusions:
        one.register_buffer("unused", None)
    if noise == "philox" and "output" in reason:  # the noise was made before the network was called
        _ended(diffusions[1], UNCOVERED[reason])
    else:
        agree(*both(diffusions, UNCOVERED[reason]))
        assert diffusions[0].model.calls == diffusions[1].model.calls
    assert any(reason in name for name in fell_back(diffusions[1])), fell_back(diffusions[1])


def _ended(diffusion, call):
    torch.manual_seed(1)
    made = call(diffusion)
    assert all(bool(one.isfinite().all()) for one in (made if isinstance(made, tuple) else (made,)))


@pytest.mark.parametrize(("to", "given"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str)
def test_strict_leaves_half_precision_to_the_original(to, given):
    diffusions = pair(strict=True, to=to, sampling_timesteps=4, beta_schedule="linear")
    wanted, came = both(diffusions, lambda one: calls(one, given)[:-1])
    assert all(torch.equal(one, other) for one, other in zip(wanted, came, strict=True))
    assert fell_back(diffusions[1])


def test_strict_leaves_a_half_output_to_the_original():
    diffusions = pair(strict=True, out=torch.float16, objective="pred_noise", sampling_timesteps=4)
    agree(*both(diffusions, lambda one: calls(one, torch.float32)))
    assert {name.split(":")[0] for name in fell_back(diffusions[1])} >= {"p_losses", "p_sample", "ddim_sample"}


def test_a_schedule_that_divides_by_0_is_the_original_s():
    diffusions = pair(objective="pred_x0", sampling_timesteps=30)
    for one in diffusions:
        one.sqrt_recipm1_alphas_cumprod[0] = 0
    agree(*both(diffusions, lambda one: (one.predict_noise_from_start(data(), T, data(seed=4)), one.ddim_sample(SHAPE))))
    assert sum(fell_back(diffusions[1]).values()) >= 2


@pytest.mark.parametrize("call", [lambda one: one.q_sample(data(), T + 1), lambda one: one.p_losses(data(), T - 1)])
def test_a_t_out_of_range_is_refused_by_both(call):
    for one in pair():
        with pytest.raises(RuntimeError, match=r"30|-1"):
            call(one)


def test_a_gradient_comes_through_the_noising():
    agree(*both(pair(objective="pred_noise"), by_x_start))


def test_a_whole_graph_compiles_as_the_original():
    diffusions = pair()
    agree(*both(diffusions, lambda one: torch.compile(one.p_losses, backend="eager", fullgraph=True)(data(), T).detach()))


# ---- a changed schedule ----


def other(diffusion):
    return theirs.GaussianDiffusion(Network(), image_size=SHAPE[2:], timesteps=30, beta_schedule="linear").state_dict()


CHANGES = {
    "read from a file": lambda one: one.load_state_dict(other(one)),
    "another dtype": lambda one: one.double(),
    "assigned": lambda one: [setattr(one, name, value) for name, value in other(one).items() if "." not in name],
    "another objective": lambda one: setattr(one, "objective", "pred_x0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_schedule_is_noticed(change):
    diffusions = pair(sampling_timesteps=4)
    both(diffusions, lambda one: calls(one, torch.float32))
    for one in diffusions:
        CHANGES[change](one)
    agree(*both(diffusions, lambda one: calls(one, torch.float32)), error=1e-5)


def test_a_loop_notices_what_an_average_wrote():
    """ema_pytorch writes into .data, which no version tells of."""
    diffusions = pair(sampling_timesteps=4)
    both(diffusions, lambda one: one.p_sample_loop(SHAPE))
    for one in diffusions:
        for name, buffer in one.named_buffers():
            buffer.data.copy_(other(one)[name])
    agree(*both(diffusions, lambda one: one.ddim_sample(SHAPE)), error=1e-5)
    agree(*both(diffusions, lambda one: one.p_sample_loop(SHAPE)), error=1e-5)


# ---- memory ----


@pytest.mark.parametrize("ddim", [False, True])
def test_no_image_is_kept_that_nobody_asked_for(ddim):
    _, patched = pair(sampling_timesteps=20 if ddim else None)
    seen = []

    def look(model, given):
        seen.append(weakref.ref(given[0]))
        assert sum(one() is not None for one in seen) == 1

    patched.model.register_forward_pre_hook(look)
    patched.sample(2)
    assert len(seen) == (20 if ddim else 30)


# ---- the object ----


def test_undone_it_is_what_it_was():
    plain, patched = pair(sampling_timesteps=4)
    names = list(patched.state_dict())
    assert names == list(plain.state_dict())
    before = [name for name in vars(patched) if name in vars(plain)]
    kept = patched.p_sample
    getattr(patched, MARK).undo()
    assert kept(data(), 0)[0].shape == SHAPE
    assert list(vars(patched)) == list(vars(plain)) == before
    for one, other in zip(*both((plain, patched), lambda one: calls(one, torch.float32)), strict=True):
        assert torch.equal(one, other)


def test_copies_are_patched_for_themselves_and_pickles_are_not():
    _, patched = pair()
    copied, read = copy.deepcopy(patched), pickle.loads(pickle.dumps(patched))
    assert copied.p_losses.__self__ is copied and copied.betas is not patched.betas
    assert read.p_losses.__func__ is type(read).p_losses
    agree(*both((patched, copied), trained))


@pytest.mark.parametrize(
    "name",
    [
        "learned_gaussian_diffusion.LearnedGaussianDiffusion",
        "weighted_objective_gaussian_diffusion.WeightedObjectiveGaussianDiffusion",
        "classifier_free_guidance.GaussianDiffusion",
        "guided_diffusion.GaussianDiffusion",
        "simple_diffusion.GaussianDiffusion",
    ],
)
def test_another_diffusion_is_refused(name):
    module, cls = name.split(".")
    cls = getattr(lucidrains.module(module), cls)
    with pytest.raises(ValueError, match="does not know"):
        fastddpm.patch(cls.__new__(cls))
