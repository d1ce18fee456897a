"""The judge on pictures: right about renders, steady under softening, batch by batch, and hard to fool."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from flowrl.worlds.shapes.checks import MEMBERS
from flowrl.worlds.shapes.components import components, mended
from flowrl.worlds.shapes.grammar import corrupt, sample_item
from flowrl.worlds.shapes.judge import judge
from flowrl.worlds.shapes.judge_report import SOFTENING, kind_of, measure, renders, report, sample_cases, soften
from flowrl.worlds.shapes.misshapen import misshapen
from flowrl.worlds.shapes.perception import look
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import DETAILS, PRIMARY_DIMENSIONS, RADIUS, Item, Scene, Testpoint, Thing

CASES = sample_cases(16, seed=1)
CLEAN = renders([case.scene for case in CASES], seed=1)


def some_items(count: int) -> list[Item]:
    rng = random.Random(5)
    return [sample_item(rng, dimension=PRIMARY_DIMENSIONS[k % 10]) for k in range(count)]


class TestAccuracy:
    @pytest.mark.parametrize(("how", "bound"), [("clean", 0.99), ("softened", 0.98)])
    @pytest.mark.parametrize("holds", [True, False])
    def test_over_all_kinds_of_checks(self, how: str, bound: float, holds: bool) -> None:
        result = measure(CASES, soften(CLEAN, *SOFTENING[how], seed=0))
        asked = sum(count for (_, truth), count in result.asked.items() if truth == holds)
        right = sum(count for (_, truth), count in result.right.items() if truth == holds)
        assert asked > 400
        assert right / asked >= bound

    def test_every_kind_of_check_is_asked_both_ways(self) -> None:
        kinds = {kind_of(testpoint.check).split(":")[0] for item in some_items(600) for testpoint in item.testpoints}
        for holds in (True, False):
            asked = {kind_of(case.item.testpoints[case.target].check) for case in CASES if case.holds == holds}
            assert {kind.split(":")[0] for kind in asked} >= kinds

    def test_the_other_testpoints_of_a_broken_scene_hold(self) -> None:
        verdict = judge(CLEAN, [case.item.testpoints for case in CASES])
        others = [
            answer
            for case, answers in zip(CASES, verdict.satisfied, strict=True)
            for target, answer in enumerate(answers)
            if target != case.target
        ]
        assert sum(others) / len(others) >= 0.99

    @pytest.mark.slow
    def test_of_every_kind_of_check(self) -> None:
        cases = sample_cases(200, seed=2)
        images = renders([case.scene for case in cases], seed=2)
        for how, bound in (("clean", 0.99), ("softened", 0.98)):
            result = measure(cases, soften(images, *SOFTENING[how], seed=0))
            for key, asked in result.asked.items():
                assert result.right[key] >= bound * asked, (how, key, result.right[key], asked)


class TestQuality:
    def test_it_is_near_one_where_all_holds_and_clearly_less_where_one_testpoint_fails(self) -> None:
        verdict = judge(CLEAN, [case.item.testpoints for case in CASES])
        holds = torch.tensor([case.holds for case in CASES])
        assert verdict.quality[holds].mean() > 0.98
        assert (verdict.quality[holds] - verdict.quality[~holds]).min() > 0.02
        assert verdict.quality.min() >= 0
        assert verdict.quality.max() <= 1

    def test_it_rises_with_the_number_of_satisfied_testpoints(self) -> None:
        rng = np.random.default_rng(0)
        asked = tuple(
            Testpoint("Attribute - Color", form, {"kind": "exists", "form": form, "colour": "red"})
            for form in ("circle", "square", "star")
        )
        places = ((17, 17), (47, 17), (17, 47))
        scenes = [
            Scene(
                "white",
                tuple(
                    Thing(point.check["form"], "red" if k < right else "blue", *place)
                    for k, (point, place) in enumerate(zip(asked, places, strict=True))
                ),
            )
            for right in range(4)
        ]
        images = torch.from_numpy(np.stack([render(scene, rng) for scene in scenes])).permute(0, 3, 1, 2) / 255
        verdict = judge(images, [asked] * 4)
        assert verdict.quality.diff().min() > 0.1
        assert torch.allclose(verdict.score, torch.arange(4) / 3)

    def test_it_ranks_near_misses(self) -> None:
        """A circle that moves to its place gains quality all the way, before and after the verdict turns."""
        asked = [Testpoint("Entity Layout", "", {"kind": "position", "form": "circle", "at": "left"})]
        scenes = [Scene("white", (Thing("circle", "red", x, 32),)) for x in (27.0, 25.5, 24.0, 22.5, 21.0)]
        images = torch.stack([renders([scene], seed=3)[0] for scene in scenes])
        assert judge(images, [asked] * len(scenes)).quality.diff().min() > 0

    def test_dirt_costs_quality(self) -> None:
        item = some_items(1)[0]
        clean = renders([item.scene], seed=0)
        dirty = clean.clone()
        dirty[:, :, :6] = torch.rand(3, 6, 64, generator=torch.Generator().manual_seed(0))
        verdict = judge(torch.cat([clean, dirty]), [item.testpoints] * 2)
        assert verdict.quality[1] < verdict.quality[0]


def hostile() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    yield "black", torch.zeros(3, 64, 64)
    yield "white", torch.ones(3, 64, 64)
    yield "red", torch.tensor((0.9, 0.15, 0.15))[:, None, None].expand(3, 64, 64)
    yield "noise", torch.rand(3, 64, 64, generator=generator)
    yield "grey noise", torch.rand(1, 64, 64, generator=generator).expand(3, 64, 64)
    yield "checks", ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float().expand(3, 64, 64)


@pytest.mark.parametrize(("name", "image"), [pytest.param(name, image, id=name) for name, image in hostile()])
def test_a_picture_of_nothing_satisfies_nearly_nothing(name: str, image: Tensor) -> None:
    items = [item for item in some_items(60) if not item.scene.flag]
    verdict = judge(image.expand(len(items), 3, 64, 64), [item.testpoints for item in items])
    assert verdict.score.mean() < 0.1
    assert verdict.quality.mean() < 0.2


def test_a_batch_is_judged_like_its_images_one_by_one() -> None:
    items = some_items(150)  # more than a chunk
    images = renders([item.scene for item in items], seed=4)
    together = judge(images, [item.testpoints for item in items])
    for k in (0, 1, 63, 64, 65, 149):
        alone = judge(images[k : k + 1], [items[k].testpoints])
        assert alone.satisfied[0] == together.satisfied[k]
        assert torch.equal(alone.quality[0], together.quality[k])


def test_an_empty_batch_and_an_image_without_testpoints() -> None:
    assert judge(torch.zeros(0, 3, 64, 64), []).quality.shape == (0,)
    verdict = judge(torch.zeros(1, 3, 64, 64), [()])
    assert verdict.satisfied == [[]]
    assert verdict.quality.isnan().all()


def test_wrong_shapes_and_values_are_errors() -> None:
    with pytest.raises(ValueError, match=r"expected images \[B, 3, 64, 64\]"):
        judge(torch.zeros(1, 3, 32, 32), [()])
    with pytest.raises(ValueError, match=r"got \[2, 3, 64, 64\] and 1"):
        judge(torch.zeros(2, 3, 64, 64), [()])
    with pytest.raises(ValueError, match="not finite"):
        judge(torch.full((1, 3, 64, 64), float("nan")), [()])


def flood(classes: np.ndarray, num_kinds: int) -> list[frozenset[tuple[int, ...]]]:
    """Components by the textbook: flood fill from every pixel."""
    found, seen = [], set()
    for start in zip(*np.nonzero(classes < num_kinds), strict=True):
        if start in seen:
            continue
        stack, part = [start], set()
        while stack:
            b, y, x = stack.pop()
            if (b, y, x) in part:
                continue
            part.add((b, y, x))
            for place in ((b, y + 1, x), (b, y - 1, x), (b, y, x + 1), (b, y, x - 1)):
                inside = 0 <= place[1] < classes.shape[1] and 0 <= place[2] < classes.shape[2]
                if inside and classes[place] == classes[start]:
                    stack.append(place)
        seen |= part
        found.append(frozenset(tuple(int(v) for v in place) for place in part))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_components_are_those_of_a_flood_fill(seed: int) -> None:
    classes = np.random.default_rng(seed).integers(0, 3, (3, 20, 17)).astype(np.uint8)
    found = components(classes, 2)
    parts = {}
    for number in range(len(found.image)):
        places = np.argwhere(found.labels == number)
        parts[frozenset(tuple(place) for place in places.tolist())] = number
        assert (places[:, 0] == found.image[number]).all()
        assert found.area[number] == len(places)
        assert (found.top[number], found.left[number]) == tuple(places[:, 1:].min(axis=0))
        assert (found.bottom[number], found.right[number]) == tuple(places[:, 1:].max(axis=0) + 1)
        assert (found.y[number], found.x[number]) == pytest.approx(tuple(places[:, 1:].mean(axis=0) + 0.5))
    assert set(parts) == set(flood(classes, 2))
    assert (np.diff(found.image) >= 0).all()


def test_a_fragment_joins_what_it_broke_off_from_and_a_thing_does_not() -> None:
    classes = np.full((1, 20, 30), 9, np.uint8)
    classes[0, 2:18, 2:8] = 0  # a thing of 96 pixels,
    classes[0, 4:8, 11:14] = 0  # a fragment of 12 three pixels away from it,
    classes[0, 10:13, 10:12] = 1  # a speck of 6 of another colour,
    classes[0, 2:18, 16:24] = 0  # and another thing of 128, two pixels from the fragment
    classes[0, 4:8, 27:29] = 1
    parts = components(classes, 2)
    assert sorted(mended(parts, gap=1, share=0.5).area.tolist()) == [6, 8, 12, 96, 128]
    assert sorted(mended(parts, gap=2, share=0.1).area.tolist()) == [6, 8, 96, 140]
    assert sorted(mended(parts, gap=2, share=0.05).area.tolist()) == [6, 8, 12, 96, 128]
    found = mended(parts, gap=3, share=0.5)
    assert sorted(found.area.tolist()) == [6, 8, 96, 140]  # the fragment joins the larger, which stay two
    joined = int(found.area.argmax())
    assert (found.left[joined], found.top[joined], found.right[joined], found.bottom[joined]) == (11, 2, 24, 18)
    places = np.argwhere(found.labels[0] == joined)
    assert (found.y[joined], found.x[joined]) == pytest.approx(tuple(places.mean(axis=0) + 0.5))


@pytest.mark.parametrize("height", [18, 22, 28, 34])
@pytest.mark.parametrize("width", [4, 5, 6])
def test_a_bare_bar_is_no_form(width: int, height: int) -> None:
    image = np.full((64, 64, 3), 247, np.uint8)
    image[32 - height // 2 : 32 + height // 2, 30 : 30 + width] = (45, 75, 225)
    for turned in (image, image.transpose(1, 0, 2)):
        (seen,) = look(np.ascontiguousarray(turned)[None]).pictures[0].seen
        assert max(seen.forms) < 0.5


def test_misshapen_things_are_what_they_were() -> None:
    rng = np.random.default_rng(3)
    things = [
        Thing(form, "blue", 32.0, 32.0, size, detail)
        for form, details in DETAILS.items()
        for detail in details
        for size in RADIUS[form]
        for _ in range(4)
    ]
    images = np.stack([render(Scene("white", (thing,)), rng, misshapen(rng)) for thing in things])
    right = 0
    for thing, picture in zip(things, look(images).pictures, strict=True):
        seen = max(picture.seen, key=lambda seen: seen.radius, default=None)
        right += seen is not None and seen.members[MEMBERS.index((thing.form, thing.detail))] >= 0.5
    assert right / len(things) >= 0.95


def test_perception_does_not_depend_on_the_prompt() -> None:
    image = (renders([some_items(1)[0].scene], seed=0) * 255).byte().permute(0, 2, 3, 1).numpy()
    first, second = look(image).pictures[0], look(image).pictures[0]
    assert first.seen == second.seen


def test_render_is_uint8_and_keeps_its_seed() -> None:
    scene = some_items(1)[0].scene
    first = render(scene, np.random.default_rng(0))
    assert (first.shape, first.dtype) == ((64, 64, 3), np.uint8)
    assert np.array_equal(first, render(scene, np.random.default_rng(0)))
    assert not np.array_equal(first, render(scene, np.random.default_rng(1)))


def test_the_corrupted_scene_survives_json() -> None:
    item = some_items(1)[0]
    scene = corrupt(item, random.Random(0))
    assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_the_report_names_its_command() -> None:
    text = report(count=2, seed=0)
    assert "judge_report --count 2 --seed 0" in text
    assert "| every case |" in text
