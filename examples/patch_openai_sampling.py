"""OpenAI's sampling script, with its diffusion on fastddpm's kernels: the same images from the same seed.

    python examples/patch_openai_sampling.py CHECKOUT [steps]

CHECKOUT is one of openai/guided-diffusion (or a copy of it in a project of yours). A trained model is loaded as in its script.
"""

import sys

import torch

import fastddpm


def main(checkout: str, steps: str = "25") -> torch.Tensor:
    sys.path.append(checkout)
    from guided_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults

    torch.manual_seed(0)
    small = {"image_size": 64, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "8", "num_heads": 1}
    chosen = {**model_and_diffusion_defaults(), **small, "learn_sigma": True, "timestep_respacing": steps}
    model, diffusion = create_model_and_diffusion(**chosen)  # then model.load_state_dict(..)
    with fastddpm.patch(diffusion) as patched:  # in one line: fastddpm.patch(diffusion)
        print(patched.summary())
        sample = diffusion.p_sample_loop(model.eval(), (2, 3, 64, 64), clip_denoised=True)
    images = ((sample + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    print(list(images.shape))
    return sample


if __name__ == "__main__":
    main(*sys.argv[1:])
