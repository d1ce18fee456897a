"""An action's own reward against its siblings' only: G2RPO without MGAI."""

from __future__ import annotations

from flowrl.credit import Peers, Streams
from flowrl.protocols import Advantage


class PerStep(Advantage, kind="per_step"):
    """Each decision is its own group (G2RPO, Eq. 8). With several granularities the rewards are averaged over them
    before normalising, so that there is one advantage per action."""

    peers: Peers = "parent"
    streams: Streams = "mean_reward"
