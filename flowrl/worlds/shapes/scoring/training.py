"""How the four scorers learn: CLIP from captions, the others from it and from preferences."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flowrl.seeds import derive_seed
from flowrl.worlds.shapes.loop import Loop
from flowrl.worlds.shapes.scoring import transplant
from flowrl.worlds.shapes.scoring.data import Preferences, pairs
from flowrl.worlds.shapes.scoring.models import (
    PIECES,
    State,
    build_clip,
    build_image_reward,
    build_pickscore,
    normalised,
)
from flowrl.worlds.shapes.scoring.reading import Reading
from flowrl.worlds.shapes.scoring.settings import ScorerSettings, Training

Tokenize = Callable[[Sequence[str]], Tensor]
HIDDEN = 0.4  # share of a caption's words
_MOST_SCALE = 100.0  # of the cosines, as CLIP bounds it
_LOOKED_AT = 256  # pictures from which the norm that BLIP lacks is folded
_CALIBRATED = 500  # prompts whose samples set the mean and deviation of ImageReward


@dataclass(frozen=True)
class School:
    """What a training works with: where, on what, until when."""

    settings: ScorerSettings
    device: torch.device
    checkpoint: Path
    options: Mapping[str, Any]
    """``log``, and ``time_limit`` in seconds or none."""

    def train(
        self,
        name: str,
        module: nn.Module,
        batch: Callable[[torch.Generator], dict[str, Tensor]],
        loss: Callable[..., dict[str, Tensor]],
    ) -> list[dict[str, float]]:
        """Trains the module in place; returns the losses."""
        how: Training = getattr(self.settings, name)
        loop = Loop(
            name,
            module,
            self.settings,
            steps=how.steps,
            lr=how.lr,
            device=self.device,
            checkpoint=self.checkpoint,
            log=self.options["log"],
            capture=False,  # the number of covered places differs from batch to batch
        )
        history = loop.run(batch, loss, time_limit=self.options["time_limit"])
        module.eval().requires_grad_(False)
        return history


@dataclass(frozen=True)
class Renders:
    """Right and broken pictures: ``images`` uint8 [N, 2, 64, 64, 3], ``ids`` of the captions, labels of the scenes."""

    images: Tensor
    ids: Tensor
    things: Tensor
    whole: Tensor

    @classmethod
    def load(cls, folder: Path, tokenize: Tokenize) -> Renders:
        """What ``make_renders`` wrote."""
        images, things, whole = (torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("images", "things", "whole"))
        captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
        return cls(images, tokenize(captions), things, whole)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows at random."""
        return torch.randint(len(self.images), (count,), generator=generator, device=generator.device).cpu()


def labels(preferences: Preferences, settings: ScorerSettings, name: str) -> NDArray[np.bool_]:
    """Whether the labeller of this scorer preferred the first of each pair, [P, pairs].

    Labellers err as people do: the closer two pictures are in gold, the more often.
    """
    a, b = pairs(preferences.quality.shape[1])
    gap = preferences.quality[:, a] - preferences.quality[:, b]
    chance = 1 / (1 + np.exp(-gap / settings.temperature))
    rng = np.random.default_rng(derive_seed(settings.seed, "labels", name))
    first: NDArray[np.bool_] = rng.random(chance.shape) < chance
    return first


def consistency(preferences: Preferences, first: NDArray[np.bool_]) -> float:
    """The share of labels that agree with gold, among pairs that gold tells apart."""
    a, b = pairs(preferences.quality.shape[1])
    gap = preferences.quality[:, a] - preferences.quality[:, b]
    apart = np.abs(gap) > 1e-6
    return float(((gap > 0) == first)[apart].mean())


