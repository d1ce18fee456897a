"""Models of open_clip out of files that are known beforehand, without the code that a checkpoint might bring along."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.errors import UserError, all_of, did_you_mean, in_short, listing
from flowrl.foreign_code import refuse_auto_map
from flowrl.hub import BARE_HUB_ID, cached_snapshot, read_json, siblings
from flowrl.rewards.images import as_bytes, as_pictures, normalise
from flowrl.rewards.open_clip_text import check_kwargs, text_files
from flowrl.rewards.weights import uninitialised
from flowrl.types import Images

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # the order in which open_clip looks
DOWNLOADS = Path("~/.cache/clip")
"""Where open_clip keeps weights that lie at an address and not on a hub."""


@dataclass(frozen=True)
class Checkpoint:
    """A model of open_clip: what describes it, and every file that it is read from."""

    weights: Path
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] = field(default_factory=dict)
    config: Path | None = None
    """None where the architecture is one of those that ship with open_clip."""
    text: tuple[Path, ...] = ()
    """The tokenizer's files."""
    tower: Path | None = None
    """The configuration of a text tower of transformers."""

    @property
    def files(self) -> tuple[Path, ...]:
        found = (self.weights, self.config, *self.text, self.tower)
        return tuple(dict.fromkeys(path for path in found if path is not None))


def model_config(path: Path) -> dict[str, Any]:
    """The architecture that an ``open_clip_config.json`` describes. Raises UserError where it does not."""
    config: dict[str, Any] = read_json(path, "model_cfg")["model_cfg"]
    if absent := {"embed_dim", "vision_cfg", "text_cfg"} - config.keys():
        raise UserError(f"{path}: model_cfg lacks {listing(absent)}")
    check_kwargs(config["text_cfg"], path)
    name = config["vision_cfg"].get("timm_model_name") or ""
    if ":" in name:
        raise UserError(f"{path}: vision_cfg.timm_model_name {name!r} names a repository, not an architecture of timm")
    return config


def own_towers(model_cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """``model_cfg``; raises UserError where a tower is one of transformers or timm."""
    for part, key in (("text_cfg", "hf_model_name"), ("vision_cfg", "timm_model_name")):
        if model_cfg[part].get(key):
            raise UserError(f"{path}: {part}.{key}: both towers must be open_clip's own; remove it")
    return model_cfg


def from_config(weights: Path, config: Path, what: str) -> Checkpoint:
    """The checkpoint whose ``open_clip_config.json`` is ``config``. Raises UserError that names what is missing."""
    cfg = model_config(config)
    preprocess = read_json(config).get("preprocess_cfg") or {}
    text, tower = all_of(lambda: text_files(cfg, weights.parent, what), lambda: tower_config(cfg, what))
    return Checkpoint(weights, cfg, preprocess, config, text, *tower)


def from_file(architecture: str, weights: Path, what: str) -> Checkpoint:
    """A file of weights of an architecture that ships with open_clip, under open_clip's own transform."""
    cfg = get_model_config(architecture)
    text, tower = all_of(lambda: text_files(cfg, weights.parent, what), lambda: tower_config(cfg, what))
    return Checkpoint(weights, cfg, {}, None, text, *tower)


def from_tag(
    architecture: str, known: Mapping[str, Any], find: Callable[[], tuple[Path, ...]], what: str
) -> Checkpoint:
    """What open_clip knows by a tag; ``find`` gives the weights. The transform is the tag's."""
    cfg = get_model_config(architecture)
    (weights, *_), text, tower = all_of(find, lambda: text_files(cfg, None, what), lambda: tower_config(cfg, what))
    return Checkpoint(weights, cfg, dict(known), None, text, *tower)


def get_model_config(architecture: str) -> dict[str, Any]:
    """Of an architecture that ships with open_clip."""
    import open_clip

    cfg: dict[str, Any] = open_clip.get_model_config(architecture)
    return cfg


def check_architecture(name: str, what: str) -> str:
    """The name as open_clip lists it (it reads ``ViT-B/32`` as ``ViT-B-32``). Raises UserError for another."""
    import open_clip

    known = open_clip.list_models()
    if (found := name.replace("/", "-")) not in known:
        raise UserError(
            f"{what}: source {name!r} is no architecture of open_clip{did_you_mean(found, known)}; pretrained goes "
            "with one of open_clip.list_models(), and not with a folder or a hub id"
        )
    return found


def pretrained_source(architecture: str, pretrained: str, what: str) -> Path | dict[str, Any]:
    """A file of weights, or what open_clip knows of a tag. Raises UserError where it is neither."""
    import open_clip

    known: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, pretrained)
    if known:
        return known
    path = Path(pretrained).expanduser()
    if path.is_file():
        return path
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    beside = [] if path.parent == Path() else [*siblings(path, folders=False)]
    raise UserError(
        f"{what}: pretrained {pretrained!r} is neither a file nor a tag of {architecture} ({listing(tags)})"
        f"{did_you_mean(pretrained, [*tags, *beside])}"
    )


