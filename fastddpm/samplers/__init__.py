"""Samplers: each makes the table of rows that `reverse_step` walks, from the last row to row 0 (docs/samplers.md)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .chain import ddpm
from .dpm_solver import dpmpp, dpmpp_sde
from .levels import Levels, lcm_timesteps
from .linear_multistep import lms, plms
from .one_step import ddim, ddim_inverse, euler, euler_ancestral, heun, lcm
from .sampler import Sampler
from .step_rows import StepRows
from .uni_pc import unipc

SAMPLERS: Mapping[str, Callable[..., StepRows]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "ddim_inverse": ddim_inverse,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_1": partial(dpmpp, order=1),
    "dpmpp_2m": partial(dpmpp, order=2),
    "dpmpp_3m": partial(dpmpp, order=3),
    "dpmpp_2m_sde": partial(dpmpp_sde, order=2),
    "unipc_2": partial(unipc, order=2),
    "unipc_3": partial(unipc, order=3),
    "lms": lms,
    "plms": plms,
    "lcm": lcm,
}
"""By name. All take (schedule, prediction_type, variance_type, clip_denoised, clip_range, steps, spacing, steps_offset)."""

UNDER_GUIDANCE: Mapping[str, Mapping[str, Any]] = {"ddim": {"use_clipped_model_output": True}}
"""Options of a sampler that guidance and thresholding want where x_0_hat is clipped: without this one DDIM's eps_hat is of
another image than its x_0_hat, and falls apart (docs/samplers.md)."""

__all__ = [
    "SAMPLERS",
    "UNDER_GUIDANCE",
    "Levels",
    "Sampler",
    "StepRows",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "dpmpp",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "lcm_timesteps",
    "lms",
    "plms",
    "unipc",
]
