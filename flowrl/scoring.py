"""Leaves to rewards: finished latents are decoded, scored and dropped, a chunk at a time.

Axes: P prompts, L leaves, R rewards, B rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from flowrl.background import Background
from flowrl.credit import Rewards
from flowrl.plan import Peers, Plan
from flowrl.protocols import Policy, Scorer
from flowrl.types import Prompt, Scores

Site = tuple[int, int]
"""A leaf of the iteration: prompt, leaf column."""


class Scoring:
    """Collects the rewards of a rollout; ``add`` is the engine's ``on_leaves``.

    A scorer of scope ``group`` judges the leaves of a group together (:meth:`flowrl.plan.Plan.leaf_groups`, by
    ``peers``), so images are held for it, as bytes on the CPU, until their groups are whole. ``images`` keeps those of
    the first ``keep_images`` prompts, by (prompt, leaf column).

    With ``ahead`` the scorers work on a thread of their own while the rollout goes on, chunk after chunk in the order
    of ``add``, and at most so many chunks wait or are scored; 0: in line. What they say is the same either way. On a
    GPU chunks are decoded there too, on the thread's own stream. Used as a context, its end is the end of all scoring,
    and an exception drops what waits.
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
        ahead: int = 0,
    ) -> None:
        self.policy, self.scorers, self.prompts = policy, dict(scorers), prompts
        self.weights = tuple(weights[name] for name in scorers)
        shape = (len(prompts), len(plan.leaves), len(scorers))
        self.values = torch.zeros(shape, dtype=torch.float64)
        self.valid = torch.zeros(shape, dtype=torch.bool)
        self.parts: dict[str, Tensor] = {}  # [P, L], NaN where there is no answer
        self.images: dict[Site, Tensor] = {}
        self._keep_images = keep_images
        self._beside = Background(ahead)
        by_group = any(scorer.scope == "group" for scorer in self.scorers.values())
        groups = plan.leaf_groups(peers) if by_group else ()
        self._open = [tuple((p, column) for column in group) for p in range(len(prompts)) for group in groups]
        self._held: dict[Site, Tensor] = {}  # images of open groups

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beside.__exit__(kind, value, trace)

    @torch.no_grad()
    def add(self, x: Tensor, rows: Sequence[Site]) -> None:
        """``x`` [B, ...] finished latents; ``rows`` (prompt, leaf column) of each."""
        self._beside.wait_for_room()
        if x.is_cuda:  # decoding uses the VAE alone, and is mostly the launching of small kernels
            self._beside.call(self._decode_and_judge, x, rows)
        else:  # on the processor that the rollout keeps busy
            self._beside.call(self._judge, self.policy.decode(x), rows)

    def rewards(self) -> Rewards:
        """What all scorers said, [P, L, R]."""
        self._beside.finish()
        return Rewards(self.values, self.valid, tuple(self.scorers), self.weights)

    @torch.no_grad()
    def _decode_and_judge(self, x: Tensor, rows: Sequence[Site]) -> None:
        self._judge(self.policy.decode(x), rows)

    @torch.no_grad()
    def _judge(self, images: Tensor, rows: Sequence[Site]) -> None:
        self._ask("image", images, rows)
        self.images.update({row: images[i].cpu() for i, row in enumerate(rows) if row[0] < self._keep_images})
        if self._open:
            self._held.update(zip(rows, (images * 255).round().to("cpu", torch.uint8), strict=True))
            self._judge_whole_groups()

    def _judge_whole_groups(self) -> None:
        whole = [group for group in self._open if all(row in self._held for row in group)]
        for group in whole:
            self._ask("group", torch.stack([self._held[row] for row in group]) / 255, group)
        self._open = [group for group in self._open if group not in whole]
        needed = {row for group in self._open for row in group}
        self._held = {row: image for row, image in self._held.items() if row in needed}

    def _ask(self, scope: str, images: Tensor, rows: Sequence[Site]) -> None:
        """What the scorers of a scope say of images and their prompts."""
        for r, (name, scorer) in enumerate(self.scorers.items()):
            if scorer.scope == scope:
                self._record(r, name, rows, scorer.score(images, [self.prompts[p] for p, _ in rows]))

    def _record(self, r: int, name: str, rows: Sequence[Site], scores: Scores) -> None:
        prompts, columns = torch.tensor(rows).T
        values = scores.values.detach().double().cpu()
        valid = scores.valid.cpu() & values.isfinite()
        self.values[prompts, columns, r] = values.where(valid, 0.0)
        self.valid[prompts, columns, r] = valid
        for part, of_part in scores.parts.items():
            table = self.parts.setdefault(f"{name}/{part}", torch.full(self.values.shape[:2], torch.nan).double())
            table[prompts, columns] = of_part.detach().double().cpu().where(valid, torch.nan)
