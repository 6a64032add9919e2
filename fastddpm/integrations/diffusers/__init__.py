"""diffusers' schedulers with fastddpm's kernels, for those who construct their own.

`from fastddpm.integrations.diffusers import DDPMScheduler`: they read and write diffusers' files, and plain diffusers loads
what they save.
"""

from typing import Any

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
]


def __getattr__(name: str) -> Any:
    """Made when they are asked for: an older diffusers, of which `patch` knows a part, lacks what some of them want."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import schedulers

    return getattr(schedulers, name)
