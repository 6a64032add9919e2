"""guided-diffusion."""

from .peers import diffusions
from .sampling import ddim_reverse_sample, ddim_sample, p_sample

PEERS = {peer.name: peer for peer in diffusions("guided_diffusion", p_sample, ddim_sample, ddim_reverse_sample)}