def contrastive(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss of features [n, 2, D] (right, broken) and [n, D]; a broken one is one more wrong one to a text."""
    right, broken = normalize(images).unbind(1)
    texts = normalize(texts)
    own = torch.arange(len(texts), device=texts.device)
    scale = scale.clamp(max=_MOST_SCALE)
    of_text = F.cross_entropy(scale * texts @ torch.cat([right, broken]).T, own)
    return 0.5 * (of_text + F.cross_entropy(scale * right @ texts.T, own))


def preference(scores: Tensor, first: Tensor) -> Tensor:
    """Bradley and Terry's loss of scores [P, K], labels [P, pairs]."""
    a, b = pairs(scores.shape[1])
    return F.binary_cross_entropy_with_logits(scores[:, a] - scores[:, b], first.float())


def normalize(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def train_clip(school: School, renders: Renders) -> tuple[Any, list[dict[str, float]]]:
    """A CLIP of renders and captions. While it learns it also names what it sees where (``Reading``)."""
    settings, device = school.settings, school.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "clip"))
        model = build_clip(settings).to(device)
        reading = Reading(settings.vision.width, settings.embed).to(device)
    model.visual.output_tokens = True

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = renders.draw(settings.clip.renders, generator)
        fields = {name: getattr(renders, name)[rows].to(device) for name in ("images", "ids", "things", "whole")}
        return fields

    def loss(images: Tensor, ids: Tensor, things: Tensor, whole: Tensor) -> dict[str, Tensor]:
        features, states = model.visual(normalised(images.flatten(0, 1)))
        matched = contrastive(features.view(*images.shape[:2], -1), model.encode_text(ids), model.logit_scale.exp())
        read = reading(states, features, things.flatten(0, 1), whole.flatten(0, 1))
        return {"loss": matched + settings.reading * read, "contrastive": matched, "reading": read}

    history = school.train("clip", nn.ModuleDict({"model": model, "reading": reading}), batch, loss)
    model.visual.output_tokens = False
    return model, history


def train_hps(school: School, clip: State, renders: Renders, preferences: Preferences, ids: Tensor) -> tuple[Any, Any]:
    """The CLIP scorer, tuned on preferences as HPS was."""
    model = build_clip(school.settings)
    model.load_state_dict(clip)
    return _train_features("hps", school, model, model.encode_image, model.encode_text, renders, preferences, ids)


def train_pickscore(
    school: School, clip: State, renders: Renders, preferences: Preferences, ids: Tensor
) -> tuple[Any, Any]:
    """A smaller network, begun from the CLIP scorer's first layers, tuned on other people's preferences."""
    model = build_pickscore(school.settings)
    own = model.state_dict()
    model.load_state_dict(own | transplant.fitting(transplant.to_pickscore(clip), own))

    def encode_image(x: Tensor) -> Tensor:
        features: Tensor = model.get_image_features(pixel_values=x).pooler_output
        return features

    def encode_text(tokens: Tensor) -> Tensor:
        features: Tensor = model.get_text_features(input_ids=tokens).pooler_output
        return features

    return _train_features("pickscore", school, model, encode_image, encode_text, renders, preferences, ids)


def _train_features(
    name: str,
    school: School,
    model: Any,
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[Tensor], Tensor],
    renders: Renders,
    preferences: Preferences,
    ids: Tensor,
) -> tuple[Any, Any]:
    """Trains a network whose score is a scaled cosine; ``ids`` are those of the preferences' captions."""
    model = model.to(school.device)

    def loss(images: Tensor, ids: Tensor, group_images: Tensor, group_ids: Tensor, first: Tensor) -> dict[str, Tensor]:
        seen = encode_image(normalised(torch.cat([images.flatten(0, 1), group_images.flatten(0, 1)])))
        read = encode_text(torch.cat([ids, group_ids]))
        pairs_, groups = seen.split([images.shape[0] * 2, group_images.shape[0] * group_images.shape[1]])
        scale = model.logit_scale.exp()
        matched = contrastive(pairs_.view(len(images), 2, -1), read[: len(images)], scale)
        groups = normalize(groups.view(*group_images.shape[:2], -1))
        scores = scale.clamp(max=_MOST_SCALE) * (groups * normalize(read[len(images) :])[:, None]).sum(-1)
        preferred = preference(scores, first)
        return {"loss": preferred + 0.5 * matched, "preference": preferred, "contrastive": matched}

    batch = _preference_batch(name, school, renders, preferences, ids)
    return model, school.train(name, model, batch, loss)


def _preference_batch(
    name: str, school: School, renders: Renders, preferences: Preferences, ids: Tensor
) -> Callable[[torch.Generator], dict[str, Tensor]]:
    how: Training = getattr(school.settings, name)
    first = torch.from_numpy(labels(preferences, school.settings, name))
    pictures = torch.from_numpy(preferences.images)

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = renders.draw(how.renders, generator)
        groups = torch.randint(len(pictures), (how.samples,), generator=generator, device=generator.device).cpu()
        fields = {"images": renders.images[rows], "ids": renders.ids[rows]}
        fields |= {"group_images": pictures[groups], "group_ids": ids[groups], "first": first[groups]}
        return {key: value.to(school.device) for key, value in fields.items()}

    return batch


