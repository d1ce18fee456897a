"""A lesson for young eyes: to name the thing at each place of a picture. What it teaches stays, its head does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowrl.worlds.shapes.auditor import ATTRIBUTES, GLOBALS, KINDS
from flowrl.worlds.shapes.scoring.models import PATCH

_COVER = 0.8  # of a thing's radius: a place closer to its middle is covered


class Reading(nn.Module):
    """States of places [B, places, width] and of whole pictures [B, embed] -> how badly they tell the scene."""

    def __init__(self, width: int, embed: int) -> None:
        super().__init__()
        self.sizes = (len(KINDS) + 1, *(len(values) for values in ATTRIBUTES.values()))
        self.places = nn.Linear(width, sum(self.sizes))
        self.whole = nn.ModuleList(nn.Linear(embed, len(values)) for values in GLOBALS.values())

    def forward(self, states: Tensor, whole: Tensor, things: Tensor, about: Tensor) -> Tensor:
        """``things`` [B, M, 8] and ``about`` [B, 3] are ``scene_labels``; returns a mean cross-entropy."""
        kind, *attributes = self.places(states).split(self.sizes, dim=-1)
        truth = thing_at(things, states.shape[1])
        loss = F.cross_entropy(kind.flatten(0, 1), truth[..., 0].flatten())
        covered = truth[..., 0] > 0
        for k, logits in enumerate(attributes, 1):
            loss = loss + F.cross_entropy(logits[covered], truth[..., k][covered])
        for k, head in enumerate(self.whole):
            loss = loss + F.cross_entropy(head(whole), about[:, k])
        return loss / (1 + len(attributes) + len(self.whole))


def thing_at(things: Tensor, places: int) -> Tensor:
    """Kind (0: none) and attributes [B, places, 5] of the smallest thing over each place, of ``things`` [B, M, 8]."""
    side = int(places**0.5)
    centres = torch.arange(side, device=things.device) * PATCH + PATCH / 2
    x, y = centres.repeat(side), centres.repeat_interleave(side)
    away = torch.maximum((things[..., 1, None] - x).abs(), (things[..., 2, None] - y).abs())  # [B, M, places]
    radius = things[..., 3, None]
    covers = (away <= (_COVER * radius).clamp(min=PATCH / 2)) & (things[..., 0, None] > 0)
    smallest = torch.where(covers, radius, torch.inf).argmin(dim=1)  # [B, places]
    labels = things[..., [0, *range(4, things.shape[-1])]].long()
    found = labels.gather(1, smallest[..., None].expand(-1, -1, labels.shape[-1]))
    return torch.where(covers.any(dim=1)[..., None], found, 0)
