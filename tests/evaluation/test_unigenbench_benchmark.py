"""The benchmark's CSV files: what is asked, and rows that cannot be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from unigenbench_fakes import PROMPTS, data_file, small_csv, sub_dims, write_csv

from flowrl.errors import UserError
from flowrl.evaluation.unigenbench.benchmark import Benchmark, load_benchmark
from flowrl.evaluation.unigenbench.dimensions import COLUMNS, DIMENSIONS, by_name
from flowrl.worlds.shapes.prompts import write_bench_csv

GOOD = sub_dims(["Style", "Grammar - Negation"], ["ink", "no tea"])
NO_COMMA = GOOD.replace('"Style", ', '"Style" ')
DENOMINATORS = {  # of the English file, four images per prompt
    "Style": 1000,
    "World Knowledge": 632,
    "Attribute": 936,
    "Action": 1052,
    "Relationship": 788,
    "Logical Reasoning": 436,
    "Grammar": 748,
    "Compound": 776,
    "Entity Layout": 536,
    "Text Generation": 348,
}


def counted(benchmark: Benchmark) -> Counter[str]:
    known = by_name(benchmark.language)
    return Counter(known[name].en for prompt in benchmark.prompts for name in prompt.names)


# ---- dimensions


def test_there_are_27_sub_dimensions_of_10_primary_ones() -> None:
    assert len(DIMENSIONS) == len(by_name("en")) == len(by_name("zh")) == 27
    assert {dimension.primary for dimension in DIMENSIONS} == set(COLUMNS)
    assert all(dimension.meaning(language) for dimension in DIMENSIONS for language in ("en", "zh"))


# ---- files


def test_a_file_gives_prompts_verbatim(tmp_path: Path) -> None:
    benchmark = load_benchmark(str(small_csv(tmp_path / "test_prompts_en.csv")))
    found = [(p.index, p.text, list(p.names), list(p.descriptions)) for p in benchmark.prompts]
    assert found == PROMPTS
    assert (benchmark.category, benchmark.language, benchmark.size) == ("en", "en", 3)
    assert [(p.text, p.index) for p in benchmark.to_draw()] == [(text, index) for index, text, *_ in PROMPTS]


def test_first_keeps_the_size_and_changes_the_digest(tmp_path: Path) -> None:
    benchmark = load_benchmark(str(small_csv(tmp_path / "x.csv")))
    assert len(benchmark.first(2).prompts) == 2
    assert benchmark.first(2).size == 3
    assert benchmark.first(2).digest() != benchmark.first(None).digest() == benchmark.digest()


@pytest.mark.parametrize(("name", "category"), [("test_prompts_zh.csv", "zh"), ("test_prompts_zh_long.csv", "zh_long")])
def test_chinese_and_long_variants(tmp_path: Path, name: str, category: str) -> None:
    row = (0, " 水墨画，两只熊猫", sub_dims(["风格", "属性-数量"], ["水墨画", "两只"], "zh"))
    benchmark = load_benchmark(str(write_csv(tmp_path / name, [row], "zh")))
    assert (benchmark.language, benchmark.category) == ("zh", category)
    assert benchmark.prompts[0].text == " 水墨画，两只熊猫"
    assert benchmark.prompts[0].names == ("风格", "属性-数量")


def test_the_worlds_benchmark_is_that_of_its_own_csv(tmp_path: Path) -> None:
    write_bench_csv(tmp_path / "shapes.csv")
    world, file = load_benchmark("shapes:bench"), load_benchmark(str(tmp_path / "shapes.csv"))
    assert world.prompts == file.prompts
    assert world.digest() == file.digest()
    assert world.category == "shapes"
    assert {by_name("en")[name].primary for prompt in world.prompts for name in prompt.names} == set(COLUMNS)


# ---- the real files


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_published_denominators_come_out(language: str) -> None:
    benchmark = load_benchmark(str(data_file(f"unigenbench_test_prompts_{language}.csv")))
    by_sub = counted(benchmark)
    assert len(benchmark.prompts) == 600
    assert [prompt.index for prompt in benchmark.prompts] == list(range(600))
    assert sum(by_sub.values()) == 1813
    assert len(by_sub) == 27
    found = Counter[str]()
    for dimension in DIMENSIONS:
        found[dimension.primary] += 4 * by_sub[dimension.en]
    assert found == DENOMINATORS


# ---- broken rows


def broken_csv(path: Path, cell: str, text: str = "a cup", index: object = 509) -> str:
    return str(write_csv(path, [(508, "a fox", GOOD), (index, text, cell)]))


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (NO_COMMA, r"sub_dims_en is not JSON: Expecting ',' delimiter after .*\"Style\""),
        (sub_dims(["Style"], ["ink", "tea"]), "1 testpoints and 2 descriptions"),
        (sub_dims([], []), "0 testpoints and 0 descriptions"),
        (
            sub_dims(["Attribute - Colour"], ["red"]),
            "no testpoint 'Attribute - Colour'; did you mean 'Attribute - Color'",
        ),
        ('{"Testpoints": "Style", "Testpoint Description": ["ink"]}', "a list of texts 'Testpoints'"),
        ("[1]", "must be a JSON object"),
    ],
)
def test_a_broken_row_is_named_with_file_row_and_reason(tmp_path: Path, cell: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)long.csv: 1 broken rows.*row 1 \(index 509\): .*{reason}"):
        load_benchmark(broken_csv(tmp_path / "long.csv", cell))


@pytest.mark.parametrize(
    ("text", "index", "reason"),
    [(" ", 509, "prompt_en is empty"), ("a cup", 508, "another row has this index"), ("a cup", "x", "invalid literal")],
)
def test_prompts_and_indices_must_be_sound(tmp_path: Path, text: str, index: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        load_benchmark(broken_csv(tmp_path / "x.csv", GOOD, text, index))


def test_a_missing_comma_is_repaired_on_request_and_reported(tmp_path: Path) -> None:
    benchmark = load_benchmark(broken_csv(tmp_path / "x.csv", NO_COMMA), "repair")
    assert benchmark.prompts[1].names == benchmark.prompts[0].names
    assert benchmark.prompts[1].descriptions == benchmark.prompts[0].descriptions
    assert len(benchmark.repaired) == 1
    assert "row 1 (index 509)" in benchmark.repaired[0]
    assert not benchmark.skipped


@pytest.mark.parametrize("cell", [GOOD[:-1], GOOD.replace('"ink"', '"in"k"'), sub_dims(["Style"], ["a", "b"])])
def test_nothing_else_is_repaired(tmp_path: Path, cell: str) -> None:
    with pytest.raises(UserError, match="index 509") as caught:
        load_benchmark(broken_csv(tmp_path / "x.csv", cell), "repair")
    assert "--rows skip" in str(caught.value)
    assert "--rows repair" not in str(caught.value)


def test_a_broken_row_is_left_out_on_request_and_reported(tmp_path: Path) -> None:
    benchmark = load_benchmark(broken_csv(tmp_path / "x.csv", NO_COMMA), "skip")
    assert [prompt.index for prompt in benchmark.prompts] == [508]
    assert benchmark.size == 2
    assert "index 509" in benchmark.skipped[0]


def test_mistakes_in_the_source_are_one_message(tmp_path: Path) -> None:
    small_csv(tmp_path / "prompts_en.csv")
    with pytest.raises(UserError, match=r"did you mean .*prompts_en\.csv"):
        load_benchmark(str(tmp_path / "prompt_en.csv"))
    with pytest.raises(UserError, match="shapes:bench, got shapes:test"):
        load_benchmark("shapes:test")
    (tmp_path / "other.csv").write_text("index,prompt_en\n0,a\n")
    with pytest.raises(UserError, match=r"must have the columns index, prompt_LANGUAGE.*it has index, prompt_en"):
        load_benchmark(str(tmp_path / "other.csv"))
    (tmp_path / "latin.csv").write_bytes("index,prompt_en,sub_dims_en\n0,caf\xe9,{}\n".encode("latin-1"))
    with pytest.raises(UserError, match="not valid CSV in UTF-8"):
        load_benchmark(str(tmp_path / "latin.csv"))
    (tmp_path / "short.csv").write_text("index,prompt_en,sub_dims_en\n0,a\n")
    with pytest.raises(UserError, match="not as many fields as the header"):
        load_benchmark(str(tmp_path / "short.csv"))