def train_image_reward(
    school: School, clip: State, renders: Renders, preferences: Preferences, ids: Tensor
) -> tuple[Any, Any]:
    """BLIP parts with the CLIP scorer's eyes, which stay as they are; ids are [N, 2, context], with their mask.

    Of renders the right picture is preferred to the broken one and to another caption's. So that the text learns to
    look at the picture, hidden words of right captions are guessed (BERT's lesson, as BLIP was taught to write).
    """
    settings, device = school.settings, school.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "image_reward"))
        model = build_image_reward(settings)
    eyes = transplant.to_blip_vision(clip, _before_norm(settings, clip, renders))
    own = model.vision.state_dict()
    model.vision.load_state_dict(own | transplant.fitting(eyes, own))
    model.vision.requires_grad_(False)
    model = model.to(device)

    def look(images: Tensor) -> Tensor:  # [B, K, ...] -> [B, K, places + 1, width]
        states = model.vision(pixel_values=normalised(images.flatten(0, 1))).last_hidden_state
        return states.view(*images.shape[:2], *states.shape[1:])

    def score(states: Tensor, texts: Tensor) -> Tensor:  # [B, K, ...], [B, 2, context] -> [B, K]
        each = texts.repeat_interleave(states.shape[1], 0)
        return model.head(_read(model, states.flatten(0, 1), *each.unbind(1))[:, 0]).view(states.shape[:2])

    def loss(
        images: Tensor, ids: Tensor, group_images: Tensor, group_ids: Tensor, first: Tensor, hidden: Tensor
    ) -> dict[str, Tensor]:
        seen = look(images)
        right, *wrong = score(torch.cat([seen, seen[:, :1].roll(1, 0)], dim=1), ids).unbind(1)
        told = torch.stack([F.softplus(other - right) for other in wrong]).mean()
        preferred = preference(score(look(group_images), group_ids), first)
        guessed = guessing(model, seen[:, 0], ids, hidden)
        return {"loss": preferred + told + guessed, "preference": preferred, "renders": told, "guessing": guessed}

    pick = _preference_batch("image_reward", school, renders, preferences, ids)

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        fields = pick(generator)
        chance = torch.rand(fields["ids"][:, 0].shape, generator=generator, device=generator.device)
        return fields | {"hidden": chance < HIDDEN}

    history = school.train("image_reward", model, batch, loss)
    _calibrate(model, preferences, ids, settings, device)
    return model, history


def _read(model: Any, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The text's states [B, context, width] before pictures' states [B, places + 1, width]."""
    read: Tensor = model.text(
        input_ids=ids,
        attention_mask=mask,
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
        is_decoder=False,
    ).last_hidden_state
    return read


def guessing(model: Any, seen: Tensor, texts: Tensor, hidden: Tensor) -> Tensor:
    """The cross-entropy of the words at ``hidden`` [B, context], guessed from the picture and the other words.

    ``seen`` are the pictures' states, ``texts`` [B, 2, context] the ids and their mask.
    """
    ids, mask = texts.unbind(1)
    hidden = hidden & (mask > 0)
    states = _read(model, seen, ids.masked_fill(hidden, PIECES.index("[MASK]")), mask)
    return F.cross_entropy(states[hidden] @ model.text.get_input_embeddings().weight.T, ids[hidden])


def _before_norm(settings: ScorerSettings, clip: State, renders: Renders) -> Tensor:
    """What the first norm of the CLIP scorer's eyes is given, for some pictures."""
    model = build_clip(settings)
    model.load_state_dict(clip)
    given: list[Tensor] = []
    model.visual.ln_pre.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        model.encode_image(normalised(renders.images[:_LOOKED_AT, 0]))
    return given[0]


@torch.no_grad()
def _calibrate(
    model: Any, preferences: Preferences, ids: Tensor, settings: ScorerSettings, device: torch.device
) -> None:
    """Gives the last layer the scale at which samples of the base model have mean 0 and deviation 1 in the end."""
    from flowrl.rewards.image_reward import MEAN, STD

    scores = []
    for pictures, tokens in zip(preferences.images[:_CALIBRATED], ids, strict=False):
        pixels = normalised(torch.from_numpy(pictures[: settings.group]).to(device))
        texts = tokens.to(device).expand(len(pixels), *tokens.shape)
        scores.append(model(pixels, *texts.unbind(1)) * STD + MEAN)
    raw = torch.cat(scores)
    last = model.head[-1]
    gain = STD / raw.std()
    last.weight.mul_(gain)
    last.bias.copy_(last.bias * gain + MEAN - raw.mean() * gain)
