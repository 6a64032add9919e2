"""guided-diffusion: cond_fn among the samplers' arguments, and a trainer whose parameters another class keeps."""

from collections.abc import Iterable
from typing import Any

from ..patch import Method, Peer
from .peers import diffusions
from .sampling import ddim_reverse_sample, ddim_sample, p_sample
from .trainer import AVERAGED, READ_ONCE, _compute_norms, _update_ema, trainer


def _parts(loop: Any) -> Iterable[Any]:
    return (loop.diffusion, loop.mp_trainer)


NAME = "guided_diffusion"
ALL = (
    *diffusions(NAME, p_sample, ddim_sample, ddim_reverse_sample),
    trainer(NAME, _parts, Method(_update_ema, AVERAGED)),
    Peer(f"{NAME}.MixedPrecisionTrainer", f"{NAME}.fp16_util", (Method(_compute_norms, READ_ONCE),)),
)
PEERS = {peer.name: peer for peer in ALL}
