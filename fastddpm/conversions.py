"""The tables that other libraries' schedules hold, by what their objects are seen to have: nothing of theirs is imported."""

from typing import Any

import torch
from torch import Tensor

from .checks import describe

MARKS = {
    "from_diffusers": ("a scheduler of diffusers that has betas and alphas_cumprod", "set_timesteps"),
    "from_openai": ("a GaussianDiffusion of guided-diffusion or improved-diffusion", "model_mean_type"),
    "from_lucidrains": ("a GaussianDiffusion of denoising-diffusion-pytorch", "objective"),
}
"""Of `NoiseSchedule`'s classmethod what it takes, and an attribute that tells it."""
NETWORK_STEPS = 1000
"""OpenAI's networks are given timesteps as of so many steps, where `rescale_timesteps` is set."""

RAISED_ZERO = 2.0**-24
"""What some of diffusers' schedulers put in place of an abar of 0; it may lie above the abar before it."""


def maker_of(source: object) -> str | None:
    """The classmethod of `NoiseSchedule` that takes it."""
    if not hasattr(source, "betas") or not hasattr(source, "alphas_cumprod"):
        return None
    return next((maker for maker, (_, mark) in MARKS.items() if hasattr(source, mark)), None)


def told(source: object) -> str:
    """What came, for an error, and how to make a schedule of it."""
    maker = maker_of(source)
    return describe(source) + (f" (NoiseSchedule.{maker} makes one of it)" if maker else "")


def tables_of(maker: str, name: str, source: Any) -> tuple[Tensor, Tensor | None]:
    """float64 betas on the CPU; and abar where it is another table than their product, to the rounding of both.

    A product of betas is better than the abar beside them: in float32 1 - abar has three digits left at t = 0.
    """
    if maker_of(source) != maker:
        raise TypeError(f"{name}: expected {MARKS[maker][0]}, got {told(source)}")
    stored = torch.as_tensor(source.alphas_cumprod).detach().cpu()
    betas, abar = torch.as_tensor(source.betas).detach().cpu().double(), stored.double()
    if betas.dim() != 1 or betas.shape != abar.shape:
        shapes = f"{list(betas.shape)} and {list(abar.shape)}"
        raise ValueError(f"{name}: expected betas and alphas_cumprod of one length, got {shapes}")
    eps = torch.finfo(stored.dtype).eps
    rounding = eps * (1 / (1 - betas).clamp(min=eps)).cumsum(0)  # of 1 - beta and of the product, relative, step upon step
    product = (1 - betas).cumprod(0)
    allowed = torch.where(product > 0, rounding * product, RAISED_ZERO)
    return betas, None if bool(((product - abar).abs() <= allowed).all()) else abar


def openai_timesteps(diffusion: Any) -> Tensor:
    """What an OpenAI diffusion gives its network at each step, as whole numbers."""
    steps = len(diffusion.betas)
    timesteps = torch.as_tensor(getattr(diffusion, "timestep_map", range(steps)), dtype=torch.int64, device="cpu")
    if not getattr(diffusion, "rescale_timesteps", False):
        return timesteps
    original = getattr(diffusion, "original_num_steps", steps)
    if bool((timesteps * NETWORK_STEPS % original).any()):
        raise ValueError(
            f"diffusion: expected timesteps that rescale_timesteps leaves whole numbers, got {NETWORK_STEPS} t / {original}: "
            "make the schedule by NoiseSchedule.from_betas(diffusion.betas), and scale t in front of the network"
        )
    return timesteps * NETWORK_STEPS // original
