"""The network, and the folder in which diffusers finds it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from .config import GROUPS, TrainConfig

_WIDTHS = (1, 1, 2, 2)
_BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def make_network(config: TrainConfig, image_shape: Sequence[int], classes: int = 0) -> UNet2DModel:
    """A small U-Net for images `[C, H, W]`, its weights a function of the seed; 2 C channels out for a learned variance.

    Of a class-conditional run it is called as `network(x_t, t, class_labels=labels)`; the label `classes` means none.
    """
    channels, height, width = image_shape
    levels = _levels(height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=2 * channels if config.learns_variance else channels,
            layers_per_block=1,
            block_out_channels=tuple(config.width * times for times in _WIDTHS[:levels]),
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=GROUPS,
            add_attention=max(height, width) > 8,  # at 8x8 the convolutions see the whole image
            dropout=config.dropout,
            num_class_embeds=classes + 1 if config.class_conditional else None,
        )


def _levels(height: int, width: int) -> int:
    """As many as the sides can be halved exactly, down to 4 and four at most."""
    levels = 1
    while levels < len(_WIDTHS) and height % 2 == width % 2 == 0 and min(height, width) >= 8:
        height, width, levels = height // 2, width // 2, levels + 1
    return levels


def make_scheduler(config: TrainConfig) -> DDPMScheduler:
    """diffusers' scheduler of the same chain, the same variance and the same spacing of fewer steps."""
    return DDPMScheduler(
        num_train_timesteps=config.timesteps,
        beta_schedule=_BETA_SCHEDULES[config.schedule],
        prediction_type=config.prediction,
        variance_type=config.variance,
        clip_sample=True,
        timestep_spacing="trailing",
    )


def no_pipeline(config: TrainConfig) -> str | None:
    """Why diffusers has no pipeline for such a network, or None."""
    if config.process != "ddpm":
        return f"its DDPMPipeline is not of process {config.process}"
    if config.class_conditional:
        return "its DDPMPipeline gives the network no labels"
    if config.variance == "learned":
        return "its DDPMScheduler takes such an output for the variance, not its logarithm"
    return None


def save_pipeline(network: UNet2DModel, config: TrainConfig, folder: Path) -> None:
    """A folder for `DDPMPipeline.from_pretrained`."""
    DDPMPipeline(network, make_scheduler(config)).save_pretrained(folder)
