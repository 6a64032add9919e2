"""A DDPM trainer on fastddpm's public functions alone: data sets, a small U-Net, exact resume, the command line.

`fastddpm train --data digits` is the quickest way in; in Python it is `train(TrainConfig(data="digits"), "runs/digits")`.
"""

from typing import TYPE_CHECKING, Any

from .config import TrainConfig, UsageError

if TYPE_CHECKING:
    from .trainer import resume, train

__all__ = ["TrainConfig", "UsageError", "resume", "train"]


def __getattr__(name: str) -> Any:
    """`resume` and `train` when they are asked for: they need diffusers, which the command line does without for `info`."""
    if name not in ("resume", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import trainer

    return getattr(trainer, name)
