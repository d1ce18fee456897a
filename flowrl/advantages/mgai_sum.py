"""Multi-granularity advantage integration: full G2RPO."""

from __future__ import annotations

from flowrl.credit import Peers, Streams
from flowrl.protocols import Advantage


class MgaiSum(Advantage, kind="mgai_sum"):
    """Normalised within each decision and granularity, summed over granularities (G2RPO, Eq. 11) and rewards,
    clipped after the sum."""

    peers: Peers = "parent"
    streams: Streams = "sum"
