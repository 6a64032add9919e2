"""Any pipeline of diffusers: its scheduler is patched."""

from collections.abc import Iterable
from typing import Any

from ..patch import Peer


def _scheduler(pipeline: Any) -> Iterable[Any]:
    return (pipeline.scheduler,)


PEER = Peer("diffusers.DiffusionPipeline", "diffusers.pipelines.pipeline_utils", parts=_scheduler)
PEERS = {PEER.name: PEER}
