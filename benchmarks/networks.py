"""The networks of the loop level, from the smallest that is used to one whose cost hides everything else."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Chunk(nn.Module):
    """A residual MLP on chunks of actions [B, 16, 7], its time embedded: of a diffusion policy's size."""

    def __init__(self, horizon: int = 16, actions: int = 7, width: int = 512, blocks: int = 3):
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.inward, self.outward = nn.Linear(horizon * actions, width), nn.Linear(width, horizon * actions)
        self.blocks = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks))
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * torch.arange(width // 2) / (width // 2)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        h = self.inward(x.flatten(1)) + self.time(torch.cat((angles.sin(), angles.cos()), 1))
        for block in self.blocks:
            h = h + block(h)
        return self.outward(h).view_as(x)


DDPM_CIFAR10 = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "time_embedding_type": "positional",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
    "mid_block_scale_factor": 1,
    "attention_head_dim": None,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "center_input_sample": False,
}
"""google/ddpm-cifar10-32's configuration: the U-Net of Ho et al. 2020, 35.7 M parameters."""

SMALL = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "add_attention": False,
    "norm_num_groups": 8,
}


def _unet(config: dict) -> nn.Module:
    from diffusers import UNet2DModel  # without diffusers only the MLP is measured

    return UNet2DModel(**config)


class Network(NamedTuple):
    title: str
    make: Callable[[], nn.Module]
    sample_shape: tuple[int, ...]
    batches: tuple[int, ...]
    needs_diffusers: bool


class Block(nn.Module):
    """Two convolutions with a residual, the time added between them."""

    def __init__(self, inward: int, outward: int, time: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inward), nn.SiLU(), nn.Conv2d(inward, outward, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(8, outward), nn.SiLU(), nn.Conv2d(outward, outward, 3, padding=1))
        self.time, self.skip = nn.Linear(time, outward), nn.Conv2d(inward, outward, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(x) + self.time(time)[:, :, None, None]
        return self.skip(x) + self.second(h)


class UNet(nn.Module):
    """A small U-Net in plain torch: two resolutions, a block on each way."""

    def __init__(self, width: int = 32, time: int = 128):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.inward, self.outward = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.down, self.middle = Block(width, width, time), Block(width, 2 * width, time)
        self.up = Block(3 * width, width, time)
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * torch.arange(width // 2) / (width // 2)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        time = self.time(torch.cat((angles.sin(), angles.cos()), 1))
        fine = self.down(self.inward(x), time)
        coarse = self.middle(nn.functional.avg_pool2d(fine, 2), time)
        both = torch.cat((fine, nn.functional.interpolate(coarse, scale_factor=2.0)), 1)
        return self.outward(self.up(both, time))


NETWORKS = {
    "mlp": Network("MLP on action chunks", Chunk, (16, 7), (1, 16, 128), False),
    "small": Network("small U-Net, 16x16", lambda: _unet(SMALL), (3, 16, 16), (1, 8, 32, 128), True),
    "cifar10": Network("CIFAR-10 U-Net", lambda: _unet(DDPM_CIFAR10), (3, 32, 32), (1, 2, 8, 32, 128), True),
}

OWN = Network("small U-Net of our own, 16x16", UNet, (3, 16, 16), (1, 8, 32, 128), False)
"""Where diffusers is not."""
