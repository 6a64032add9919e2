"""The ops by other libraries, where they are installed: as their own training scripts and pipelines call them."""

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import solvers
from .eager import guide
from .fused import gradient_of
from .inputs import ROW, STEP, STEPS, Batch

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


def _guided(b: Batch):
    ddpm, output = scheduler(), b.output.detach()

    def call():
        result = ddpm.step(guide(output, b.uncond_output), STEP, b.x_0)
        return result.prev_sample, result.pred_original_sample

    return call


SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def scheduler_of(op: str) -> Any:
    return getattr(importlib.import_module("diffusers"), SCHEDULERS[op])(1000)


def _sampler(op: str):
    def made(b: Batch):
        """At the same step in every call, with what it has kept of those before."""
        s, theirs, step = solvers.Step.of(op, b), scheduler_of(op), STEPS - 1 - ROW
        theirs.set_timesteps(STEPS)
        t = theirs.timesteps[step]
        state = {"_step_index": step, "lower_order_nums": 2, "this_order": 2, "last_sample": s.last}

        def call():
            vars(theirs).update(state, model_outputs=[s.h_2, s.h_1], is_scale_input_called=True)
            result = theirs.step(s.output, t, s.x)
            x_0 = result.pred_original_sample if "pred_original_sample" in result else theirs.model_outputs[-1]
            return result.prev_sample, x_0

        return call

    return made


def pipeline(network: torch.nn.Module, shape: tuple[int, ...], steps: int) -> Callable[[], Any]:
    """nothing -> images: their pipeline where the network is their U-Net, and its loop where it is not."""
    if hasattr(network, "config"):
        whole = DDPMPipeline(network, DDPMScheduler(1000))
        whole.set_progress_bar_config(disable=True)
        return lambda: whole(shape[0], num_inference_steps=steps, output_type="np")
    return sampling_loop(DDPMScheduler(1000), network, shape, steps)


def sampling_loop(theirs: Any, network: torch.nn.Module, shape: tuple[int, ...], steps: int) -> Callable[..., Tensor]:
    """(x_T, drawn where it is not given) -> images: the loop of a pipeline with their scheduler."""
    device = next(network.parameters()).device

    @torch.no_grad()
    def loop(x_t: Tensor | None = None) -> Tensor:
        theirs.set_timesteps(steps)
        x = torch.randn(shape, device=device) if x_t is None else x_t
        for t in theirs.timesteps:
            x = theirs.step(network(x, t.to(device).expand(len(x))), t, x).prev_sample
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
    "diffusers": {
        "noising": _add_noise,
        "mse": _mse,
        "chain": _chain,
        "reverse": _step,
        "guided": _guided,
        **{op: _sampler(op) for op in SCHEDULERS},
    },
    "lucidrains": {"noising": _q_sample, "chain": _p_losses, "reverse": _p_sample},
}
"""{library: {op: batch -> call}}, installed or not."""
