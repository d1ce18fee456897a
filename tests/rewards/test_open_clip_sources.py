"""Every way to name a model of open_clip, what is read of it, and that nothing of it is run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from flowrl.errors import UserError
from flowrl.hub import sha256
from flowrl.protocols import ScorerConfig
from flowrl.rewards import open_clip_model, open_clip_text
from flowrl.rewards.clip import Clip
from flowrl.rewards.hps import Hps
from flowrl.types import Prompt

CPU = torch.device("cpu")
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "a", "red", "cat", "blue", "dog")
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": len(WORDS), "width": 16, "heads": 2, "layers": 1},
}
OWN_TEXT = {"text_cfg": TINY["text_cfg"] | {"context_length": 77, "vocab_size": 49408}}
PICTURES = [Image.new("RGB", (48, 32), colour) for colour in ("red", "navy")]
PICTURES[0].paste("yellow", (0, 0, 9, 32))  # which a crop loses
TEXTS = ["a red cat", "a blue dog"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(folder), raising=False)
    return folder


def fetched(cache: Path, hub_id: str, files: Path) -> Path:
    """A copy of a folder, as if it had been downloaded."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = shutil.copytree(files, repository / "snapshots" / "abc", copy_function=os.link)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return snapshot


def random_model(cfg: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(3)
    is_custom = "hf_model_name" in cfg["text_cfg"]
    return (open_clip.CustomTextCLIP if is_custom else open_clip.CLIP)(**cfg)


def write_model(folder: Path, cfg: dict[str, Any], stored: dict[str, Any] | None = None) -> Path:
    """Random weights of an architecture, described by ``stored`` where that says something else."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(random_model(cfg).state_dict(), folder / "open_clip_pytorch_model.bin")
    values = {"model_cfg": stored or cfg, "preprocess_cfg": {"resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    return folder


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    words.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def with_tokenizer(cfg: dict[str, Any] = TINY, **text: Any) -> dict[str, Any]:
    return cfg | {"text_cfg": cfg["text_cfg"] | {"hf_tokenizer_name": "someone/words"} | text}


def scores(config: ScorerConfig) -> torch.Tensor:
    found = config.load(CPU).score(PICTURES, [Prompt(text, index) for index, text in enumerate(TEXTS)])
    assert found.valid.all()
    return found.values


def scores_of_open_clip(name: str, **given: Any) -> torch.Tensor:
    """As its README computes them."""
    model, transform = open_clip.create_model_from_pretrained(name, **given)
    model.eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(picture) for picture in PICTURES]), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
    return (images * texts).sum(dim=1)


# ---- code of the checkpoint's own


def plant_code(folder: Path) -> Path:
    """A tokenizer whose class lies in a file beside it; what that file leaves when it is run."""
    trace = folder / "it_ran"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass T:\n    pass\n")
    values = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return trace


@pytest.mark.parametrize("kind", ["clip", "hps"])
def test_a_checkpoint_cannot_ask_to_run_its_code(kind: str, tmp_path: Path) -> None:
    cfg = with_tokenizer(tokenizer_kwargs={"trust_remote_code": True, "clean": "lower"})
    folder = write_model(write_tokenizer(tmp_path / kind), TINY, cfg)
    os.link(folder / "open_clip_pytorch_model.bin", folder / "HPS_v2.1_compressed.pt")
    trace = plant_code(folder)
    config = ScorerConfig.model_validate({"kind": kind, "source": str(folder)})
    said = r"open_clip_config\.json: text_cfg\.tokenizer_kwargs sets trust_remote_code"
    for step in (config.check, config.identity, lambda: scores(config)):
        with pytest.raises(UserError, match=said):
            step()
    assert not trace.exists()


def test_code_of_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    folder = write_model(write_tokenizer(tmp_path / "clip"), TINY, with_tokenizer())
    trace = plant_code(folder)
    with pytest.raises(UserError, match="holds no tokenizer that runs without code of its own"):
        scores(Clip(source=str(folder)))
    assert not trace.exists()


def test_settings_of_a_tokenizer_are_few(tmp_path: Path) -> None:
    for text in ({"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}, {"tokenizer_kwargs": "clean"}):
        folder = write_model(tmp_path / "clip", TINY, TINY | {"text_cfg": TINY["text_cfg"] | text})
        with pytest.raises(UserError, match="a checkpoint may set clean alone"):
            Clip(source=str(folder)).check()


def test_towers_out_of_a_repository_are_refused(tmp_path: Path) -> None:
    vision = TINY["vision_cfg"] | {"timm_model_name": "hf-hub:someone/model"}
    folder = write_model(tmp_path / "clip", TINY, TINY | {"vision_cfg": vision})
    with pytest.raises(UserError, match="names a repository, not an architecture of timm"):
        Clip(source=str(folder)).check()
    os.link(folder / "open_clip_pytorch_model.bin", folder / "HPS_v2.1_compressed.pt")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": with_tokenizer(hf_model_name="a/b")}))
    with pytest.raises(UserError, match=r"text_cfg\.hf_model_name: both towers must be open_clip's own"):
        Hps(source=str(folder)).check()


# ---- folders and hub ids


def test_the_three_spellings_of_a_source(tmp_path: Path, cache: Path) -> None:
    folder = write_model(write_tokenizer(tmp_path / "clip"), TINY)
    snapshot = fetched(cache, "someone/tiny", folder)
    expected = scores(Clip(source=str(folder)))
    for source in (f"local-dir:{folder}", "hf-hub:someone/tiny", "someone/tiny"):
        assert torch.equal(scores(Clip(source=source)), expected)
    assert Clip(source="hf-hub:someone/tiny").files()[0].parent == snapshot
    with pytest.raises(
        UserError, match=r"hf download someone/other open_clip_pytorch_model\.bin open_clip_config\.json"
    ):
        Clip(source="hf-hub:someone/other").check()
    for absent in ("local-dir:someone/tiny", "hf-hub:", "local-dir:nowhere"):
        with pytest.raises(UserError, match=f"reward clip: source '{absent}' is neither"):
            Clip(source=absent).check()


def test_a_tokenizer_of_transformers_is_read_once_and_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(write_tokenizer(tmp_path / "clip"), TINY, with_tokenizer(tokenizer_kwargs={"clean": "lower"}))
    config = Clip(source=str(folder))
    files = config.identity()["files"]
    assert set(files) == {
        *("open_clip_pytorch_model.bin", "open_clip_config.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert files["tokenizer.json"] == sha256(folder / "tokenizer.json")
    built = []
    theirs = open_clip.tokenizer.HFTokenizer
    monkeypatch.setattr("open_clip.tokenizer.HFTokenizer", lambda *a, **k: built.append(k) or theirs(*a, **k))
    scorer = config.load(CPU)
    for _ in range(3):
        values = scorer.score(PICTURES, [Prompt(text, index) for index, text in enumerate(TEXTS)]).values
    assert len(built) == 1
    assert built[0]["trust_remote_code"] is False
    torch.testing.assert_close(values, scores_of_open_clip(f"local-dir:{folder}"), rtol=0, atol=1e-6)


def test_a_tokenizer_elsewhere_is_asked_for(tmp_path: Path, cache: Path) -> None:
    folder = write_model(tmp_path / "clip", TINY, with_tokenizer())
    with pytest.raises(UserError, match=r"hf download someone/words --include"):
        Clip(source=str(folder)).check()
    fetched(cache, "someone/words", write_tokenizer(tmp_path / "words"))
    apart = scores(Clip(source=str(folder)))
    write_tokenizer(folder)
    assert torch.equal(scores(Clip(source=str(folder))), apart)


def test_a_text_tower_of_transformers(tmp_path: Path, cache: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    roberta = {"model_type": "roberta", "vocab_size": len(WORDS), "pad_token_id": 0, "max_position_embeddings": 20}
    (tmp_path / "roberta").mkdir()
    (tmp_path / "roberta" / "config.json").write_text(json.dumps(roberta | sizes))
    cfg = TINY | {"text_cfg": {"context_length": 8, "hf_tokenizer_name": "tiny-words", "hf_model_name": "tiny-roberta"}}
    local = cfg | {"text_cfg": cfg["text_cfg"] | {"hf_model_name": str(tmp_path / "roberta")}}
    local["text_cfg"]["hf_model_pretrained"] = False
    folder = write_model(tmp_path / "clip", local, cfg)
    config = Clip(source=str(folder))
    with pytest.raises(UserError) as said:
        config.check()
    assert "hf download tiny-words" in str(said.value)
    assert "hf download tiny-roberta config.json" in str(said.value)
    fetched(cache, "tiny-words", write_tokenizer(tmp_path / "words"))
    snapshot = fetched(cache, "tiny-roberta", tmp_path / "roberta")
    assert snapshot / "config.json" in config.files()
    assert scores(config).isfinite().all()
    (tmp_path / "roberta" / "config.json").write_text(json.dumps(roberta | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(UserError, match=r"config\.json: auto_map names code"):
        config.load(CPU)


# ---- architectures with weights


@pytest.fixture
def tiny_b(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An architecture that open_clip knows, with a tag whose pictures are squashed."""
    cfg = TINY | OWN_TEXT | {"quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-B-16", cfg)
    known = {"url": "", "hf_hub": "someone/tiny/", "resize_mode": "squash", "mean": None, "quick_gelu": True}
    other = {"url": "https://example.com/weights/tiny.pt", "hf_hub": ""}
    tags = {"squashed": known, "named": known | {"hf_hub": "someone/named/model.pth"}, "elsewhere": other}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-B-16", tags)
    return cfg


def test_an_architecture_with_a_file(tiny_b: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.pt"
    torch.save({"state_dict": random_model(tiny_b).state_dict()}, file)
    config = Clip(source="Tiny-B/16", pretrained=str(file))
    assert config.identity()["files"] == {"mine.pt": sha256(file)}
    assert (config.identity()["source"], config.identity()["pretrained"]) == ("Tiny-B/16", str(file))
    expected = scores_of_open_clip("Tiny-B-16", pretrained=str(file))
    torch.testing.assert_close(scores(config), expected, rtol=0, atol=1e-6)


def test_an_architecture_with_a_tag(tiny_b: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    config = Clip(source="Tiny-B-16", pretrained="squashed")
    with pytest.raises(
        UserError, match=r"clip: someone/tiny lacks .*\n  hf download someone/tiny open_clip_pytorch_model\.bin"
    ):
        config.check()
    folder = write_model(tmp_path / "clip", tiny_b)
    fetched(cache, "someone/tiny", folder)
    assert torch.equal(scores(config), scores(Clip(source=str(folder))))
    cropped = Clip(source="Tiny-B-16", pretrained=str(folder / "open_clip_pytorch_model.bin"))
    assert not torch.allclose(scores(cropped), scores(config), atol=1e-4)
    with pytest.raises(UserError, match=r"hf download someone/named model\.pth"):
        Clip(source="Tiny-B-16", pretrained="named").check()


def test_weights_at_an_address(tiny_b: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip_model, "DOWNLOADS", tmp_path / "clip")
    config = Clip(source="Tiny-B-16", pretrained="elsewhere")
    command = rf"curl .*--output {tmp_path}/clip/tiny\.pt https://example\.com/weights/tiny\.pt\nor set pretrained"
    with pytest.raises(UserError, match=command):
        config.check()
    (tmp_path / "clip").mkdir()
    torch.save(random_model(tiny_b).state_dict(), tmp_path / "clip" / "tiny.pt")
    assert scores(config).isfinite().all()


def test_another_activation_is_warned_of(
    tiny_b: dict[str, Any], tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fetched(cache, "someone/tiny", write_model(tmp_path / "clip", tiny_b))
    tiny_b["quick_gelu"] = False
    Clip(source="Tiny-B-16", pretrained="squashed").load(CPU)
    assert "trained with QuickGELU, this architecture has GELU" in caplog.text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"source": "ViT-H-14-378-quickgelu"}, r"is an architecture; set pretrained to one of its tags \(dfn5b\)"),
        ({"source": "ViT-H-14-378-quikgelu"}, "did you mean 'ViT-H-14-378-quickgelu'"),
        ({"source": "shaps"}, "did you mean 'shapes'"),
        ({"source": "ViT-H-15", "pretrained": "dfn5b"}, "is no architecture of open_clip; did you mean 'ViT-H-1"),
        ({"source": "shapes", "pretrained": "dfn5b"}, "not with a folder or a hub id"),
        ({"source": "ViT-H-14-378-quickgelu", "pretrained": "dfn5"}, "did you mean 'dfn5b'"),
        ({"source": "ViT-H-14-378-quickgelu", "pretrained": "a/b.pt"}, "neither a file nor a tag"),
        (
            {"source": "ViT-H-14-378-quickgelu", "pretrained": "dfn5b"},
            "hf download apple/DFN5B-CLIP-ViT-H-14-378 open_clip_pytorch_model.bin",
        ),
        ({"source": "ViT-B-16-SigLIP", "pretrained": "webli"}, "(?s)hf download timm/ViT-B-16-SigLIP open.*--include"),
    ],
)
def test_names_that_open_clip_does_not_know(fields: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Clip(**fields).check()


def test_own_byte_pairs_are_cleaned_as_the_checkpoint_says() -> None:
    cfg = TINY | OWN_TEXT
    plain, canonical = (
        open_clip_text.tokenizer(cfg | {"text_cfg": cfg["text_cfg"] | kwargs}, ())
        for kwargs in ({}, {"tokenizer_kwargs": {"clean": "canonicalize"}})
    )
    assert not torch.equal(plain(["a cat!"]), canonical(["a cat!"]))
    assert torch.equal(plain(["a cat"]), canonical(["a cat!"]))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["ViT-S-32-alt", "RN50"])
def test_real_architectures(architecture: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(random_model(open_clip.get_model_config(architecture)).state_dict(), file)
    expected = scores_of_open_clip(architecture, pretrained=str(file))
    torch.testing.assert_close(scores(Clip(source=architecture, pretrained=str(file))), expected, rtol=0, atol=1e-6)


def test_the_weights_that_are_read_are_those_that_are_hashed(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("clip"), tmp_path / "clip", copy_function=os.link)
    (folder / "open_clip_pytorch_model.safetensors").write_bytes(b"which open_clip would rather read")
    assert Clip(source=str(folder)).files()[0].name == "open_clip_pytorch_model.bin"
    Clip(source=str(folder)).load(CPU)
