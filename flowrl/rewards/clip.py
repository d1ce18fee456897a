"""CLIP score: the cosine of a prompt and a picture under any open_clip model. The papers' is DFN5B's ViT-H/14."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flowrl.errors import UserError, did_you_mean, listing
from flowrl.hub import SCHEMES, in_worlds
from flowrl.protocols import Scorer
from flowrl.rewards import open_clip_model
from flowrl.rewards.neural import CosineJudge
from flowrl.rewards.open_clip_model import CONFIG, WEIGHTS, Checkpoint
from flowrl.rewards.open_clip_text import tokenizer
from flowrl.rewards.weights import WeightsConfig

REWARD = "reward clip"


class Clip(WeightsConfig, kind="clip"):
    """``source``: an embedded world, a folder (also ``local-dir:PATH``) or a hub id (also ``hf-hub:owner/name``), whose
    ``open_clip_config.json`` gives architecture, image size and preprocessing. Or the name of an architecture of
    open_clip, with its weights in ``pretrained``: a tag of it, or a file.
    """

    source: str = "apple/DFN5B-CLIP-ViT-H-14-378"
    pretrained: str | None = None

    def checkpoint(self) -> Checkpoint:
        """Raises UserError that names what is missing."""
        if self.pretrained is None:
            self._refuse_bare_name()
            weights, config = self.locate(WEIGHTS, CONFIG)
            return open_clip_model.from_config(weights, config, REWARD)
        architecture = open_clip_model.check_architecture(self.source, REWARD)
        found = open_clip_model.pretrained_source(architecture, self.pretrained, REWARD)
        if isinstance(found, Path):
            return open_clip_model.from_file(architecture, found, REWARD)
        return open_clip_model.from_tag(architecture, found, lambda: self._tagged(found), REWARD)

    def _tagged(self, known: dict[str, Any]) -> tuple[Path, ...]:
        """The weights of a tag: on a hub, or at an address."""
        if not known.get("hf_hub"):
            return (open_clip_model.downloaded(known["url"], REWARD),)
        hub_id, _, name = known["hf_hub"].rpartition("/")
        names = (str(Path(name).with_suffix(".safetensors")), name) if name else WEIGHTS
        return self.locate(names, source=f"hf-hub:{hub_id}")

    def _refuse_bare_name(self) -> None:
        """An architecture without weights, or a name that is nothing at all."""
        is_elsewhere = "/" in self.source or self.source.startswith(SCHEMES)
        worlds = in_worlds("scorers/clip")
        if is_elsewhere or self.source in worlds or Path(self.source).expanduser().is_dir():
            return
        import open_clip

        known = open_clip.list_models()
        if self.source in known:
            tags = listing(open_clip.list_pretrained_tags_by_model(self.source))
            raise UserError(
                f"{REWARD}: {self.source} is an architecture; set pretrained to one of its tags ({tags}) or to a file"
            )
        raise UserError(
            f"{REWARD}: source {self.source!r} is neither an embedded world ({listing(worlds)}), nor a folder, nor a "
            f"hub id 'owner/name', nor an architecture of open_clip{did_you_mean(self.source, [*worlds, *known])}"
        )

    def files(self) -> tuple[Path, ...]:
        return self.checkpoint().files

    def identity(self) -> dict[str, Any]:
        """With ``pretrained`` only where it is given."""
        return {name: value for name, value in super().identity().items() if name != "pretrained" or value is not None}

    def load(self, device: torch.device) -> Scorer:
        """About 4 GB of memory for a ViT-H/14."""
        checkpoint = self.checkpoint()
        model, prepare = open_clip_model.load(checkpoint)
        model = model.to(device)
        tokenize = tokenizer(checkpoint.model_cfg, checkpoint.text)

        judge = CosineJudge(model.encode_image, lambda texts: model.encode_text(tokenize(texts).to(device)))
        return self.scorer(prepare, judge, device)
