"""PickScore and ImageReward begin with the eyes of the CLIP scorer: its first layers under other libraries' names."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl.worlds.shapes.scoring.models import State

_EYES = "visual."
_BLOCK = "transformer.resblocks."


def to_pickscore(clip: State) -> State:
    """An open_clip state dict under the names of transformers' CLIPModel."""
    state = {
        "vision_model.embeddings.class_embedding": clip["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": clip["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": clip["visual.positional_embedding"],
        "visual_projection.weight": clip["visual.proj"].T.contiguous(),
        "text_model.embeddings.token_embedding.weight": clip["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": clip["positional_embedding"],
        "text_projection.weight": clip["text_projection"].T.contiguous(),
        "logit_scale": clip["logit_scale"],
    }
    for end in ("weight", "bias"):
        state[f"vision_model.pre_layrnorm.{end}"] = clip[f"visual.ln_pre.{end}"]
        state[f"vision_model.post_layernorm.{end}"] = clip[f"visual.ln_post.{end}"]
        state[f"text_model.final_layer_norm.{end}"] = clip[f"ln_final.{end}"]
    for tower, prefix in (("vision_model", _EYES), ("text_model", "")):
        for name, value in _blocks(clip, prefix).items():
            place = f"{tower}.encoder.layers.{name}"
            if "in_proj_" in name:
                for part, rows in zip("qkv", value.chunk(3), strict=True):
                    state[place.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = rows
            else:
                state[_renamed(place, ("attn.out_proj", "self_attn.out_proj"))] = value
    return state


def to_blip_vision(clip: State, states: Tensor) -> State:
    """An open_clip state dict under the names of BlipVisionModel, which has no norm before its first block.

    ``states`` [N, places + 1, width]: what that norm was given for some pictures; its effect is folded, on average,
    into the embeddings.
    """
    centred = states - states.mean(dim=-1, keepdim=True)
    gain = clip["visual.ln_pre.weight"] / centred.std(dim=-1).mean()
    shift = clip["visual.ln_pre.bias"]

    def folded(values: Tensor) -> Tensor:  # [..., width]: without the mean over the width, as the norm takes it away
        return (values - values.mean(dim=-1, keepdim=True)) * gain

    kernel = clip["visual.conv1.weight"]
    state = {
        "embeddings.class_embedding": folded(clip["visual.class_embedding"]).view(1, 1, -1),
        "embeddings.position_embedding": (folded(clip["visual.positional_embedding"]) + shift).unsqueeze(0),
        "embeddings.patch_embedding.weight": folded(kernel.movedim(0, -1)).movedim(-1, 0).contiguous(),
        "embeddings.patch_embedding.bias": torch.zeros(len(kernel)),
    }
    for end in ("weight", "bias"):
        state[f"post_layernorm.{end}"] = clip[f"visual.ln_post.{end}"]
    for name, value in _blocks(clip, _EYES).items():
        place = f"encoder.layers.{name}".replace("attn.in_proj_", "self_attn.qkv.")
        state[_renamed(place, ("attn.out_proj", "self_attn.projection"))] = value
    return state


def fitting(state: State, wanted: State) -> State:
    """What of a state a smaller network has: the deeper layers are left out."""
    return {name: value for name, value in state.items() if name in wanted and wanted[name].shape == value.shape}


def _blocks(clip: State, prefix: str) -> State:
    start = prefix + _BLOCK
    return {name.removeprefix(start): value for name, value in clip.items() if name.startswith(start)}


def _renamed(name: str, projection: tuple[str, str]) -> str:
    renames = (projection, ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("c_fc", "fc1"), ("c_proj", "fc2"))
    for old, new in renames:
        name = name.replace(old, new)
    return name