def downloaded(url: str, what: str) -> Path:
    """Where weights at an address lie once they are fetched. Raises UserError with the command that fetches them."""
    path = (DOWNLOADS / url.rsplit("/", 1)[1]).expanduser()
    if not path.is_file():
        raise UserError(
            f"{what}: {path} is missing; fetch it with\n  curl --location --create-dirs --output {path} {url}\n"
            "or set pretrained to the path of the file"
        )
    return path


def tower_config(model_cfg: Mapping[str, Any], what: str) -> tuple[Path, ...]:
    """The ``config.json`` of a text tower of transformers, where there is one. Raises UserError where it is missing or
    names code."""
    hub_id = model_cfg["text_cfg"].get("hf_model_name")
    if not hub_id:
        return ()
    if not BARE_HUB_ID.fullmatch(hub_id):
        raise UserError(f"{what}: text_cfg.hf_model_name {hub_id!r} is no hub id")
    path = cached_snapshot(hub_id, "config.json") / "config.json"
    if not path.is_file():
        raise UserError(
            f"{what}: {hub_id}, its text tower, lacks config.json; fetch it with\n  hf download {hub_id} config.json"
        )
    refuse_auto_map(path)
    return (path,)


def load(checkpoint: Checkpoint) -> tuple[Any, Callable[[Images], Tensor]]:
    """The model in float32, and its transform of B images for inference. Raises UserError where the weights do not
    fit."""
    is_quick, was_quick = (bool(cfg.get("quick_gelu")) for cfg in (checkpoint.model_cfg, checkpoint.preprocess_cfg))
    if checkpoint.config is None and checkpoint.preprocess_cfg and is_quick != was_quick:
        activations = ("GELU", "QuickGELU")
        log.warning(
            "%s: these weights were trained with %s, this architecture has %s; open_clip lists another for them",
            checkpoint.weights,
            activations[was_quick],
            activations[is_quick],
        )
    try:
        with uninitialised():
            model = _build(checkpoint)
    except Exception as error:  # zip, pickle, safetensors and open_clip each have their own
        beside = f" and {CONFIG} beside it" if checkpoint.config is not None else ""
        raise UserError(f"{checkpoint.weights}{beside} are no open_clip model: {in_short(error)}") from error
    return model.float().eval().requires_grad_(False), _transform(model, checkpoint.preprocess_cfg)


def _build(checkpoint: Checkpoint) -> Any:
    """As ``open_clip.create_model`` builds it, from these files and no others."""
    import open_clip

    cfg = deepcopy(checkpoint.model_cfg)
    is_custom = cfg.pop("custom_text", False)
    if checkpoint.tower is not None:
        cfg["text_cfg"] |= {"hf_model_name": str(checkpoint.tower.parent), "hf_model_pretrained": False}
        is_custom = True
    if cfg["vision_cfg"].get("timm_model_name"):
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    custom = open_clip.CoCa if "multimodal_cfg" in cfg else open_clip.CustomTextCLIP
    model = (custom if is_custom else open_clip.CLIP)(**cfg)
    open_clip.load_checkpoint(model, str(checkpoint.weights), strict=True, weights_only=True)
    return model


def _transform(model: Any, values: Mapping[str, Any]) -> Callable[[Images], Tensor]:
    """open_clip's own; tensors that have the model's size already need no picture in between to be the same bits."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    found = merge_preprocess_dict(PreprocessCfg(), dict(values))
    cfg = PreprocessCfg(**found | {"size": model.visual.image_size})
    transform: Callable[[Image], Tensor] = image_transform_v2(cfg, is_train=False)
    height, width = (cfg.size, cfg.size) if isinstance(cfg.size, int) else cfg.size

    def prepare(images: Images) -> Tensor:
        if isinstance(images, Tensor) and images.shape[2:] == (height, width) and height == width:
            pixels = as_bytes(images).float()
            return normalise(pixels / pixels.new_tensor(255), cfg.mean, cfg.std)  # a GPU multiplies by 1 / a number
        return torch.stack([transform(picture) for picture in as_pictures(images)])

    return prepare
