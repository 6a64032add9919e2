"""Any pipeline of diffusers: its scheduler is patched."""

from collections.abc import Iterable
from typing import Any

from ..patch import Peer


def _scheduler(pipeline: Any) -> Iterable[Any]:
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        raise ValueError(f"obj: expected a pipeline with a scheduler, got a {type(pipeline).__name__} without one")
    return (scheduler,)


PEER = Peer("diffusers.DiffusionPipeline", "diffusers.pipelines.pipeline_utils", parts=_scheduler)
PEERS = {PEER.name: PEER}
