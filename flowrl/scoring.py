"""Leaves to rewards: finished latents are decoded, scored and dropped, a chunk at a time.

Axes: P prompts, L leaves, R rewards, B rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowrl.credit import Rewards
from flowrl.plan import Peers, Plan
from flowrl.protocols import Policy, Scorer
from flowrl.types import Prompt, Scores


class Scoring:
    """Collects the rewards of a rollout; ``add`` is the engine's ``on_leaves``.

    A scorer of scope ``group`` judges the leaves of a group together (:meth:`flowrl.plan.Plan.leaf_groups`, by
    ``peers``), so images are held for it, as bytes on the CPU, until :meth:`rewards`. ``images`` keeps those of the
    first ``keep_images`` prompts, by (prompt, leaf column).
    """

    def __init__(
        self,
        policy: Policy,
        scorers: Mapping[str, Scorer],
        weights: Mapping[str, float],
        prompts: Sequence[Prompt],
        plan: Plan,
        peers: Peers,
        *,
        keep_images: int = 0,
    ) -> None:
        self.policy, self.scorers, self.prompts, self.plan = policy, dict(scorers), prompts, plan
        self.peers: Peers = peers
        self.weights = tuple(weights[name] for name in scorers)
        shape = (len(prompts), len(plan.leaves), len(scorers))
        self.values = torch.zeros(shape, dtype=torch.float64)
        self.valid = torch.zeros(shape, dtype=torch.bool)
        self.parts: dict[str, Tensor] = {}  # [P, L], NaN where there is no answer
        self.images: dict[tuple[int, int], Tensor] = {}
        self._keep_images = keep_images
        self._held: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def add(self, x: Tensor, rows: Sequence[tuple[int, int]]) -> None:
        """``x`` [B, ...] finished latents; ``rows`` (prompt, leaf column) of each."""
        images = self.policy.decode(x)
        for r, (name, scorer) in enumerate(self.scorers.items()):
            if scorer.scope == "image":
                self._record(r, name, rows, scorer.score(images, [self.prompts[p] for p, _ in rows]))
        kept = {row: images[i].cpu() for i, row in enumerate(rows) if row[0] < self._keep_images}
        self.images.update(kept)
        if any(scorer.scope == "group" for scorer in self.scorers.values()):
            held = (images * 255).round().to("cpu", torch.uint8)
            self._held.update(zip(rows, held, strict=True))

    def rewards(self) -> Rewards:
        """What all scorers said, [P, L, R]."""
        judges = [(r, name, s) for r, (name, s) in enumerate(self.scorers.items()) if s.scope == "group"]
        groups = self.plan.leaf_groups(self.peers) if judges else ()
        for p, prompt in enumerate(self.prompts if judges else ()):
            for columns in groups:
                rows = [(p, column) for column in columns]
                images = torch.stack([self._held[row] for row in rows]) / 255
                for r, name, scorer in judges:
                    self._record(r, name, rows, scorer.score(images, [prompt] * len(rows)))
        self._held.clear()
        return Rewards(self.values, self.valid, tuple(self.scorers), self.weights)

    def _record(self, r: int, name: str, rows: Sequence[tuple[int, int]], scores: Scores) -> None:
        prompts, columns = torch.tensor(rows).T
        values = scores.values.detach().double().cpu()
        valid = scores.valid.cpu() & values.isfinite()
        self.values[prompts, columns, r] = values.where(valid, 0.0)
        self.valid[prompts, columns, r] = valid
        for part, of_part in scores.parts.items():
            table = self.parts.setdefault(f"{name}/{part}", torch.full(self.values.shape[:2], torch.nan).double())
            table[prompts, columns] = of_part.detach().double().cpu().where(valid, torch.nan)
