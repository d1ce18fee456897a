from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl import pictures
from flowrl.pictures import PANELS, BeforeAfter, _label, _series


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share_of(path: Path, colour: tuple[int, int, int]) -> float:
    """The share of a picture's pixels that have nearly this colour."""
    return float((abs(pixels(path) - np.array(colour)).max(-1) < 12).mean())


def plain(red: float, green: float, blue: float, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.tensor([red, green, blue]).view(3, 1, 1).expand(3, height, width)


def panel(title: str) -> pictures.Panel:
    return next(panel for panel in PANELS if panel.title == title)


ROWS: list[dict[str, Any]] = [
    {"iteration": 0, "test/gold": 0.5},
    {"iteration": 1, "reward": 0.50, "reward/quality": 0.50, "kl": 0.0, "clip_fraction": 0.1, "note": "text"},
    {"iteration": 2, "reward": None, "reward/quality": None, "kl": 0.0, "clip_fraction": 0.2},
    {"iteration": 3, "reward": 0.60, "reward/quality": 0.60, "kl": 0.0, "clip_fraction": 0.3, "seconds": 2.0},
    {"iteration": 3, "test/gold": 0.7},
]


def test_curves_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "new" / "curves.png"
    pictures.curves(ROWS, path)
    assert pixels(path).shape[1] == pytest.approx(3 * 3.4 * pictures.DPI)
    assert 0.5 < share_of(path, (255, 255, 255)) < 0.99
    assert list(path.parent.iterdir()) == [path]


def test_iterations_are_marked_in_the_panels_of_rewards_and_held_out_scores(tmp_path: Path) -> None:
    pictures.curves(ROWS, tmp_path / "plain.png")
    pictures.curves(ROWS, tmp_path / "marked.png", {3: "best"})
    plain, marked = pixels(tmp_path / "plain.png"), pixels(tmp_path / "marked.png")
    assert plain.shape == marked.shape
    changed = np.flatnonzero((plain != marked).any((1, 2)))
    assert changed.size
    assert changed.max() < len(plain) / 2, "the panels of the first row alone"


def test_series_are_the_metrics_of_a_panel_with_their_gaps() -> None:
    assert _series(ROWS, panel("Held-out scores")) == {"test/gold": [(0, 0.5), (3, 0.7)]}
    assert _series(ROWS, panel("Training reward")) == {"reward": [(1, 0.5), (3, 0.6)]}
    assert _series(ROWS, panel("KL to the reference")) == {}
    assert _series(ROWS, panel("Loss")) == {}


def test_deeper_names_do_not_crowd_a_panel() -> None:
    rows = [{"iteration": 1, "test/gold": 0.5, "test/gold/colour": 0.4}]
    assert list(_series(rows, panel("Held-out scores"))) == ["test/gold"]


def test_lines_are_named_by_what_differs() -> None:
    names = ("seconds", "seconds/rollout")
    assert [_label(name, panel("Seconds per iteration")) for name in names] == ["total", "rollout"]
    assert _label("reward/hps", panel("Training reward")) == "hps"


@pytest.mark.parametrize("value", [0.0, 1e-9, -3.0, 5e6])
def test_odd_values_are_drawn(tmp_path: Path, value: float) -> None:
    rows = [{"iteration": i, "approx_kl": value, "grad_norm": value, "loss": value} for i in range(3)]
    pictures.curves(rows, tmp_path / "curves.png")


def test_no_metrics_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the metrics"):
        pictures.curves([{"iteration": 1, "unheard_of": 1.0}], tmp_path / "curves.png")


def test_before_and_after_show_both_images_and_colour_the_change(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    pair = (plain(1, 0, 0), plain(0, 0, 1))
    pictures.grid([BeforeAfter("a prompt", *pair, 0.25, 0.75)], path)
    red, blue = share_of(path, (255, 0, 0)), share_of(path, (0, 0, 255))
    assert red == pytest.approx(blue, rel=0.05)
    assert red > 0.2
    risen = share_of(path, (0x1A, 0x7F, 0x37))
    pictures.grid([BeforeAfter("a prompt", *pair, 0.75, 0.25)], path)
    assert risen > 0
    assert share_of(path, (0x1A, 0x7F, 0x37)) == 0
    assert share_of(path, (0xBC, 0x4C, 0x00)) > 0
    pictures.grid([BeforeAfter("a prompt", *pair)], path)


def test_long_prompts_make_room_for_themselves(tmp_path: Path) -> None:
    heights = []
    for words in (3, 60):
        rows = [BeforeAfter("word " * words, plain(1, 0, 0), plain(0, 0, 1)) for _ in range(5)]
        pictures.grid(rows, tmp_path / "grid.png")
        heights.append(pixels(tmp_path / "grid.png").shape[0])
        assert (pixels(tmp_path / "grid.png")[-10:] == 255).all()
    assert heights[1] > heights[0]


def test_wide_images_keep_their_shape(tmp_path: Path) -> None:
    path = tmp_path / "samples.png"
    pictures.sample_grid([plain(0, 1, 0, height=20, width=60)], ["$5 and a $10 note"], path)
    rows, columns = np.nonzero(abs(pixels(path) - np.array([0, 255, 0])).max(-1) < 12)
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(3, rel=0.05)


def test_a_sheet_needs_images_and_as_many_captions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        pictures.sample_grid([], [], tmp_path / "x.png")
    with pytest.raises(ValueError, match="shorter"):
        pictures.sample_grid([plain(0, 0, 0)], [], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
