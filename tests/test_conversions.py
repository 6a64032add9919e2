"""NoiseSchedule of other libraries' objects: theirs to their own rounding, and told apart.

diffusers' schedulers are real; OpenAI's and lucidrains' are stood in for by what their sources say that they hold.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import importable

from fastddpm import GaussianDiffusion, NoiseSchedule, noise_key, q_sample, samplers

KINDS = {"linear": {}, "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}, "squaredcos_cap_v2": {}}
OURS = {"linear": NoiseSchedule.linear, "scaled_linear": NoiseSchedule.scaled_linear, "squaredcos_cap_v2": NoiseSchedule.cosine}
SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
with_diffusers = pytest.mark.skipif(not importable("diffusers"), reason="diffusers is not installed")


def scheduler(name="DDPMScheduler", **config):
    import diffusers

    return getattr(diffusers, name)(**config)


def openai(betas, **attributes):
    """guided_diffusion.gaussian_diffusion.GaussianDiffusion: float64 arrays of numpy's."""
    return SimpleNamespace(
        betas=betas, alphas_cumprod=np.cumprod(1 - betas), model_mean_type=1, rescale_timesteps=False, **attributes
    )


def spaced(schedule, steps, **attributes):
    """guided_diffusion.respace.SpacedDiffusion, which makes its betas of the kept abar."""
    abar = schedule.alphas_cumprod.numpy()[steps]
    made = openai(1 - abar / np.concatenate(([1.0], abar[:-1])), timestep_map=list(steps), original_num_steps=len(schedule))
    vars(made).update(attributes)
    return made


def lucidrains(schedule):
    """denoising_diffusion_pytorch.GaussianDiffusion: float64 tables as float32 buffers."""
    made = torch.nn.Module()
    made.objective = "pred_v"
    made.register_buffer("betas", schedule.betas.float())
    made.register_buffer("alphas_cumprod", schedule.alphas_cumprod.float())
    return made


def close(got, expected, rtol):
    np.testing.assert_allclose(got, np.asarray(expected, np.float64), rtol=rtol, atol=0)


