"""The loops that people have: objects of diffusers', OpenAI's and lucidrains' code, patched one by one (docs/integrations.md).

Nothing here is imported before a patch asks for it, and no peer before somebody made an object of it.
"""

from importlib import import_module
from typing import Any

from .patch import Patch, Peer, apply, unknown_source

PEERS = {
    "diffusers.DDPMScheduler": ".diffusers.ddpm",
    "diffusers.DDIMScheduler": ".diffusers.ddim",
    "diffusers.EulerDiscreteScheduler": ".diffusers.euler",
    "diffusers.EulerAncestralDiscreteScheduler": ".diffusers.euler_ancestral",
    "diffusers.HeunDiscreteScheduler": ".diffusers.heun",
    "diffusers.DPMSolverMultistepScheduler": ".diffusers.dpm_solver",
    "diffusers.UniPCMultistepScheduler": ".diffusers.uni_pc",
    "diffusers.FlowMatchEulerDiscreteScheduler": ".diffusers.flow_match_euler",
    "diffusers.DiffusionPipeline": ".diffusers.pipeline",
    "diffusers.EMAModel": ".diffusers.ema",
    "denoising_diffusion_pytorch.GaussianDiffusion": ".lucidrains.diffusion",
    "denoising_diffusion_pytorch.Trainer": ".lucidrains.trainer",
    "ema_pytorch.EMA": ".lucidrains.ema",
    "guided_diffusion.GaussianDiffusion": ".openai.guided",
    "guided_diffusion.SpacedDiffusion": ".openai.guided",
    "guided_diffusion.TrainLoop": ".openai.guided",
    "guided_diffusion.MixedPrecisionTrainer": ".openai.guided",
    "improved_diffusion.GaussianDiffusion": ".openai.improved",
    "improved_diffusion.SpacedDiffusion": ".openai.improved",
    "improved_diffusion.TrainLoop": ".openai.improved",
}
"""The modules whose `PEERS` have the classes that are known, by the class's name and its package's."""

OPENAI = ("guided_diffusion", "improved_diffusion")
COPIED = {
    "gaussian_diffusion.GaussianDiffusion": OPENAI,
    "respace.SpacedDiffusion": OPENAI,
    "train_util.TrainLoop": OPENAI,
    "fp16_util.MixedPrecisionTrainer": OPENAI,
}
"""The packages whose files stand in others', by a class's name and its module's."""


def patch(obj: Any, noise: str = "torch", *, strict: bool = False, force: bool = False, update: bool = False) -> Patch:
    """Puts fastddpm's kernels in the place of an object's own methods. It does what it did, faster, until `undo()`.

    Args:
        obj: a scheduler or pipeline of diffusers, a diffusion or trainer of OpenAI's code or of lucidrains', or another of the
            classes in docs/integrations.md. Only this object is changed, never its class; patch a copy.copy of it too.
        noise: "torch" draws exactly what the original draws, when it draws it; "philox" makes the noise inside the kernels,
            from a key that is drawn from the generator in its place.
        strict: in half precision call the original, whose roundings are coarser than ours.
        force: also patch a class whose methods are others than those that fastddpm knows.
        update: of a trainer, make its Adam or AdamW a `fastddpm.optim.AdamW`, that clips and averages in its step where the
            trainer does.

    Returns:
        A `Patch`: `undo()`, `summary()`, and a context manager.

    Raises:
        TypeError: an object that fastddpm does not know.
        ValueError: one that is patched already, or whose methods (a subclass's, another version's) are not known; an update
            of what has no optimizer.
    """
    return apply(obj, peer_of, noise, strict, force, update)


def peer_of(obj: Any) -> Peer:
    """The first class of obj's, from its own to its bases, that is known. Of OpenAI's files people keep copies, in packages of
    any name: the peer of a copy is the one whose sources it has."""
    for cls in type(obj).__mro__:
        path = cls.__module__.split(".")
        name = f"{path[0]}.{cls.__qualname__}"
        if name in PEERS:
            return _peer(name)
        copied = (f"{package}.{cls.__qualname__}" for package in COPIED.get(f"{path[-1]}.{cls.__qualname__}", ()))
        found = [_peer(name) for name in copied if name in PEERS]
        if found:
            return next((peer for peer in found if not unknown_source(type(obj), peer)), found[0])
    raise TypeError(f"obj: expected one of {', '.join(PEERS)}, got {type(obj).__module__}.{type(obj).__qualname__}")


def _peer(name: str) -> Peer:
    return import_module(PEERS[name], __name__).PEERS[name]


__all__ = ["Patch", "patch"]
