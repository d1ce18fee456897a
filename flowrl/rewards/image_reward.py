"""ImageReward v1.0 (arXiv 2304.05977): BLIP reads prompt and picture together; a head turns that into a number.

The official weights run on transformers' BLIP parts. The keys of the text encoder are the same in both; those of the
vision tower are renamed (``VISION_KEYS``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.errors import UserError, all_of
from flowrl.hub import read_json
from flowrl.protocols import Scorer
from flowrl.rewards.images import as_pictures, as_tensors, crop_centre, normalise, resize_short_side
from flowrl.rewards.weights import WeightsConfig, filled, read_weights
from flowrl.types import Images

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the rewards of the authors' validation set
MAX_LENGTH = 35
TEXT_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps"),
)
HEAD_WIDTH = 64  # of each attention head of the vision tower, where the configuration does not say

VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
UNUSED = ("blip.text_encoder.embeddings.position_ids", "blip.vision_proj.", "blip.text_proj.")
VISION_KEYS = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    ("norm.", "post_layernorm."),
)
"""Parts of the official names and of transformers', each at the beginning or inside a name."""


class ImageReward(WeightsConfig, kind="image_reward"):
    """``vocabulary``: where ``vocab.txt`` is, if neither beside the weights nor in ``bert-base-uncased/`` there."""

    source: str = "THUDM/ImageReward"
    vocabulary: str = "google-bert/bert-base-uncased"

    def files(self) -> tuple[Path, ...]:
        weights, vocabulary = all_of(lambda: self.locate("ImageReward.pt", "med_config.json"), self._vocabulary)
        return *weights, *vocabulary

    def _vocabulary(self) -> tuple[Path, ...]:
        """Beside the weights, where they are there."""
        folder = self.folder("ImageReward.pt")
        beside = () if folder is None else (folder, folder / "bert-base-uncased")
        here = next((str(other) for other in beside if (other / "vocab.txt").is_file()), self.vocabulary)
        return self.locate("vocab.txt", source=here)

    def load(self, device: torch.device) -> Scorer:
        """About 2 GB of memory for the official weights."""
        weights, config, vocabulary = self.files()
        cfg = read_json(config, *TEXT_SIZES)
        model = ImageRewardModel.from_official(read_weights(weights), cfg, weights).to(device)
        tokenize = tokenizer(vocabulary, cfg)

        def judge(pixels: Tensor, texts: Sequence[str]) -> Tensor:
            return model(pixels, *(ids.to(device) for ids in tokenize(texts)))

        return self.scorer(lambda images: prepare(images, model.image_size), judge, device)


class ImageRewardModel(nn.Module):
    """(MLP(BERT with cross attention to ViT)[first token] - MEAN) / STD."""

    def __init__(self, vision: nn.Module, text: nn.Module, head: nn.Module, image_size: int) -> None:
        super().__init__()
        self.vision, self.text, self.head, self.image_size = vision, text, head, image_size

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Rewards [B] of pixels [B, 3, S, S] and token ids [B, L] with their attention mask."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            is_decoder=False,  # the configuration's True only creates the cross attention
        ).last_hidden_state
        return (self.head(read[:, 0]).float().squeeze(-1) - MEAN) / STD

    @classmethod
    def from_official(cls, weights: Mapping[str, Tensor], cfg: Mapping[str, Any], path: Path) -> ImageRewardModel:
        """A model of the sizes that the weights have, filled with them. ``cfg``: ``med_config.json``."""
        try:
            vision, text, head = from_official(weights)
            config = vision_config(vision, cfg)
            widths = head_widths(head)
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} does not hold the weights of an ImageReward: {error}") from error
        return cls(
            filled(lambda: build_vision(config), vision, path),
            filled(lambda: build_text(cfg, config["hidden_size"]), text, path),
            filled(lambda: build_head(widths), head, path),
            config["image_size"],
        )


