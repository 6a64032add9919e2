"""Subclasses of diffusers' schedulers whose methods are the kernels'."""

from functools import cached_property
from typing import Any, ClassVar

import diffusers

from ...checks import check_one_of
from ..patch import NOISES, Patch, Peer
from . import ddim, ddpm, noising


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
