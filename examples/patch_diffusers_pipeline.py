"""A pipeline of diffusers, sampled with fastddpm's kernels in its scheduler: the same images from the same generator."""

import sys

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import fastddpm


def main(steps: int = 50) -> np.ndarray:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(
        8, 1, 1, **blocks, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8
    )  # or a trained one
    pipeline = DDIMPipeline(unet.eval(), DDIMScheduler())
    with fastddpm.patch(pipeline) as patched:
        print(patched.summary())
        images = pipeline(4, torch.Generator().manual_seed(0), num_inference_steps=steps, output_type="np").images
    print(images.shape)  # behind the `with` the pipeline is what it was
    return images


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
