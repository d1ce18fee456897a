"""An independent eye on the judge: a small network, trained on noised renders, that reads a scene off a picture.

A centre-point detector: a heat map per form and size says where things are, and heads read each thing's radius, colour
and detail at its centre. The judge's pixel rules take no part in it; only the meaning of a check is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowrl.worlds.shapes.forms import half_extents
from flowrl.worlds.shapes.scene import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    DETAILS,
    FLAGS,
    FORMS,
    RADIUS,
    SIZES,
    STYLES,
    Scene,
    Thing,
)

WEIGHTS = Path(__file__).parent / "auditor.safetensors"
"""The auditor of the embedded world."""
STRIDE = 4
MOST_THINGS = 12
SURE, FAINT = 0.5, 0.05
"""Readings of a centre above ``FAINT`` are gathered; a place counts where its readings sum to more than ``SURE``."""
SAME_PLACE, SAME_SIZE = 5.0, 1.5
"""Readings closer than this many pixels, and of sizes in less than this ratio, are readings of one thing."""

KINDS = tuple((form, size) for form in FORMS for size in SIZES)

# Two-coloured things say in their detail on which side the first colour is.
ALL_DETAILS = tuple(dict.fromkeys(("", *(d for details in DETAILS.values() for d in details), "left", "top")))
ATTRIBUTES = {"colour": COLOURS, "second": ("", *COLOURS), "detail": ALL_DETAILS, "style": STYLES}
GLOBALS = {"background": BACKGROUNDS, "style": STYLES, "flag": ("", *FLAGS)}

DETAIL_MASK = torch.tensor(
    [
        [[detail in details for detail in ALL_DETAILS] for details in (DETAILS[form], ("left", "top"))]
        for form, _ in KINDS
    ]
)
"""[kinds, 2, details]: which details a thing of one colour (0) or of two (1) can have."""
NOMINAL = torch.tensor([RADIUS[form][size] for form, size in KINDS])


@dataclass(frozen=True, slots=True)
class Measured(Thing):
    """A thing whose radius is any number of pixels; ``size`` is the nearest of the three."""

    pixels: float = 0.0

    @property
    def radius(self) -> float:
        """Half extent in pixels."""
        return self.pixels


def scene_labels(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """The scenes as arrays: ``things`` float32 [N, MOST_THINGS, 8] and ``whole`` int64 [N, 3].

    A thing's row: its place in ``KINDS`` + 1 (0: none), x, y, radius, then the index of each of ``ATTRIBUTES``.
    """
    things = np.zeros((len(scenes), MOST_THINGS, 4 + len(ATTRIBUTES)), np.float32)
    whole = np.zeros((len(scenes), len(GLOBALS)), np.int64)
    for n, scene in enumerate(scenes):
        whole[n] = [values.index(getattr(scene, name)) for name, values in GLOBALS.items()]
        for m, thing in enumerate(scene.things):
            own = replace(thing, style=thing.style or scene.style)
            attributes = [values.index(getattr(own, name)) for name, values in ATTRIBUTES.items()]
            things[n, m] = [KINDS.index((thing.form, thing.size)) + 1, thing.x, thing.y, thing.radius, *attributes]
    return {"things": things, "whole": whole}


class Reading(NamedTuple):
    """Raw outputs: ``heat`` [B, kinds, h, w] logits, ``offset`` [B, 2, h, w] pixels, ``features`` [B, C, h, w],
    ``whole`` name -> logits [B, ...]."""

    heat: Tensor
    offset: Tensor
    features: Tensor
    whole: dict[str, Tensor]


def _block(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False), nn.GroupNorm(8, outputs), nn.GELU()
    )


class Auditor(nn.Module):
    """Images [B, 3, 64, 64] in 0..1 -> what is where; 2.0 M parameters."""

    def __init__(self, width: int = 160) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, width // 2), _block(width // 2, width, 2), _block(width, width, 2))
        self.body = nn.ModuleList(_block(width, width, dilation=d) for d in (1, 2, 4, 1, 2, 4, 1))
        self.heat = nn.Conv2d(width, len(KINDS), 1)
        nn.init.constant_(self.heat.bias, -4.0)  # type: ignore[arg-type]
        self.offset = nn.Conv2d(width, 2, 1)
        self.kind = nn.Embedding(len(KINDS), width)
        self.read = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
        self.attributes = nn.ModuleDict({n: nn.Linear(2 * width, len(v)) for n, v in ATTRIBUTES.items()})
        self.scale = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.scale.weight)
        self.whole = nn.ModuleDict({n: nn.Linear(2 * width, len(v)) for n, v in GLOBALS.items()})

    def forward(self, images: Tensor) -> Reading:
        x = self.stem(images * 2 - 1)
        for block in self.body:
            x = x + block(x)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return Reading(self.heat(x), self.offset(x), x, {name: head(pooled) for name, head in self.whole.items()})

    def attributes_at(
        self, reading: Reading, rows: Tensor, cells: Tensor, kinds: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Logits of each attribute of K things, and the log of their radius over their size's; image row, flat cell
        and kind, each [K]."""
        features = reading.features.flatten(2)[rows, :, cells]
        hidden = self.read(features + self.kind(kinds))
        return {name: head(hidden) for name, head in self.attributes.items()}, self.scale(hidden).squeeze(1).float()

    @torch.no_grad()
    def scenes(self, images: Tensor, batch: int = 256) -> list[Scene]:
        """The scenes seen in the images."""
        device = next(self.parameters()).device
        return [scene for chunk in images.split(batch) for scene in self._scenes(chunk.to(device))]

    def _scenes(self, images: Tensor) -> list[Scene]:
        reading = self(images)
        heat = reading.heat.sigmoid()
        peak = (heat == F.max_pool2d(heat, 3, 1, 1)) & (heat > FAINT)
        rows, kinds, row, column = peak.nonzero(as_tuple=True)
        cells = row * heat.shape[3] + column
        logits, scale = self.attributes_at(reading, rows, cells, kinds)
        # What a detail can be follows from the form and from whether there is a second colour.
        possible = DETAIL_MASK.to(images.device)[kinds, (logits["second"].argmax(1) > 0).long()]
        logits["detail"] = logits["detail"].masked_fill(~possible, -torch.inf)
        seen = {name: values.argmax(1).tolist() for name, values in logits.items()}
        offset = reading.offset.flatten(2)[rows, :, cells]
        x = ((column + 0.5) * STRIDE + offset[:, 0]).tolist()
        y = ((row + 0.5) * STRIDE + offset[:, 1]).tolist()
        radius = (NOMINAL.to(images.device)[kinds] * scale.exp()).tolist()
        readings: list[list[tuple[float, Measured]]] = [[] for _ in images]
        for k, (image, kind) in enumerate(zip(rows.tolist(), kinds.tolist(), strict=True)):
            values = {name: ATTRIBUTES[name][seen[name][k]] for name in ATTRIBUTES}
            thing = Measured(KINDS[kind][0], x=x[k], y=y[k], size=KINDS[kind][1], pixels=radius[k], **values)
            readings[image].append((heat[image, kind, row[k], column[k]].item(), thing))
        things = [_likeliest(found) for found in readings]
        whole = {name: logits.argmax(1).tolist() for name, logits in reading.whole.items()}
        return [
            Scene(things=tuple(found), **{name: GLOBALS[name][whole[name][i]] for name in GLOBALS})
            for i, found in enumerate(things)
        ]


