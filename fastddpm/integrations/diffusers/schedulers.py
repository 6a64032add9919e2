"""Subclasses of diffusers' schedulers whose methods are the kernels'."""

from functools import cached_property
from typing import Any, ClassVar

import diffusers

from ...checks import check_one_of
from ..patch import NOISES, Patch, Peer
from . import ddim, ddpm, dpm_solver, euler, euler_ancestral, heun, noising, sigmas, uni_pc


class Kernels:
    """What the subclasses have beside diffusers'.

    Attributes:
        noise: "torch" (the default) draws what diffusers draws; "philox" makes the noise in the kernels. It is the object's,
            and in no config file.
    """

    peer: ClassVar[Peer]

    @cached_property
    def _fastddpm(self) -> Patch:
        return Patch(self, self.peer)

    @property
    def noise(self) -> str:
        return self._fastddpm.noise

    @noise.setter
    def noise(self, noise: str) -> None:
        check_one_of("noise", noise, NOISES)
        self._fastddpm.noise = noise

    def __init_subclass__(cls) -> None:
        """A saved pipeline names its scheduler's module: diffusers', so that it loads where fastddpm is not installed."""
        cls.__module__ = cls.__mro__[2].__module__

    def __reduce__(self) -> tuple[Any, ...]:
        return _bare, (type(self).__name__,), vars(self)  # the module that a pickle would look into is diffusers'


def _bare(name: str) -> Any:
    cls = globals()[name]
    return cls.__new__(cls)


class DDPMScheduler(Kernels, diffusers.DDPMScheduler):
    peer = ddpm.PEER
    step, add_noise, get_velocity = ddpm.step, noising.add_noise, noising.get_velocity


class DDIMScheduler(Kernels, diffusers.DDIMScheduler):
    peer = ddim.PEER
    step, add_noise, get_velocity = ddim.step, noising.add_noise, noising.get_velocity


class EulerDiscreteScheduler(Kernels, diffusers.EulerDiscreteScheduler):
    peer = euler.PEER
    step, add_noise, get_velocity = euler.step, sigmas.add_noise, sigmas.get_velocity
    scale_model_input = sigmas.scale_model_input


class EulerAncestralDiscreteScheduler(Kernels, diffusers.EulerAncestralDiscreteScheduler):
    peer = euler_ancestral.PEER
    step, add_noise, scale_model_input = euler_ancestral.step, sigmas.add_noise, sigmas.scale_model_input


class HeunDiscreteScheduler(Kernels, diffusers.HeunDiscreteScheduler):
    peer = heun.PEER
    step, add_noise, scale_model_input = heun.step, sigmas.add_noise, heun.scale_model_input


class DPMSolverMultistepScheduler(Kernels, diffusers.DPMSolverMultistepScheduler):
    peer = dpm_solver.PEER
    step, add_noise = dpm_solver.step, sigmas.add_noise


class UniPCMultistepScheduler(Kernels, diffusers.UniPCMultistepScheduler):
    peer = uni_pc.PEER
    step, add_noise = uni_pc.step, sigmas.add_noise
