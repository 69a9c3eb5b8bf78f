"""Whether the memory of either process grows with the number of exchanges."""

from __future__ import annotations

import os
from itertools import count
from typing import Any

from async_delta_inference.transport import connect
from harness.exchanges import CopyExchange
from harness.payloads import Payload
from harness.resources import rss_mb
from harness.servers import ServerProcess
from harness.statistics import Series

__all__ = ["soak"]

_WARMUP = 2000
_BATCH = 1000


def soak(server: ServerProcess, payload: Payload, exchanges: int) -> dict[str, Any]:
    """Resident memory before and after, MB, of client and server."""
    with connect(server.uri, payload.spec()) as transport:
        exchange = CopyExchange(transport, count(), payload, Series(server.kind, "copy", payload.name), server.pid)
        _run(exchange, _WARMUP)
        before = rss_mb(os.getpid()), rss_mb(server.pid)
        _run(exchange, exchanges)
        after = rss_mb(os.getpid()), rss_mb(server.pid)
    growth = {who: round(b - a, 3) for who, a, b in zip(("client", "server"), before, after, strict=True)}
    return {"transport": server.kind, "payload": payload.name, "n": exchanges, "growth_mb": growth}


def _run(exchange: CopyExchange, exchanges: int) -> None:
    for done in range(0, exchanges, _BATCH):
        for _ in range(min(_BATCH, exchanges - done)):
            exchange.once()
        exchange.check()
