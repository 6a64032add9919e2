"""Every sampler against diffusers' scheduler of the same name, over whole loops with a fixed model and shared noise.

Theirs run in float64 (tests/sampling_loops.py) is the truth. Our rows walked in float64 agree with it; walked in float32 they
are at most twice as far from it as theirs in float32, and 1e-6 of the largest value.
"""

import functools

import pytest
import torch
from helpers import values
from sampling_loops import every, model, scheduler, their_walk, walk

pytest.importorskip("diffusers")

from fastddpm import NoiseSchedule
from fastddpm.samplers import SAMPLERS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, of diffusers' np.array(tensor)

SHAPE = (2, 3, 4, 4)
SPACINGS, PREDICTIONS = ("leading", "trailing", "linspace", "karras", "lcm"), ("epsilon", "sample", "v_prediction")
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
THEIRS = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddim_inverse": ("DDIMInverseScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"beta_start": 1e-4, "beta_end": 0.02}),
    "dpmpp_1": (DPM, {"solver_order": 1}),
    "dpmpp_2m": (DPM, {"solver_order": 2}),
    "dpmpp_3m": (DPM, {"solver_order": 3}),
    "dpmpp_2m_sde": (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc_2": (UNIPC, {"solver_order": 2}),
    "unipc_3": (UNIPC, {"solver_order": 3}),
    "lms": ("LMSDiscreteScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lcm": ("LCMScheduler", {}),
}
SOLVERS = ("dpmpp_1", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc_2", "unipc_3")
KARRAS, ZERO_SNR = (
    ("euler", "heun", "lms", *SOLVERS),
    ("ddpm", "ddim", "ddim_inverse", "euler", "euler_ancestral", *SOLVERS, "lcm"),
)
TOLERANCE = {"ddpm": 1e-9}
"""1e-11 else. Their DDPM adds noise of 1e-10 in a last step from t > 0, where the variance is 0."""


def refused(name, spacing, prediction, steps, total):
    """What theirs refuses, or answers with NaN, or what is no sampler."""
    own = name == "lcm"  # its own spacing, of 50 original steps
    if (spacing == "lcm") != own or (own and steps > 50) or (spacing == "karras" and name not in KARRAS):
        return True
    if spacing == "karras" and steps == 1 and name not in SOLVERS:
        return True  # begins at the first level of "linspace", which for one step is that of the least noise
    if name in SOLVERS and spacing in ("leading", "linspace") and steps == total:
        return True  # S + 1 of T timesteps: some are there twice
    if name == "ddim_inverse" and (spacing == "linspace" or prediction == "sample"):
        return True  # no such spacing; divides by the noise of an image without noise
    # not implemented; combines the outputs of two levels as if they were epsilons
    return (name == "euler_ancestral" and prediction == "sample") or (name == "plms" and prediction != "epsilon")


def cases(total, steps):
    return [case for case in every(THEIRS, SPACINGS, PREDICTIONS, steps) if not refused(*case, total)]


def both(name, spacing, prediction, steps, total, dtype, config=None, options=None, **ours):
    """Their result and ours, in a dtype. The schedule is theirs in float64."""
    kind, settings = THEIRS[name]
    spaced = {"karras": {"use_karras_sigmas": True, "timestep_spacing": "linspace"}, "lcm": {}}
    settings = {
        "num_train_timesteps": total,
        **settings,
        **spaced.get(spacing, {"timestep_spacing": spacing}),
        **(config or {}),
    }
    x, noises = values(*SHAPE, dtype=dtype), values(2 * total, *SHAPE, seed=1)
    network = functools.partial(model, num_timesteps=total)
    mended = name in ("ddim", "plms") and (spacing == "linspace" or not isinstance(steps, int))
    with pytest.MonkeyPatch.context() as patch:
        theirs = scheduler(patch, kind, dtype, prediction_type=prediction, **settings)
        theirs.set_timesteps(**{"num_inference_steps" if isinstance(steps, int) else "timesteps": steps})
        expected = their_walk(patch, theirs, x, noises, network, mended, **(options or {}))
    with pytest.MonkeyPatch.context() as patch:
        schedule = NoiseSchedule.from_alphas_cumprod(scheduler(patch, kind, torch.float64, **settings).alphas_cumprod)
    rows = SAMPLERS[name](schedule, prediction, steps=steps, spacing=spacing, **ours)
    return expected.double(), walk(rows, x, noises, network).double()


def relative(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


def check(name, *case, in_float32=True, factor=2, at_least=0.0, **options):
    truth, ours = both(name, *case, torch.float64, **options)
    assert truth.isfinite().all() and relative(ours, truth) <= TOLERANCE.get(name, 1e-11)
    if in_float32:
        theirs, ours = both(name, *case, torch.float32, **options)
        assert relative(ours, truth) <= max(factor * relative(theirs, truth) + 1e-6, at_least)


@pytest.mark.parametrize(("name", "spacing", "prediction", "steps"), cases(100, (1, 2, 10)))
def test_a_loop(name, spacing, prediction, steps):
    check(name, spacing, prediction, steps, 100)


@pytest.mark.parametrize(
    ("name", "spacing", "prediction", "steps"),
    [case for case in cases(100, (50, 100)) if case[1] in ("trailing", "karras", "lcm")],
)
def test_a_long_loop(name, spacing, prediction, steps):
    """Of the other spacings, and in float32, in the slow lane."""
    check(name, spacing, prediction, steps, 100, in_float32=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spacing", "prediction", "steps"), cases(1000, (1, 2, 10, 50, 1000)))
def test_a_loop_of_a_thousand(name, spacing, prediction, steps):
    """In a thousand steps the roundings of x alone come to some 1e-6: 1e-5 is allowed. In the last step of "karras" LMS follows
    its polynomial far beyond its nodes, which magnifies all roundings, 2e-3 in theirs: three times theirs is."""
    check(name, spacing, prediction, steps, 1000, factor=3 if name == "lms" else 2, at_least=1e-5)


@pytest.mark.parametrize(
    ("name", "spacing", "prediction", "steps"),
    [case for case in cases(100, (2, 10)) if case[0] in ZERO_SNR and case[2] != "epsilon"],
)
def test_zero_terminal_snr(name, spacing, prediction, steps):
    """Euler's, DPM-Solver's and UniPC's last abar is 2^-24 in theirs, and so in ours here."""
    check(name, spacing, prediction, steps, 100, config={"rescale_betas_zero_snr": True})


OFFSET, SMALLEST = {"steps_offset": 1}, {"final_sigmas_type": "sigma_min"}
FULL = {"lower_order_final": False, **SMALLEST}
LEAST_LEVEL = {"set_alpha_to_one": False}
LIST = [99, 70, 33, 20, 4]
OPTIONS = {
    **{
        f"{name} with an offset": (name, "leading", 10, {"config": OFFSET, **OFFSET})
        for name in THEIRS
        if name not in ("ddim_inverse", "lcm")
    },
    **{
        f"{name} to the least level": (name, spacing, 10, {"config": SMALLEST, **SMALLEST})
        for name, spacing in (("euler", "linspace"), ("dpmpp_2m", "linspace"), ("unipc_2", "linspace"), ("dpmpp_3m", "leading"))
    },
    "ddim to the least level": ("ddim", "leading", 10, {"config": LEAST_LEVEL, **SMALLEST}),
    "ddim_inverse from the least level": ("ddim_inverse", "leading", 10, {"config": LEAST_LEVEL, **SMALLEST}),
    "plms to an image": ("plms", "leading", 10, {"config": {"set_alpha_to_one": True}, "final_sigmas_type": "zero"}),
    **{f"ddim of eta {eta}": ("ddim", "trailing", 10, {"options": {"eta": eta}, "eta": eta}) for eta in (0.3, 1.0)},
    **{
        f"{name} clip {clip}": (name, "leading", 10, {"config": {"clip_sample": clip}, "clip_denoised": clip})
        for name, clip in every(("ddpm", "ddim", "ddim_inverse", "heun"), (False, True))
    },
    "heun clipped at 2": (
        "heun",
        "linspace",
        10,
        {"config": {"clip_sample": True, "clip_sample_range": 2.0}, "clip_denoised": True, "clip_range": 2.0},
    ),
    "lcm clipped": ("lcm", "lcm", 4, {"config": {"clip_sample": True}, "clip_denoised": True}),
    "ddim of the clipped epsilon": (
        "ddim",
        "leading",
        10,
        {"options": {"use_clipped_model_output": True, "eta": 0.5}, "use_clipped_model_output": True, "eta": 0.5},
    ),
    "ddpm fixed_large": ("ddpm", "leading", 10, {"config": {"variance_type": "fixed_large"}, "variance_type": "fixed_large"}),
    **{
        f"{name} in {steps} with {flag} {given}": (name, "trailing", steps, {"config": {flag: given}, flag: given})
        for name, steps, flag, given in (
            ("dpmpp_3m", 10, "lower_order_final", False),
            ("dpmpp_3m", 20, "lower_order_final", True),
            ("dpmpp_2m_sde", 20, "euler_at_final", True),
        )
    },
    **{
        f"{name} of full order to the end": (name, "trailing", 10, {"config": FULL, **FULL})
        for name in ("dpmpp_3m", "unipc_3")  # theirs divides inf by inf at sigma 0
    },
    "lms of order 2": ("lms", "linspace", 10, {"options": {"order": 2}, "order": 2}),
    **{f"{name} of a list": (name, "trailing", LIST, {}) for name in ("ddpm", "euler", "heun", "dpmpp_2m", "dpmpp_3m")},
    "euler of fractions": ("euler", "trailing", [98.5, 70.25, 3.125], {}),
    "lcm of a list": ("lcm", "lcm", [99, 49, 9], {}),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_option(option, prediction):
    name, spacing, steps, options = OPTIONS[option]
    if name == "plms" and prediction != "epsilon":
        pytest.skip("epsilon only")
    check(name, spacing, prediction, steps, 100, **options)
