"""The gallery shows what its rule says, and its pictures are what plain diffusers draws."""

import base64
import io
import json

import pytest
import torch
from PIL import Image
from policies.tiny_flux import SIZE, build_pipeline
from runs import write_recipe

from flowrl.bench import gallery
from flowrl.bench.gallery import THUMBNAIL, chosen, encoded
from flowrl.errors import UserError
from flowrl.recipe import load_recipe
from flowrl.sampling import Sampler, drawing, find_source


def measurement(values, prompts=None):
    pictures = [encoded(torch.full((3, 4, 4), i / len(values))) for i in range(len(values))]
    prompts = prompts or [[10 + i, f"prompt {i}"] for i in range(len(values))]
    return {"values": values, "pictures": pictures, "prompts": prompts, "score": "gold", "noise": 0}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([0.5, 0.1, 0.4, 0.9, 0.2], {"highest": 3, "median": 2, "lowest": 1}),
        ([0.5, 0.1, 0.4, 0.9], {"highest": 3, "median": 2, "lowest": 1}),
        ([0.5, 0.5, 0.1, 0.1, 0.1], {"highest": 0, "median": 2}),
        ([0.5, None, 0.4], {"highest": 0, "median": 2}),
        ([0.5], {"highest": 0}),
        ([None], {}),
    ],
    ids=["five", "an even number", "the first among equals", "without an answer", "one", "none"],
)
def test_the_rule(after, expected):
    found = chosen([measurement([0.0] * len(after))], [measurement(after)])
    assert {rule: place for rule, place, _ in found} == expected


def test_differences_are_means_over_seeds():
    before = [measurement([0.0, 0.0, 0.0]), measurement([0.2, 0.0, 0.4])]
    after = [measurement([0.6, 0.3, 0.2]), measurement([0.2, 0.3, 0.0])]
    found = chosen(before, after)
    assert [(rule, place) for rule, place, _ in found] == [("highest", 0), ("median", 1), ("lowest", 2)]
    assert [difference for *_, difference in found] == pytest.approx([0.3, 0.3, -0.1])


def test_every_method_is_shown_with_the_same_prompt(tmp_path):
    of_method = {"base": [measurement([0.1, 0.1, 0.1])], "A": [measurement([0.3, 0.2, 0.1])]}
    of_method["B"] = [measurement([0.9, 0.0, 0.0])]
    found, files = gallery.gallery(of_method, base="base", reference="A")
    gallery.write(files, tmp_path)
    assert [c.prompt for c in found.comparisons] == ["prompt 0", "prompt 1", "prompt 2"]
    first = found.comparisons[0]
    assert first.chosen == "highest difference of gold between A and base: +0.200"
    assert [(p.label, p.score) for p in first.pictures] == [("base", 0.1), ("A", 0.3), ("B", 0.9)]
    assert all((tmp_path / p.file).is_file() for c in found.comparisons for p in c.pictures)
    assert first.pictures[1].file == "gallery/10_1.png"


def test_pictures_are_small_and_whole():
    large = Image.open(io.BytesIO(base64.b64decode(encoded(torch.rand(3, 300, 600)))))
    assert large.size == (THUMBNAIL, THUMBNAIL // 2)
    pixels = torch.rand(3, 8, 8)
    small = Image.open(io.BytesIO(base64.b64decode(encoded(pixels))))
    assert list(small.getdata())[1] == tuple((pixels[:, 0, 1] * 255).round().int().tolist())


def test_a_measurement_is_what_the_pipeline_draws(tmp_path):
    pipeline = build_pipeline(tmp_path / "pipeline")
    path = write_recipe(tmp_path / "r", model={"kind": "flux", "source": str(pipeline)})
    scorer = "evaluation.scorers.gold={kind: tiny, broken_at: [2]}"
    recipe = load_recipe(path, overrides=[scorer, "evaluation.generate.num_steps=3"])
    found = gallery.measure(recipe, num_prompts=3, seed=5)
    assert json.loads(json.dumps(found)) == found
    assert [text for _, text in found["prompts"]] == ["test 0", "test 1", "test 2"]
    assert found["values"][2] is None
    source = find_source(str(pipeline))
    sampler = Sampler(source, drawing(source, num_steps=3, seed=5), torch.device("cpu"))
    drawn = sampler.draw(gallery.load_prompts(recipe.data.test)[:3])
    assert found["values"][0] == pytest.approx(-float(((drawn[0][0] - 0.3) ** 2).sum()), rel=1e-4)
    picture = Image.open(io.BytesIO(base64.b64decode(found["pictures"][0])))
    assert picture.size == (SIZE, SIZE)
    assert picture.getpixel((0, 0)) == tuple((drawn[0][:, 0, 0] * 255).round().int().tolist())


def test_without_the_score_there_is_no_gallery(tmp_path):
    with pytest.raises(UserError, match=r"evaluation\.scorers\.gold"):
        gallery.measure(load_recipe(write_recipe(tmp_path / "r")))
