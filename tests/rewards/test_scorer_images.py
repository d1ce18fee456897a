"""Pictures of any mode and size, tensors, batches and invalid images: what a scorer does with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from scorer_golden import KINDS, TOLERANCE, edge_pictures, golden, pictures, texts
from torch import Tensor
from torch.nn.functional import interpolate

from flowrl.protocols import Scorer, ScorerConfig
from flowrl.rewards.hps import letterbox
from flowrl.rewards.images import as_bytes, as_pictures
from flowrl.rewards.neural import NeuralScorer, TextCache
from flowrl.types import Prompt

GetScorer = Callable[..., Scorer]
every_kind = pytest.mark.parametrize("kind", KINDS)
BETTER_THAN_OFFICIAL = {"hps": {"rgba", "long_side_224"}, "pickscore": {"one_pixel"}}  # where the official code stops


def asked(count: int, text: str | None = None) -> list[Prompt]:
    return [Prompt(texts()[0] if text is None else text, index) for index in range(count)]


@every_kind
def test_awkward_pictures_score_as_officially(kind: str, scorer: GetScorer) -> None:
    shown, scores = edge_pictures(), golden(kind)["edges"]
    found = scorer(kind).score(list(shown.values()), asked(len(shown)))
    assert found.valid.all()
    assert {name for name, score in scores.items() if score is None} == BETTER_THAN_OFFICIAL.get(kind, set())
    for name, value in zip(shown, found.values, strict=True):
        if scores[name] is not None:
            assert float(value) == pytest.approx(scores[name], abs=TOLERANCE[kind]), name


def test_hps_drops_transparency(scorer: GetScorer) -> None:
    picture = edge_pictures()["rgba"]
    found = scorer("hps").score([picture, picture.convert("RGB")], asked(2)).values
    assert found[0] == found[1]


def test_hps_pads_a_picture_of_the_right_length_and_keeps_a_thread() -> None:
    image = torch.rand(3, 100, 224)
    padded = letterbox(image, 224)
    assert torch.equal(padded[:, 62:162], image)
    assert padded[:, :62].abs().sum() == padded[:, 162:].abs().sum() == 0
    assert letterbox(torch.rand(3, 1, 1000), 224).shape == (3, 224, 224)


@every_kind
def test_tensors_score_as_the_same_pictures(kind: str, scorer: GetScorer) -> None:
    picture = pictures()["05_small100x80.png"]
    tensor = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(80, 100, 3)
    images = (tensor.permute(2, 0, 1).float() / 255)[None]
    as_tensor, as_file = scorer(kind).score(images, asked(1)), scorer(kind).score([picture], asked(1))
    assert torch.allclose(as_tensor.values, as_file.values, atol=TOLERANCE[kind])


@pytest.mark.parametrize("kind", ["clip", "hps"])
def test_tensors_of_the_networks_own_size_are_prepared_to_the_same_bits(kind: str, scorer: GetScorer) -> None:
    prepare = scorer(kind).prepare
    size = prepare(torch.rand(1, 3, 30, 40)).shape[-1]
    images = as_bytes(torch.rand(3, 3, size, size)).float() / 255
    assert torch.equal(prepare(images), prepare(as_pictures(images)))


def test_small_images_fill_a_gpu() -> None:
    """As many pixels as 64 images of 224 x 224, however small the network sees them; never fewer than asked for."""
    images, gpu = torch.zeros(2, 3, 50, 50), torch.device("cuda")
    for side, rows in ((378, 32), (224, 64), (64, 784)):
        scorer = NeuralScorer(partial(interpolate, size=side), lambda pixels, texts: pixels, gpu, 32)
        assert scorer.rows_at_once(images) == rows
    assert replace(scorer, device=torch.device("cpu")).rows_at_once(images) == scorer.rows_at_once([]) == 32


@every_kind
def test_an_invalid_image_leaves_the_others_alone(kind: str, scorer: GetScorer) -> None:
    images = torch.rand(3, 3, 40, 30)
    alone = scorer(kind).score(images[[0, 2]], asked(2)).values
    images[1, 0, 5, 5] = torch.nan
    found = scorer(kind).score(images, asked(3))
    assert found.valid.tolist() == [True, False, True]
    assert found.values[1] == 0
    assert torch.allclose(found.values[[0, 2]], alone, atol=TOLERANCE[kind])


@every_kind
def test_a_batch_scores_as_one_by_one_in_any_precision(kind: str, scorer: GetScorer) -> None:
    images, prompts = torch.rand(5, 3, 32, 48), [Prompt(text, i) for i, text in enumerate(texts()[:5])]
    whole = scorer(kind).score(images, prompts).values
    single = [scorer(kind).score(images[i : i + 1], prompts[i : i + 1]).values for i in range(5)]
    in_pairs = replace(scorer(kind), batch_size=2).score(images, prompts).values
    with torch.autocast("cpu", torch.bfloat16):
        inside = scorer(kind).score(images, prompts).values
    for other in (torch.cat(single), in_pairs, inside):
        assert torch.allclose(whole, other, atol=TOLERANCE[kind])
    assert whole.unique().numel() == 5


@every_kind
def test_half_precision_rounds_the_network_alone(kind: str, scorer: GetScorer) -> None:
    images, prompts = torch.rand(5, 3, 32, 48), [Prompt(text, i) for i, text in enumerate(texts()[:5])]
    exact = scorer(kind).score(images, prompts).values
    half = replace(scorer(kind), half=True).score(images, prompts).values
    scale = 100 if kind == "pickscore" else 1  # times a cosine
    assert 0 < float((half - exact).abs().max()) < 5e-3 * scale
    assert half.dtype == torch.float32


@pytest.mark.parametrize("kind", [*KINDS, "jpeg_size"])
def test_nothing_to_score(kind: str, scorer: GetScorer) -> None:
    judge = ScorerConfig.model_validate("jpeg_size").load(torch.device("cpu")) if kind == "jpeg_size" else scorer(kind)
    for images in (torch.zeros(0, 3, 8, 8), []):
        found = judge.score(images, [])
        assert found.values.shape == found.valid.shape == (0,)


def test_jpeg_size_prefers_plain_pictures_unless_told() -> None:
    plain, noisy = torch.full((3, 32, 32), 0.4), torch.rand(3, 32, 32)
    images = torch.stack([plain, noisy, torch.full((3, 32, 32), torch.inf)])
    small, large = (
        ScorerConfig.model_validate({"kind": "jpeg_size", "prefer": prefer}).load(torch.device("cpu"))
        for prefer in ("small", "large")
    )
    found = small.score(images, asked(3))
    assert found.valid.tolist() == [True, True, False]
    assert 0 > found.values[0] > found.values[1]
    assert torch.equal(large.score(images, asked(3)).values, -found.values)


def test_texts_are_encoded_once_and_the_oldest_forgotten() -> None:
    encoded: list[str] = []

    def encode(batch: Sequence[str]) -> Tensor:
        encoded.extend(batch)
        return torch.tensor([[float(len(text))] for text in batch])

    cache = TextCache(encode, limit=2)
    assert cache(["a", "bb", "a"]).flatten().tolist() == [1, 2, 1]
    assert cache(["a", "ccc"]).flatten().tolist() == [1, 3]
    assert encoded == ["a", "bb", "ccc"]
    cache(["a", "bb"])
    assert encoded == ["a", "bb", "ccc", "bb"]
    assert cache(["x", "yy", "zzz"]).flatten().tolist() == [1, 2, 3]
