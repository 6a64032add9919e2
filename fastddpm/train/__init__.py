"""A DDPM trainer on fastddpm's public functions alone: data sets, a small U-Net, exact resume, the command line.

`fastddpm train --data digits` is the quickest way in; in Python it is `train(TrainConfig(data="digits"), "runs/digits")`.
"""

from .config import TrainConfig, UsageError
from .trainer import resume, train

__all__ = ["TrainConfig", "UsageError", "resume", "train"]