@with_diffusers
@pytest.mark.parametrize("num_timesteps", [10, 1000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_of_diffusers(name, kind, num_timesteps):
    """abar to float32's rounding of a thousand products (2e-6 of it), betas to that of one."""
    theirs = scheduler(name, num_train_timesteps=num_timesteps, beta_schedule=kind, **KINDS[kind])
    got, exact = NoiseSchedule.from_diffusers(theirs), OURS[kind](num_timesteps)
    close(got.alphas_cumprod, theirs.alphas_cumprod, 2e-6)
    assert torch.equal(got.betas, theirs.betas.double()) and not got.is_respaced
    close(1 - got.alphas_cumprod, 1 - exact.alphas_cumprod, 3e-7)  # of their own table it is 3e-4
    close(got.posterior_variance[1:], exact.posterior_variance[1:], 4e-7)


@with_diffusers
@pytest.mark.parametrize("kind", ["sigmoid", "laplace"])
def test_betas_of_diffusers_that_no_method_here_makes(kind):
    theirs = scheduler(beta_schedule=kind)
    assert torch.equal(NoiseSchedule.from_diffusers(theirs).betas, theirs.betas.double())


@with_diffusers
@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_zero_terminal_snr_of_diffusers(name):
    """Also where the last abar was made 2^-24, above the one before it."""
    theirs = scheduler(name, rescale_betas_zero_snr=True)
    got = NoiseSchedule.from_diffusers(theirs)
    assert got.has_zero_terminal_snr
    close(got.alphas_cumprod[:-1], theirs.alphas_cumprod[:-1], 2e-6)


@with_diffusers
def test_a_table_put_in_place_of_diffusers_own_is_followed():
    """As trainers that enforce zero terminal SNR do; and other rounding is no other table."""
    theirs = scheduler()
    theirs.alphas_cumprod = NoiseSchedule.linear().zero_terminal_snr().alphas_cumprod.float()
    assert torch.equal(NoiseSchedule.from_diffusers(theirs).alphas_cumprod, theirs.alphas_cumprod.double())
    theirs.alphas_cumprod = scheduler().alphas_cumprod * (1 + 5e-8)
    assert torch.equal(NoiseSchedule.from_diffusers(theirs).betas, theirs.betas.double())
    theirs.alphas_cumprod[0] *= 1 - 1e-6
    assert torch.equal(NoiseSchedule.from_diffusers(theirs).alphas_cumprod, theirs.alphas_cumprod.double())


@pytest.mark.parametrize("ours", [NoiseSchedule.linear(), NoiseSchedule.cosine(50)], ids=repr)
def test_a_schedule_of_openai(ours):
    got = NoiseSchedule.from_openai(openai(ours.betas.numpy()))
    assert torch.equal(got.betas, ours.betas) and torch.equal(got.alphas_cumprod, ours.alphas_cumprod)
    assert torch.equal(got.timesteps, ours.timesteps)


def test_openais_own_arrays():
    from test_golden import GOLDEN, SCHEDULES

    for name in SCHEDULES:
        betas = GOLDEN[f"betas/{name}"]
        close(NoiseSchedule.from_openai(openai(betas)).alphas_cumprod, np.cumprod(1 - betas), 1e-13)


@pytest.mark.parametrize(
    ("num_timesteps", "rescale", "steps", "timesteps"),
    [
        (1000, False, [0, 20, 999], [0, 20, 999]),
        (1000, True, [0, 20, 999], [0, 20, 999]),
        (4000, True, [0, 16, 3996], [0, 4, 999]),
        (4000, False, [0, 3, 3999], [0, 3, 3999]),
        (500, True, [0, 3, 499], [0, 6, 998]),
    ],
)
def test_a_spaced_diffusion_of_openai(num_timesteps, rescale, steps, timesteps):
    """The respaced chain, and what its network is given."""
    whole = NoiseSchedule.linear(num_timesteps, 1e-4, 0.01)
    theirs, expected = spaced(whole, steps, rescale_timesteps=rescale), whole.respace(steps)
    got = NoiseSchedule.from_openai(theirs)
    assert got.timesteps.tolist() == timesteps and got.is_respaced and got.timesteps.dtype == torch.int64
    close(got.alphas_cumprod, theirs.alphas_cumprod, 1e-12)
    close(got.betas, expected.betas, 1e-9)
    assert got.step_at(timesteps[1]) == 1


@pytest.mark.parametrize("ours", [NoiseSchedule.linear(), NoiseSchedule.cosine(), NoiseSchedule.sigmoid(100)], ids=repr)
def test_a_schedule_of_lucidrains(ours):
    """To the rounding of its betas: of 0.999, where 1 - beta keeps four digits less, that is 1.5e-5 of abar_T."""
    got = NoiseSchedule.from_lucidrains(lucidrains(ours))
    close(got.betas, ours.betas, 6e-8)
    close(got.alphas_cumprod, ours.alphas_cumprod, 2e-5)
    close(1 - got.alphas_cumprod, 1 - ours.alphas_cumprod, 1e-7)


OPENAI, LUCID = openai(NoiseSchedule.linear().betas.numpy()), lucidrains(NoiseSchedule.linear())
X, KEY = torch.zeros(2, 3), noise_key(0, 0, 2)
OTHERS = {
    "from_openai": (lambda: OPENAI, "got SimpleNamespace"),
    "from_lucidrains": (lambda: LUCID, "got Module"),
    "from_diffusers": (scheduler, "got DDPMScheduler"),
}


@pytest.mark.parametrize(
    "maker", [pytest.param(maker, marks=with_diffusers if "diffusers" in maker else ()) for maker in OTHERS]
)
def test_an_object_in_place_of_a_schedule_is_told_its_method(maker):
    make, got = OTHERS[maker]
    source = make()
    uses = (lambda: q_sample(X, 0, source, KEY), lambda: GaussianDiffusion(source), lambda: samplers.ddim(source))
    wrong = next(method for method in OTHERS if method != maker)
    for use in (*uses, lambda: getattr(NoiseSchedule, wrong)(source)):
        with pytest.raises(
            TypeError, match=rf"(schedule|diffusion|scheduler): expected .*{got} \(NoiseSchedule.{maker} makes one"
        ):
            use()
    assert len(getattr(NoiseSchedule, maker)(source)) == 1000


def cut(source, **changes):
    return SimpleNamespace(**{**vars(source), **changes})


BAD = {
    "no object of theirs": (
        "from_openai",
        lambda: X,
        TypeError,
        r"diffusion: expected a GaussianDiffusion .*, got float32 \[2, 3\]",
    ),
    "a schedule": ("from_lucidrains", NoiseSchedule.linear, TypeError, "diffusion: .*, got NoiseSchedule$"),
    "without betas": (
        "from_openai",
        lambda: SimpleNamespace(model_mean_type=1),
        TypeError,
        "diffusion: .*, got SimpleNamespace$",
    ),
    "two lengths": (
        "from_openai",
        lambda: cut(OPENAI, betas=OPENAI.betas[:-1]),
        ValueError,
        r"diffusion: expected betas and alphas_cumprod of one length, got \[999\] and \[1000\]",
    ),
    "fractions": (
        "from_openai",
        lambda: cut(openai(np.full(4000, 1e-3)), rescale_timesteps=True),
        ValueError,
        r"diffusion: expected timesteps that rescale_timesteps leaves whole numbers, got 1000 t / 4000: make",
    ),
    "a beta too large": ("from_openai", lambda: openai(np.array([0.5, 1.5])), ValueError, r"betas: .*, got 1.5 at index 1"),
    "a rising table": (
        "from_openai",
        lambda: cut(OPENAI, alphas_cumprod=OPENAI.alphas_cumprod[::-1].copy()),
        ValueError,
        "alphas_cumprod: expected values strictly decreasing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    maker, source, error, message = BAD[case]
    with pytest.raises(error, match=message):
        getattr(NoiseSchedule, maker)(source())


@with_diffusers
def test_a_scheduler_of_flows_has_no_such_tables():
    with pytest.raises(
        TypeError, match=r"scheduler: expected .* betas and alphas_cumprod, got FlowMatchEulerDiscreteScheduler$"
    ):
        NoiseSchedule.from_diffusers(scheduler("FlowMatchEulerDiscreteScheduler"))
