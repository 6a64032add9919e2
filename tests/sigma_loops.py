"""diffusers' schedulers that walk a list of sigmas: one and a patched one side by side, over whole loops."""

import pytest
import torch

import fastddpm

diffusers = pytest.importorskip("diffusers")

EULER, ANCESTRAL, HEUN = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"
SOLVER, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
NAMES = (EULER, ANCESTRAL, HEUN, SOLVER, UNIPC)
SDE = {"algorithm_type": "sde-dpmsolver++"}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
X, Z, OUT = torch.randn(3, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
LARGEST = 2e-5
"""Of what theirs and ours differ by, relative to the largest value; theirs alone is that far from float64."""


def pair(name, steps=6, noise="torch", **config):
    """A scheduler and a patched one of the same configuration."""
    plain, patched = (getattr(diffusers, name)(**config) for _ in range(2))
    fastddpm.patch(patched, noise=noise)
    for each in (plain, patched) if steps else ():
        each.set_timesteps(steps)
    return plain, patched


def output_of(x, t):
    """A network of no meaning."""
    return torch.tanh(1.3 * x + float(t) / 1000).to(x.dtype)


def first_sample(plain, dtype=torch.float32):
    torch.manual_seed(0)
    return (torch.randn(2, 3, 4, 4) * plain.init_noise_sigma).to(dtype)


def walked(plain, patched, dtype=torch.float32, **options):
    """Both steps at every timestep, from the same x and the same generator's state."""
    x = first_sample(plain, dtype)
    for t in plain.timesteps:
        given, other = plain.scale_model_input(x, t), patched.scale_model_input(x, t)
        agree(given, other, 0)
        out, state = output_of(given, t), torch.get_rng_state()
        wanted = plain.step(out, t, x, **options)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        came = patched.step(out, t, x, **options)
        assert torch.equal(torch.get_rng_state(), after) and type(wanted) is type(came) and wanted.keys() == came.keys()
        yield (out, t, x, state), wanted, came
        x = wanted.prev_sample


def agree(one, other, largest=LARGEST):
    """Both the same: numbers and texts exactly, tensors nearly, in lists and outputs too."""
    if isinstance(one, torch.Tensor):
        assert one.dtype is other.dtype and one.shape == other.shape
        scale = max(1.0, float(one.detach().double().abs().nan_to_num(0, 0, 0).max())) if one.numel() else 1.0
        assert torch.allclose(other, one, 0, largest * scale, equal_nan=True), (other - one).abs().max()
    elif isinstance(one, (list, tuple)):
        for each, its in zip(one, other, strict=True):
            agree(each, its, largest)
    else:
        assert one == other


def agree_in_all(plain, patched, wanted, came, largest=LARGEST):
    agree(wanted.to_tuple(), came.to_tuple(), largest)
    for name, value in vars(plain).items():
        slope = name == "prev_derivative" and value is not None  # (x - x_0_hat) / sigma has x's rounding over sigma
        by = float(plain.sample.abs().max() / plain.sigmas[plain.step_index - 1]) if slope else 1
        agree(value, vars(patched)[name], largest * max(1, by))


def outcome(call, *arguments, **options):
    try:
        return call(*arguments, **options)
    except Exception as error:
        return type(error)


def scaled(plain, patched):
    for each in (plain, patched):
        if hasattr(each, "is_scale_input_called"):
            each.is_scale_input_called = True
    return plain, patched
