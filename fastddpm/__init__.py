"""fastddpm: everything in a diffusion model's training and sampling step that is not the network, as fused kernels."""

from importlib.metadata import PackageNotFoundError, version

from . import densities, samplers
from .averaging import ema_update_
from .diffusion import GaussianDiffusion
from .edm import EDM
from .flow_matching import FlowMatching
from .functional import mse_loss, q_sample, q_sample_uniform, q_step, reverse_step, velocity
from .graphs import GraphedSampler, GraphedTrainingStep
from .importance import LossSecondMoment
from .integrations import Patch, patch
from .memory import empty_cache
from .noise import STREAMS, advance, levels, noise_key, randn, timesteps
from .schedule import NoiseSchedule
from .vlb import hybrid_loss, prior_kl, vlb_loss

try:
    __version__ = version("fastddpm")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

__all__ = [
    "EDM",
    "STREAMS",
    "FlowMatching",
    "GaussianDiffusion",
    "GraphedSampler",
    "GraphedTrainingStep",
    "LossSecondMoment",
    "NoiseSchedule",
    "Patch",
    "advance",
    "densities",
    "ema_update_",
    "empty_cache",
    "hybrid_loss",
    "levels",
    "mse_loss",
    "noise_key",
    "patch",
    "prior_kl",
    "q_sample",
    "q_sample_uniform",
    "q_step",
    "randn",
    "reverse_step",
    "samplers",
    "timesteps",
    "velocity",
    "vlb_loss",
]
