"""The ops by other libraries, where they are installed: as their own training scripts and pipelines call them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from .fused import gradient_of
from .inputs import STEP, Batch

try:
    from diffusers import DDPMPipeline, DDPMScheduler
except ImportError:
    DDPMPipeline = DDPMScheduler = None
try:
    from denoising_diffusion_pytorch import GaussianDiffusion
except ImportError:
    GaussianDiffusion = None


def installed() -> list[str]:
    return [name for name, found in (("diffusers", DDPMScheduler), ("lucidrains", GaussianDiffusion)) if found]


# ---- diffusers ----


def scheduler() -> "DDPMScheduler":
    """With its steps set, as a pipeline has it."""
    made = DDPMScheduler(1000)
    made.set_timesteps(1000)
    return made


def _add_noise(b: Batch):
    ddpm = scheduler()
    return lambda: ddpm.add_noise(b.x_0, torch.randn_like(b.x_0), b.t)


def _chain(b: Batch):
    ddpm = scheduler()

    def call():
        b.output.grad = None
        noise = torch.randn_like(b.x_0)
        x_t = ddpm.add_noise(b.x_0, noise, b.t)
        loss = F.mse_loss(b.output, noise)
        loss.backward()
        return x_t, loss.detach(), b.output.grad

    return call


def _step(b: Batch):
    ddpm, output = scheduler(), b.output.detach()

    def call():
        result = ddpm.step(output, STEP, b.x_0)
        return result.prev_sample, result.pred_original_sample

    return call


def pipeline(network: torch.nn.Module, shape: tuple[int, ...], steps: int) -> Callable[[], Any]:
    """nothing -> images: their pipeline where the network is their U-Net, and its loop where it is not."""
    if hasattr(network, "config"):
        whole = DDPMPipeline(network, DDPMScheduler(1000))
        whole.set_progress_bar_config(disable=True)
        return lambda: whole(shape[0], num_inference_steps=steps, output_type="np")
    ddpm, device = DDPMScheduler(1000), next(network.parameters()).device

    @torch.no_grad()
    def loop():
        ddpm.set_timesteps(steps)
        x = torch.randn(shape, device=device)
        for t in ddpm.timesteps:
            x = ddpm.step(network(x, t.to(device).expand(len(x))), t, x).prev_sample
        return x

    return loop


def _mse(b: Batch):
    return gradient_of(lambda output: F.mse_loss(output, b.noise), b.output)


# ---- lucidrains ----


class Asked(torch.nn.Module):
    """What lucidrains' GaussianDiffusion wants of a network, round any callable (x, t)."""

    self_condition = False

    def __init__(self, network, channels: int):
        super().__init__()
        self.channels = self.out_dim = channels
        self.network = network

    def forward(self, x, t, x_self_cond=None):
        return self.network(x, t)


def lucidrains(network, shape, device) -> "GaussianDiffusion":
    """The same chain, on a network (x, t) -> output."""
    settings = {"objective": "pred_noise", "beta_schedule": "linear", "auto_normalize": False}
    return GaussianDiffusion(Asked(network, shape[1]), image_size=tuple(shape[2:]), timesteps=1000, **settings).to(device)


def _fixed(b: Batch):
    """On a network that always gives the batch's output, and what it saw last."""
    seen = SimpleNamespace(x_t=None, output=b.output.detach())

    def network(x_t, t):
        seen.x_t = x_t
        return seen.output

    return lucidrains(network, b.shape, b.device), seen


def _p_losses(b: Batch):
    diffusion, seen = _fixed(b)
    seen.output = b.output
    call = gradient_of(lambda output: diffusion.p_losses(b.x_0, b.t), b.output)

    def both():
        loss, grad = call()
        return seen.x_t, loss, grad

    return both


def _q_sample(b: Batch):
    diffusion, _ = _fixed(b)
    return lambda: diffusion.q_sample(b.x_0, b.t)


def _p_sample(b: Batch):
    diffusion, _ = _fixed(b)
    return lambda: diffusion.p_sample(b.x_0, STEP)


CALLS = {
    "diffusers": {"noising": _add_noise, "mse": _mse, "chain": _chain, "reverse": _step},
    "lucidrains": {"noising": _q_sample, "chain": _p_losses, "reverse": _p_sample},
}
"""{library: {op: batch -> call}}, installed or not."""
