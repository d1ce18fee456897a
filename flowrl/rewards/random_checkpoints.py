"""Random weights in the scorers' official formats: the same seed gives the same files on every machine.

They prove a protocol without real weights: what scores equal on random weights runs the same code. Every value depends
on the tensor's official name, its shape and the seed alone. Norms and biases are random too: each tensor counts.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.atomic import write_json, write_text
from flowrl.errors import UserError, did_you_mean, listing
from flowrl.rewards.images import CLIP_MEAN, CLIP_STD

SEED = 20251001
LOGIT_SCALE = math.log(100) - 0.0173  # not 100 exactly, so that its use shows
NORM = re.compile(
    r"(^|\.)(ln_\w+|norm\d?|LayerNorm|layer_norm\d|pre_layrnorm|post_layernorm|final_layer_norm)\.(weight|bias)$"
)
Size = Literal["tiny", "full"]
Shapes = Mapping[str, tuple[int, ...]]

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
MED_CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


def make_checkpoint(kind: str, folder: Path, size: Size = "tiny", seed: int = SEED) -> None:
    """Write the official files of a scorer ``kind`` into ``folder``, with random weights.

    ``tiny`` are the official architectures with few narrow layers (15 to 180 MB), ``full`` those of the real weights
    (2 to 4 GB). Raises UserError for a kind that has no weights.
    """
    if kind not in WRITERS:
        raise UserError(f"no random weights for {kind!r}{did_you_mean(kind, WRITERS)} (known: {listing(WRITERS)})")
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[kind](folder, size, seed)


def random_tensors(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """name -> values drawn from a generator of its own, scaled so that a deep network stays finite and sensitive."""
    return {name: _random(name, shape, seed) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    if name.endswith("logit_scale"):
        return torch.full(shape, LOGIT_SCALE)
    generator = torch.Generator().manual_seed((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
    std, mean = _scale(name, shape)
    return torch.randn(shape, generator=generator) * std + mean


def _scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Standard deviation and mean of a tensor."""
    if NORM.search(name):
        return (0.15, 1.0) if name.endswith("weight") else (0.10, 0.0)
    if "token_embedding" in name or "word_embeddings" in name:
        return 0.40, 0.0
    if name.endswith("bias") or any(part in name for part in ("position", "pos_embed", "class_embedding", "cls_token")):
        return 0.05, 0.0
    if len(shape) == 4:
        return 1 / math.sqrt(math.prod(shape[1:])), 0.0
    if len(shape) == 2:
        is_projection = name.endswith(("text_projection", "visual.proj"))  # stored [in, out]
        return 1 / math.sqrt(shape[0] if is_projection else shape[1]), 0.0
    return 0.05, 0.0


def _write_hps(folder: Path, size: Size, seed: int) -> None:
    import open_clip

    cfg = TINY_CLIP if size == "tiny" else open_clip.get_model_config("ViT-H-14")
    weights = {name: value.half() for name, value in random_tensors(_open_clip_shapes(cfg), seed).items()}
    torch.save({"state_dict": weights}, folder / "HPS_v2.1_compressed.pt")
    if size == "tiny":
        write_json(folder / "open_clip_config.json", {"model_cfg": cfg})
        (folder / "model_configs").mkdir(exist_ok=True)
        write_json(folder / "model_configs" / "ViT-H-14.json", cfg)  # where the official package is told of it


def _write_clip(folder: Path, size: Size, seed: int) -> None:
    import open_clip

    tiny = TINY_CLIP | {"vision_cfg": TINY_CLIP["vision_cfg"] | {"image_size": 378}, "quick_gelu": True}
    cfg = tiny if size == "tiny" else open_clip.get_model_config("ViT-H-14-378-quickgelu")
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "squash"}
    write_json(folder / "open_clip_config.json", {"model_cfg": cfg, "preprocess_cfg": preprocess})
    torch.save(random_tensors(_open_clip_shapes(cfg), seed), folder / "open_clip_pytorch_model.bin")


def _open_clip_shapes(cfg: Mapping[str, Any]) -> Shapes:
    import open_clip

    with torch.device("meta"):
        return _shapes_of(open_clip.CLIP(**cfg))


def _shapes_of(module: torch.nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _write_pickscore(folder: Path, size: Size, seed: int) -> None:
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel

    cfg = _pickscore_config(size)
    with torch.device("meta"):
        shapes = _shapes_of(CLIPModel(CLIPConfig.from_dict(cfg)))
    write_json(folder / "config.json", cfg)
    save_file(random_tensors(shapes, seed), folder / "model.safetensors", metadata={"format": "pt"})
    _write_clip_processor(folder / "processor")


def _pickscore_config(size: Size) -> dict[str, Any]:
    """The configuration of a CLIP of 2022: its end-of-text id is 2, which means the highest id."""
    projection = 1024 if size == "full" else 64
    text, vision = ((1024, 16, 24), (1280, 16, 32)) if size == "full" else ((128, 4, 2), (160, 2, 2))

    def tower(name: str, width: int, heads: int, layers: int, **more: int) -> dict[str, Any]:
        return {
            "model_type": f"clip_{name}_model",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "projection_dim": projection,
            **more,
        }

    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": projection,
        "logit_scale_init_value": 2.6592,
        "initializer_factor": 1.0,
        "torch_dtype": "float32",
        "text_config": tower("text", *text, max_position_embeddings=77, vocab_size=49408, **ids),
        "vision_config": tower("vision", *vision, image_size=224, patch_size=14),
    }


