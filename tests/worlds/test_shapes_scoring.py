"""How the scorers are made: their lessons, the networks they begin from, and the whole build in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowrl.errors import UserError
from flowrl.worlds.shapes.auditor import KINDS, scene_labels
from flowrl.worlds.shapes.scene import COLOURS, Scene, Thing
from flowrl.worlds.shapes.scoring import models, training, transplant
from flowrl.worlds.shapes.scoring.agreement import agreed, page, rank_correlation
from flowrl.worlds.shapes.scoring.build import STAGES, build
from flowrl.worlds.shapes.scoring.data import Preferences, make_renders, pairs
from flowrl.worlds.shapes.scoring.reading import thing_at
from flowrl.worlds.shapes.scoring.settings import ScorerSettings

QUICK = ScorerSettings().quick()


def _preferences(quality: np.ndarray) -> Preferences:
    return Preferences(np.zeros((*quality.shape, 1, 1, 3), np.uint8), [""] * len(quality), quality)


def test_a_render_depends_on_seed_and_index_alone(tmp_path: Path) -> None:
    for name, count in (("few", 2), ("more", 3)):
        (tmp_path / name).mkdir()
        make_renders(tmp_path / name, replace(QUICK, num_renders=count))
    few, more = (np.load(tmp_path / name / "images.npy") for name in ("few", "more"))
    assert more.shape == (3, 2, 64, 64, 3)
    assert np.array_equal(few, more[:2])
    assert (few[:, 0] != few[:, 1]).any(axis=(1, 2, 3)).all()  # the broken picture is another


def test_labellers_err_more_where_gold_is_close_and_each_in_their_own_way() -> None:
    quality = np.random.default_rng(0).random((500, 4)).astype(np.float32)
    preferences = _preferences(quality)
    close, far = (
        training.consistency(p, training.labels(p, QUICK, "hps")) for p in (_preferences(0.1 * quality), preferences)
    )
    assert 0.6 < close < 0.85 < far < 1
    one, other = (training.labels(preferences, QUICK, name) for name in ("hps", "pickscore"))
    assert np.array_equal(one, training.labels(preferences, QUICK, "hps"))
    assert (one != other).any()


def test_preference_loss_is_bradley_and_terrys() -> None:
    scores = torch.tensor([[1.0, 0.0, -2.0]])
    first = torch.tensor([[True, False, True]])
    chances = torch.sigmoid(torch.tensor([1.0, 3.0, 2.0]))
    expected = -torch.log(torch.stack([chances[0], 1 - chances[1], chances[2]])).mean()
    assert torch.allclose(training.preference(scores, first), expected)
    assert pairs(3) == ([0, 0, 1], [1, 2, 2])


def test_contrastive_loss_falls_when_pictures_match_their_captions_and_not_the_broken_ones() -> None:
    texts = torch.eye(3)
    right = torch.stack([texts, -texts], dim=1)
    swapped = right.flip(1)
    scale = torch.tensor(10.0)
    assert training.contrastive(right, texts, scale) < 0.01 < 5 < training.contrastive(swapped, texts, scale)


def test_a_place_shows_the_smallest_thing_over_it() -> None:
    outer, inner = Thing("square", "red", 32.0, 32.0, "large"), Thing("circle", "blue", 36.0, 36.0, "small")
    labels = scene_labels([Scene("white", (outer, inner))])
    kind, colour = thing_at(torch.from_numpy(labels["things"]), 64)[0, :, :2].unflatten(0, (8, 8)).unbind(-1)
    assert KINDS[kind[4, 4] - 1] == ("circle", "small")
    assert COLOURS[colour[4, 4]] == "blue"
    assert KINDS[kind[3, 3] - 1] == ("square", "large")
    assert kind[0, 0] == 0


def test_pickscore_begins_as_the_clip_scorer() -> None:
    settings = replace(QUICK, vision=replace(QUICK.vision, layers=2), small_vision=replace(QUICK.vision, layers=2))
    torch.manual_seed(0)
    clip = models.build_clip(settings).eval()
    pickscore = models.build_pickscore(settings).eval()
    pickscore.load_state_dict(transplant.to_pickscore(clip.state_dict()))
    x, ids = torch.randn(2, 3, 64, 64), torch.tensor([[0, 5, 9, 1, 0, 0], [0, 7, 8, 9, 4, 1]])
    ids = torch.cat([ids, torch.zeros(2, settings.context - 6, dtype=torch.long)], dim=1)
    with torch.no_grad():
        assert torch.allclose(pickscore.get_image_features(x).pooler_output, clip.encode_image(x), atol=1e-5)
        assert torch.allclose(pickscore.get_text_features(ids).pooler_output, clip.encode_text(ids), atol=1e-5)


def test_image_rewards_eyes_begin_close_to_the_clip_scorers() -> None:
    torch.manual_seed(0)
    clip = models.build_clip(QUICK).eval()
    given: list[torch.Tensor] = []
    clip.visual.ln_pre.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    clip.visual.output_tokens, clip.visual.proj = True, None
    eyes = models.build_image_reward(QUICK).vision.eval()
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        _, tokens = clip.visual(x)
        eyes.load_state_dict(transplant.to_blip_vision(clip.state_dict(), given[0]))
        states = eyes(x).last_hidden_state[:, 1:]
    assert torch.corrcoef(torch.stack([states.flatten(), tokens.flatten()]))[0, 1] > 0.9


def test_agreement_is_a_share_of_pairs_and_of_ranks() -> None:
    gold = np.array([0.2, 0.5, 0.5, 0.9])
    assert agreed(np.array([1.0, 2.0, 3.0, 4.0]), gold, 1e-6) == [1.0]
    assert agreed(np.array([4.0, 2.0, 3.0, 1.0]), gold, 1e-6) == [0.0]
    assert agreed(np.zeros(4), gold, 0.35) == [0.5]
    assert agreed(np.zeros(4), np.ones(4), 1e-6) == []
    assert rank_correlation(np.array([3.0, 2.0, 1.0]), np.array([0.0, 0.1, 0.9])) == pytest.approx(-1)


def test_unknown_and_premature_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'renders'"):
        build(tmp_path, stages=["render"])
    with pytest.raises(UserError, match="needs renders"):
        build(tmp_path, stages=["clip"], settings=QUICK, device="cpu")


@pytest.mark.slow
def test_a_small_build_writes_the_official_files_and_is_not_repeated(tmp_path: Path) -> None:
    lines: list[str] = []
    records = build(tmp_path, settings=QUICK, device="cpu", log=lines.append)
    assert set(records) == set(STAGES)
    for file in (
        "hps/HPS_v2.1_compressed.pt",
        "clip/open_clip_model.safetensors",
        "pickscore/model.safetensors",
        "image_reward/ImageReward.pt",
        "records.json",
    ):
        assert (tmp_path / "scorers" / file).is_file()
    assert "| pairwise |" in page(records["agreement"], "test")
    lines.clear()
    assert build(tmp_path, settings=QUICK, device="cpu", log=lines.append) == records
    assert lines == [f"{name}: done before" for name in STAGES]