def _likeliest(readings: list[tuple[float, Measured]]) -> list[Measured]:
    """The likeliest reading of each place, where those of the place add up to more than ``SURE``.

    A thing between two forms, or two sizes, is read as both with half the certainty; it is one thing all the same. One
    thing inside another is told from it by its size.
    """
    places: list[tuple[Measured, list[float]]] = []
    for certainty, thing in sorted(readings, key=lambda reading: -reading[0]):
        for other, certainties in places:
            if _are_one(thing, other):
                certainties.append(certainty)
                break
        else:
            places.append((thing, [certainty]))
    return [thing for thing, certainties in places if sum(certainties) > SURE]


def _are_one(a: Measured, b: Measured) -> bool:
    extents = [max(half_extents(thing.form, "" if thing.second else thing.detail)) * thing.pixels for thing in (a, b)]
    near = (a.x - b.x) ** 2 + (a.y - b.y) ** 2 < SAME_PLACE**2
    return near and max(extents) < SAME_SIZE * min(extents)


def auditor_loss(auditor: Auditor, images: Tensor, things: Tensor, whole: Tensor) -> dict[str, Tensor]:
    """Focal loss of the centres (Zhou et al. 2019, Eq. 1), L1 of offsets, cross-entropy of everything named."""
    reading = auditor(images)
    side = CANVAS // STRIDE
    rows, slots = (things[..., 0] > 0).nonzero(as_tuple=True)
    found = things[rows, slots]
    kinds, x, y = found[:, 0].long() - 1, found[:, 1], found[:, 2]
    column, row = ((v / STRIDE).long().clamp(0, side - 1) for v in (x, y))
    cells = row * side + column
    target = _centre_map(len(images), rows, kinds, x, y, side)
    target.flatten(2)[rows, kinds, cells] = 1.0
    p = reading.heat.float().sigmoid().clamp(1e-5, 1 - 1e-5)
    hit = target == 1
    focal = torch.where(hit, (1 - p) ** 2 * p.log(), (1 - target) ** 4 * p**2 * (1 - p).log())
    heat = -focal.sum() / max(1, len(rows))
    offset = reading.offset.float().flatten(2)[rows, :, cells]
    centre = torch.stack([(column + 0.5) * STRIDE, (row + 0.5) * STRIDE], dim=1)
    place = F.l1_loss(offset, torch.stack([x, y], dim=1) - centre)
    logits, scale = auditor.attributes_at(reading, rows, cells, kinds)
    size = F.l1_loss(scale, (found[:, 3] / NOMINAL.to(images.device)[kinds]).log())
    named = sum(F.cross_entropy(logits[name].float(), found[:, 4 + i].long()) for i, name in enumerate(ATTRIBUTES))
    scene = sum(F.cross_entropy(reading.whole[name].float(), whole[:, i]) for i, name in enumerate(GLOBALS))
    total = torch.as_tensor(heat + 0.1 * place + size + named + scene)
    return {"loss": total, "heat": heat, "size": size, "named": torch.as_tensor(named), "whole": torch.as_tensor(scene)}


def _centre_map(batch: int, rows: Tensor, kinds: Tensor, x: Tensor, y: Tensor, side: int) -> Tensor:
    """[B, kinds, side, side]: a bump of one cell's width around each centre, below 1."""
    grid = (torch.arange(side, device=x.device) + 0.5) * STRIDE
    squared = (grid[None, None, :] - x[:, None, None]) ** 2 + (grid[None, :, None] - y[:, None, None]) ** 2
    bumps = torch.exp(-squared / (2 * STRIDE**2))
    target = torch.zeros(batch, len(KINDS), side, side, device=x.device)
    return target.index_put((rows, kinds), bumps, accumulate=True).clamp(max=0.99)


def save_auditor(auditor: Auditor, path: Path) -> None:
    """Writes the weights, in half precision."""
    from safetensors.torch import save_file

    save_file({name: value.half().cpu().contiguous() for name, value in auditor.state_dict().items()}, path)


def load_auditor(path: Path = WEIGHTS) -> Auditor:
    """The trained auditor, on the CPU."""
    from safetensors.torch import load_file

    auditor = Auditor()
    auditor.load_state_dict(load_file(path))
    return auditor.eval().requires_grad_(False)
