"""Scores equal those of the official packages on the same weights, to float precision; wrong choices would show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from PIL import Image
from scorer_golden import AS_OFFICIAL, KINDS, TOLERANCE, official, texts

from flowrl.protocols import Scorer, ScorerConfig
from flowrl.rewards import hps, image_reward
from flowrl.rewards.image_reward import ImageRewardModel, to_official
from flowrl.rewards.images import as_pictures, crop_centre, resize_short_side
from flowrl.types import Images

GetScorer = Callable[..., Scorer]
every_kind = pytest.mark.parametrize("kind", KINDS)


def furthest(scorer: Scorer, kind: str, every: int = 7) -> float:
    """The largest difference to an official score, of all pairs or of a few."""
    pairs = official(kind)
    wanted = pairs.scores[::every]
    found = scorer.score(pairs.images[::every], pairs.prompts[::every])
    assert found.valid.all()
    difference = float((found.values - wanted).abs().max())
    print(f"{kind}: {len(wanted)} pairs, spread {wanted.max() - wanted.min():.3g}, largest difference {difference:.1e}")
    return difference


@every_kind
def test_scores_equal_the_official_ones(kind: str, scorer: GetScorer) -> None:
    assert furthest(scorer(kind), kind, every=1) < TOLERANCE[kind]


@every_kind
def test_other_weights_do_not_pass(kind: str, scorer: GetScorer) -> None:
    assert furthest(scorer(kind, seed=7), kind) > 1000 * TOLERANCE[kind]


# ---- what a wrong choice would cost


def test_hps_resizes_floats_with_antialiasing(scorer: GetScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    right = scorer("hps")

    def through_bytes(images: Images) -> torch.Tensor:
        small = [picture.resize((224, 224), Image.Resampling.BICUBIC) for picture in as_pictures(images)]
        return hps.prepare(small, 224)

    assert furthest(replace(right, prepare=through_bytes), "hps") > 100 * TOLERANCE["hps"]
    resize = hps.interpolate
    monkeypatch.setattr(hps, "interpolate", lambda *args, antialias, **options: resize(*args, **options))
    assert furthest(right, "hps") > 100 * TOLERANCE["hps"]


def test_image_reward_has_the_epsilon_of_timm(scorer: GetScorer) -> None:
    model = model_of(scorer("image_reward"))
    norms = [module for module in model.vision.modules() if isinstance(module, torch.nn.LayerNorm)]
    try:
        for norm in norms:
            norm.eps = 1e-5
        assert furthest(scorer("image_reward"), "image_reward") > TOLERANCE["image_reward"]
    finally:
        for norm in norms:
            norm.eps = 1e-6


def model_of(scorer: Scorer) -> ImageRewardModel:
    """The network inside an image_reward scorer."""
    cells = scorer.judge.__closure__  # type: ignore[attr-defined]
    return next(cell.cell_contents for cell in cells if isinstance(cell.cell_contents, ImageRewardModel))


def test_image_reward_reads_bert_ids(checkpoint: Callable) -> None:
    folder = checkpoint("image_reward")
    tokenize = image_reward.tokenizer(folder / "bert-base-uncased" / "vocab.txt", {"vocab_size": 30524})
    ids, mask = tokenize(texts())
    assert ids.shape == mask.shape == (6, 35)
    assert ids[0].tolist() == official("image_reward").facts["token_ids_prompt0"]
    assert mask[2].all()  # a long prompt is cut


def test_pickscore_reads_clip_ids(checkpoint: Callable) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(checkpoint("pickscore") / "processor")
    found: Sequence[Sequence[int]] = tokenizer(texts(), truncation=True, max_length=77).input_ids
    assert found == official("pickscore").facts["token_ids"]


def test_the_two_centre_crops_differ_by_a_pixel() -> None:
    """PickScore's processor rounds an odd margin down, torchvision to the nearest even number."""
    upright = resize_short_side(Image.linear_gradient("L").resize((333, 517)), 224)
    assert upright.size == (224, 347)
    down, nearest = (crop_centre(upright, 224, rounded=rounded) for rounded in (False, True))
    assert down == upright.crop((0, 61, 224, 285))
    assert nearest == upright.crop((0, 62, 224, 286))


def test_official_names_survive_the_round_trip(scorer: GetScorer, checkpoint: Callable) -> None:
    there = torch.load(checkpoint("image_reward") / "ImageReward.pt", weights_only=True)
    back = to_official(model_of(scorer("image_reward")))
    used = {name for name in there if not name.startswith(image_reward.UNUSED)}
    heads = {name for name in used if name.startswith(image_reward.HEAD)}
    assert back.keys() - {name for name in back if name.startswith(image_reward.HEAD)} == used - heads
    assert all(torch.equal(back[name], there[name]) for name in used - heads)
    assert sum(value.numel() for name, value in there.items() if "position_ids" not in name) == 44186081


@pytest.mark.gpu
@every_kind
def test_scores_on_a_gpu(kind: str, checkpoint: Callable) -> None:
    """PyTorch's own defaults hold there: the convolution that cuts patches may be in TF32, as in the official code."""
    fields = {"kind": kind, "source": str(checkpoint(kind)), **AS_OFFICIAL.get(kind, {})}
    pairs = official(kind)
    found = ScorerConfig.model_validate(fields).load(torch.device("cuda")).score(pairs.images, pairs.prompts)
    assert found.values.is_cuda
    spread = float(pairs.scores.max() - pairs.scores.min())
    assert float((found.values.cpu() - pairs.scores).abs().max()) < 0.01 * spread