def from_official(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The official state dict as those of vision tower, text encoder and head. Raises ValueError for a strange key."""
    parts: dict[str, dict[str, Tensor]] = {VISION: {}, TEXT: {}, HEAD: {}}
    for key, value in weights.items():
        if key.startswith(UNUSED):
            continue
        prefix = next((prefix for prefix in parts if key.startswith(prefix)), None)
        if prefix is None:
            raise ValueError(f"unexpected key {key!r}")
        name = key.removeprefix(prefix)
        parts[prefix][vision_name(name) if prefix == VISION else name] = value
    for prefix, part in parts.items():
        if not part:
            raise ValueError(f"no key begins with {prefix}")
    positions = sorted({int(name.split(".")[0]) for name in parts[HEAD]})  # the official ones skip dropouts
    head = {f"{positions.index(int(i))}.{rest}": v for name, v in parts[HEAD].items() for i, rest in [name.split(".")]}
    return parts[VISION], parts[TEXT], head


def vision_name(official: str) -> str:
    """transformers' name of a key of the official vision tower.

    >>> vision_name("blocks.3.attn.proj.bias"), vision_name("norm.weight")
    ('encoder.layers.3.self_attn.projection.bias', 'post_layernorm.weight')
    """
    for old, new in VISION_KEYS:
        official = official.replace(old, new) if old[0] == "." else re.sub(f"^{re.escape(old)}", new, official)
    return official


def official_vision_name(name: str) -> str:
    """The inverse of :func:`vision_name`.

    >>> official_vision_name("encoder.layers.3.self_attn.projection.bias")
    'blocks.3.attn.proj.bias'
    """
    for old, new in VISION_KEYS:
        name = name.replace(new, old) if old[0] == "." else re.sub(f"^{re.escape(new)}", old, name)
    return name


def to_official(model: ImageRewardModel) -> dict[str, Tensor]:
    """The state dict of a model under the official names: what ``ImageReward.pt`` holds."""
    vision = {VISION + official_vision_name(name): value for name, value in model.vision.state_dict().items()}
    text = {TEXT + name: value for name, value in model.text.state_dict().items()}
    return vision | text | {HEAD + name: value for name, value in model.head.state_dict().items()}


def vision_config(vision: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of the vision tower, read off its weights. Only the number of heads may need to be said."""
    width, _, patch, _ = vision["embeddings.patch_embedding.weight"].shape
    patches = vision["embeddings.position_embedding"].shape[1] - 1
    return {
        "hidden_size": width,
        "intermediate_size": vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": 1 + max(int(key.split(".")[2]) for key in vision if key.startswith("encoder.layers.")),
        "num_attention_heads": cfg.get("vision_num_heads", width // HEAD_WIDTH),
        "image_size": patch * round(patches**0.5),
        "patch_size": patch,
    }


def build_vision(config: Mapping[str, int]) -> nn.Module:
    """BLIP's ViT; the official one is timm's, whose layer norms have eps 1e-6 (transformers' default is 1e-5)."""
    from transformers import BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel

    sizes = BlipVisionConfig(**config, hidden_act="gelu", layer_norm_eps=1e-6, attention_dropout=0.0)
    vision: nn.Module = BlipVisionModel(sizes)
    return vision


def build_text(cfg: Mapping[str, Any], vision_width: int) -> nn.Module:
    """BERT with cross attention in every layer. The official ``encoder_width`` is overruled by the vision tower's."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    sizes = BlipTextConfig(
        **{name: cfg[name] for name in TEXT_SIZES},
        encoder_hidden_size=vision_width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        pad_token_id=0,
        bos_token_id=None,
        sep_token_id=None,
        attn_implementation="eager",  # the mask is added to the scores
    )
    text: nn.Module = BlipTextModel(sizes, add_pooling_layer=False)
    return text


def build_head(widths: Sequence[int]) -> nn.Module:
    """Linear layers from one width to the next, without activations; officially 768, 1024, 128, 64, 16, 1."""
    return nn.Sequential(*(nn.Linear(into, out) for into, out in pairwise(widths)))


def head_widths(head: Mapping[str, Tensor]) -> list[int]:
    """The widths that a head's weights have. Raises ValueError where it does not end in one number."""
    shapes = [head[f"{layer}.weight"].shape for layer in range(sum(name.endswith(".weight") for name in head))]
    if shapes[-1][0] != 1:
        raise ValueError(f"the head ends in {shapes[-1][0]} numbers, not in one")
    return [shapes[0][1], *(shape[0] for shape in shapes)]


def tokenizer(vocabulary: Path, cfg: Mapping[str, Any]) -> Callable[[Sequence[str]], tuple[Tensor, Tensor]]:
    """Texts to BERT's ids and mask, [B, max_length] both: cut or padded. The first token stays [CLS]."""
    from transformers import BertTokenizer

    with vocabulary.open(encoding="utf-8") as lines:  # str.splitlines would also split at exotic pieces
        bert = BertTokenizer(vocab={line.rstrip("\n"): index for index, line in enumerate(lines)})
    bert.add_special_tokens({"bos_token": "[DEC]"})
    bert.add_special_tokens({"additional_special_tokens": ["[ENC]"]})  # unused, but a prompt might hold it literally
    if len(bert) > cfg["vocab_size"]:
        raise UserError(f"{vocabulary}: {len(bert)} entries with [DEC] and [ENC]; the model has {cfg['vocab_size']}")
    length = cfg.get("max_length", MAX_LENGTH)

    def tokenize(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = bert(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return found.input_ids, found.attention_mask

    return tokenize


def prepare(images: Images, size: int) -> Tensor:
    """[B, 3, size, size]: the short side to ``size`` on bytes, the centre, and only then RGB, normalised."""
    pictures = [crop_centre(resize_short_side(picture, size), size, rounded=True) for picture in as_pictures(images)]
    return torch.stack([normalise(pixels) for pixels in as_tensors(pictures)])
