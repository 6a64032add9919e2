"""Subclasses of diffusers' schedulers whose methods are the kernels'."""

import copyreg
from functools import cached_property
from typing import Any, ClassVar

import diffusers

from ...checks import check_one_of
from ..patch import NOISES, Patch, Peer
from . import ddim, ddpm, dpm_solver, euler, euler_ancestral, flow_match_euler, heun, uni_pc


class Kernels:
    """What the subclasses have beside diffusers'.

    Attributes:
        noise: "torch" (the default) draws what diffusers draws; "philox" makes the noise in the kernels. It is the object's,
            and in no config file.
    """

    peer: ClassVar[Peer]
    originals: ClassVar[type]

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

    def __init_subclass__(cls, peer: Peer | None = None) -> None:
        if peer is None:  # a subclass of one of these
            return
        cls.peer, cls.originals = peer, cls.__mro__[2]
        for method in peer.methods:
            setattr(cls, method.name, method.function)
        cls.__module__ = cls.originals.__module__  # a saved pipeline names it, and is to load where fastddpm is not installed

    def __reduce__(self) -> tuple[Any, ...]:
        if type(self) is not globals().get(type(self).__name__):
            return copyreg.__newobj__, (type(self),), vars(self)  # type: ignore[attr-defined]
        return _bare, (type(self).__name__,), vars(self)  # the module that a pickle would look into is diffusers'


def _bare(name: str) -> Any:
    cls = globals()[name]
    return cls.__new__(cls)


class DDPMScheduler(Kernels, diffusers.DDPMScheduler, peer=ddpm.PEER): ...


class DDIMScheduler(Kernels, diffusers.DDIMScheduler, peer=ddim.PEER): ...


class EulerDiscreteScheduler(Kernels, diffusers.EulerDiscreteScheduler, peer=euler.PEER): ...


class EulerAncestralDiscreteScheduler(Kernels, diffusers.EulerAncestralDiscreteScheduler, peer=euler_ancestral.PEER): ...


class HeunDiscreteScheduler(Kernels, diffusers.HeunDiscreteScheduler, peer=heun.PEER): ...


class DPMSolverMultistepScheduler(Kernels, diffusers.DPMSolverMultistepScheduler, peer=dpm_solver.PEER): ...


class UniPCMultistepScheduler(Kernels, diffusers.UniPCMultistepScheduler, peer=uni_pc.PEER): ...


class FlowMatchEulerDiscreteScheduler(Kernels, diffusers.FlowMatchEulerDiscreteScheduler, peer=flow_match_euler.PEER): ...
