"""One terminal reward for every action of a sample: DanceGRPO, MixGRPO, Flow-GRPO."""

from __future__ import annotations

from flowrl.credit import Peers
from flowrl.protocols import Advantage


class Broadcast(Advantage, kind="broadcast"):
    """The image's advantage within its group is given to all of its actions: at each grid step the peers are the
    group's actions, one per sample. ddof 1, eps 1e-8, clip 5 are DanceGRPO's; Flow-GRPO has ddof 0, eps 1e-4."""

    peers: Peers = "step"
