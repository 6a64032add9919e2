"""ema_pytorch's EMA: it has torch's multi-tensor calls, and does not use them unless asked."""

from collections.abc import Iterable
from typing import Any

from ..patch import Peer


def _foreach(average: Any) -> Iterable[tuple[str, Any]]:
    return (("use_foreach", True),) if hasattr(average, "use_foreach") else ()


PEER = Peer("ema_pytorch.EMA", "ema_pytorch.ema_pytorch", attributes=_foreach, what="use_foreach: multi-tensor calls")
PEERS = {PEER.name: PEER}
