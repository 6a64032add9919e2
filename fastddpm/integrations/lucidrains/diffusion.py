"""lucidrains' GaussianDiffusion."""

from ..patch import Peer
from . import loss, noising, sampling

PEER = Peer(
    "denoising_diffusion_pytorch.GaussianDiffusion",
    "denoising_diffusion_pytorch.denoising_diffusion_pytorch",
    (*noising.METHODS, *loss.METHODS, *sampling.METHODS),
    left=(
        "immiscible's assignment of noise to images (scipy's, on the CPU)",
        "gradients through the noise, or through the target to x_start",
        "a schedule that divides by 0",
    ),
)
PEERS = {PEER.name: PEER}
