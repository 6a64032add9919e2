"""A trained run: what sampling and evaluation want of it."""

from pathlib import Path
from typing import NamedTuple

from diffusers import UNet2DModel

from . import checkpoint
from .config import TrainConfig
from .network import make_network


class Run(NamedTuple):
    """The averaged weights, the settings, and the names of the classes, none where it is not class-conditional."""

    network: UNet2DModel
    config: TrainConfig
    classes: tuple[str, ...] = ()


def load_run(folder: Path | str) -> Run:
    """From the last checkpoint; the network in eval mode.

    Raises:
        UsageError: no run there.
    """
    state = checkpoint.load(Path(folder), "cpu")
    config, classes = TrainConfig(**state["config"]), tuple(state.get("classes", ()))
    network = make_network(config, state["image_shape"], len(classes))
    network.load_state_dict(state["average"])
    return Run(network.eval(), config, classes)