def _write_clip_processor(folder: Path) -> None:
    """CLIP's processor with the byte pairs that come with open_clip, in the files that transformers 4 and 5 read."""
    import open_clip
    from open_clip.tokenizer import bytes_to_unicode

    folder.mkdir(exist_ok=True)
    start, end = "<|startoftext|>", "<|endoftext|>"
    pairs = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(pairs.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m.split()) for m in merges), start, end]
    write_json(folder / "vocab.json", {word: index for index, word in enumerate(words)})
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")

    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {"bos_token": start, "eos_token": end, "unk_token": end}
    as_map = {name: {"content": token, **plain} for name, token in special.items()}
    write_json(folder / "special_tokens_map.json", as_map | {"pad_token": end})
    as_config = {name: {"__type": "AddedToken", **token} for name, token in as_map.items()}
    write_json(
        folder / "tokenizer_config.json",
        as_config
        | {"pad_token": end, "add_prefix_space": False, "errors": "replace", "do_lower_case": True}
        | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"},
    )
    steps = {"do_center_crop": True, "do_normalize": True, "do_resize": True}
    sizes = {"size": 224, "crop_size": 224, "resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    write_json(folder / "preprocessor_config.json", {"feature_extractor_type": "CLIPFeatureExtractor"} | steps | sizes)
    write_json(folder / "config.json", {"architectures": ["CLIPModel"], "model_type": "clip"})


def _write_image_reward(folder: Path, size: Size, seed: int) -> None:
    vision = (1024, 24) if size == "full" else (256, 2)
    med = MED_CONFIG | ({} if size == "full" else {"num_hidden_layers": 2})
    weights = random_tensors(dict(_image_reward_shapes(*vision, med)), seed)
    positions = torch.arange(med["max_position_embeddings"])[None]
    torch.save(weights | {"blip.text_encoder.embeddings.position_ids": positions}, folder / "ImageReward.pt")
    write_json(folder / "med_config.json", med)

    bert = folder / "bert-base-uncased"  # where the official package looks, from this folder
    bert.mkdir(exist_ok=True)
    write_text(bert / "vocab.txt", "".join(f"{piece}\n" for piece in _made_up_pieces(med["vocab_size"] - 2)))
    classes = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    write_json(bert / "tokenizer_config.json", classes)
    write_json(bert / "config.json", {"model_type": "bert", "vocab_size": med["vocab_size"] - 2})


def _image_reward_shapes(width: int, depth: int, med: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight of the official state dict."""

    def linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.weight", (out, into)), (f"{name}.bias", (out,)))

    def norm(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.weight", (size,)), (f"{name}.bias", (size,)))

    vit, hidden, inner = "blip.visual_encoder", med["hidden_size"], med["intermediate_size"]
    yield from ((f"{vit}.cls_token", (1, 1, width)), (f"{vit}.pos_embed", (1, 1 + (224 // 16) ** 2, width)))
    yield from ((f"{vit}.patch_embed.proj.weight", (width, 3, 16, 16)), (f"{vit}.patch_embed.proj.bias", (width,)))
    for layer in (f"{vit}.blocks.{i}" for i in range(depth)):
        yield from (*norm(f"{layer}.norm1", width), *norm(f"{layer}.norm2", width))
        yield from (*linear(f"{layer}.attn.qkv", 3 * width, width), *linear(f"{layer}.attn.proj", width, width))
        yield from (*linear(f"{layer}.mlp.fc1", 4 * width, width), *linear(f"{layer}.mlp.fc2", width, 4 * width))
    yield from norm(f"{vit}.norm", width)

    embeddings = "blip.text_encoder.embeddings"
    yield f"{embeddings}.word_embeddings.weight", (med["vocab_size"], hidden)
    yield f"{embeddings}.position_embeddings.weight", (med["max_position_embeddings"], hidden)
    yield from norm(f"{embeddings}.LayerNorm", hidden)
    for layer in (f"blip.text_encoder.encoder.layer.{i}" for i in range(med["num_hidden_layers"])):
        for attention, into in (("attention", hidden), ("crossattention", width)):
            yield from linear(f"{layer}.{attention}.self.query", hidden, hidden)
            yield from linear(f"{layer}.{attention}.self.key", hidden, into)
            yield from linear(f"{layer}.{attention}.self.value", hidden, into)
            yield from linear(f"{layer}.{attention}.output.dense", hidden, hidden)
            yield from norm(f"{layer}.{attention}.output.LayerNorm", hidden)
        yield from linear(f"{layer}.intermediate.dense", inner, hidden)
        yield from (*linear(f"{layer}.output.dense", hidden, inner), *norm(f"{layer}.output.LayerNorm", hidden))

    yield from (*linear("blip.vision_proj", 256, width), *linear("blip.text_proj", 256, hidden))
    for position, out, into in ((0, 1024, hidden), (2, 128, 1024), (4, 64, 128), (6, 16, 64), (7, 1, 16)):
        yield from linear(f"mlp.layers.{position}", out, into)


def _made_up_pieces(count: int) -> list[str]:
    """A vocabulary with BERT's special tokens at BERT's places; any text can be spelled in it, letter by letter."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    pieces = [special.get(index, f"[unused{index}]") for index in range(1000)]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces += letters + [f"##{letter}" for letter in letters]
    small = [letter for letter in letters if letter.isalpha()]
    pieces += [f"{prefix}{a}{b}" for prefix in ("", "##") for a in small for b in small]
    pieces += [f"##{a}{b}{c}" for a in small for b in small for c in small]
    return [*pieces, *(f"[filler{index}]" for index in range(len(pieces), count))][:count]


WRITERS: Mapping[str, Callable[[Path, Size, int], None]] = {
    "hps": _write_hps,
    "clip": _write_clip,
    "pickscore": _write_pickscore,
    "image_reward": _write_image_reward,
}
