"""Prompt sources and the order of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrl import data
from flowrl.data import PromptOrder, check_disjoint, load_prompts, rank_slice, worlds
from flowrl.errors import UserError
from flowrl.types import Prompt


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts(prompts: list[Prompt]) -> list[str]:
    assert [prompt.index for prompt in prompts] == list(range(len(prompts)))
    return [prompt.text for prompt in prompts]


# ---- sources


def test_txt(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "\ufeffa cat\r\n\n  zwei Hüte \n")
    assert texts(load_prompts(source)) == ["a cat", "zwei Hüte"]


def test_jsonl(tmp_path: Path) -> None:
    rows = [{"prompt": "a cat", "group": 1}, "a dog", {"text": "x", "prompt": "a hat"}]
    prompts = load_prompts(write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows)))
    assert texts(prompts) == ["a cat", "a dog", "a hat"]
    assert [dict(prompt.meta) for prompt in prompts] == [{"group": 1}, {}, {"text": "x"}]


def test_csv(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", 'index,caption,n\n7,"a cat, sitting\non a mat",3\n8,a dog,4\n')
    prompts = load_prompts(source)
    assert texts(prompts) == ["a cat, sitting\non a mat", "a dog"]
    assert prompts[1].meta == {"index": "8", "n": "4"}
    assert texts(load_prompts(source, column="n")) == ["3", "4"]


def test_a_single_translated_column_is_the_prompt(tmp_path: Path) -> None:
    assert texts(load_prompts(write(tmp_path / "a.csv", "index,prompt_en\n0,a cat\n"))) == ["a cat"]
    with pytest.raises(UserError, match="none of the columns prompt, text, caption; it has prompt_en, prompt_zh"):
        load_prompts(write(tmp_path / "b.csv", "prompt_en,prompt_zh\na,b\n"))


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a cat", "a dog"], "n": [1, 2]}), path)
    prompts = load_prompts(str(path))
    assert texts(prompts) == ["a cat", "a dog"]
    assert prompts[1].meta == {"n": 2}
    with pytest.raises(UserError, match=r"b\.parquet is not a readable Parquet file"):
        load_prompts(write(tmp_path / "b.parquet", "no"))


def test_hugging_face_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.csv", "prompt,title\na cat,one\na dog,two\n")
    write(folder / "test.csv", "prompt,title\na hat,three\n")
    prompts = load_prompts(f"hf:{folder}")
    assert texts(prompts) == ["a cat", "a dog"]
    assert prompts[0].meta == {"title": "one"}
    assert texts(load_prompts(f"hf:{folder}:test:title")) == ["three"]
    with pytest.raises(UserError, match=r"split 'validation'"):
        load_prompts(f"hf:{folder}:validation")
    with pytest.raises(UserError, match="cannot load hf:"):
        load_prompts(f"hf:{tmp_path}/nothing")


def test_a_data_set_without_the_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'flowrl\[hub\]'"):
        load_prompts("hf:someone/prompts")


def test_worlds() -> None:
    if "shapes" not in worlds():
        pytest.skip("the world has no prompts yet")
    test = load_prompts("shapes:test")
    assert len(set(texts(test))) == len(test) >= 400
    check_disjoint(load_prompts("shapes:train"), test)
    with pytest.raises(UserError, match="did you mean 'train'"):
        load_prompts("shapes:trian")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "holds no prompt"),
        ("a.txt", " \n\n", "holds no prompt"),
        ("a.txt", b"a cat\n\xff\xfe\n", "a.txt, line 2: must be UTF-8"),
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', "a.jsonl, line 3: each line must be JSON"),
        ("a.jsonl", "[1]\n", "line 1: each line must be an object or a text"),
        ("a.jsonl", '{"promt": "a"}\n', r"line 1 has none of the columns .*it has promt; rename"),
        ("a.jsonl", '{"prompt": 3}\n', "line 1: column 'prompt' must be a non-empty text, got 3"),
        ("a.csv", "", "holds no prompt"),
        ("a.csv", "prompt,n\n", "holds no prompt"),
        ("a.csv", "prompt,n\na,1\n,2\n", "line 3: column 'prompt' must be a non-empty text, got ''"),
        ("a.csv", "prompt,n\na,b,1\n", "line 2: a row must have the header's 2 fields"),
        ("a.csv", "prompt,n\na\n", "line 2: a row must have the header's 2 fields"),
        ("a.csv", 'prompt,n\na,1\n"b,2\n', "not valid CSV"),
        ("a.csv", b"prompt\n\xff\n", "not valid CSV in UTF-8"),
        ("a.json", "{}", "is neither a .txt, .jsonl, .csv, .parquet file"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_prompts(write(tmp_path / name, content))


def test_missing_files_and_columns_name_the_nearest(tmp_path: Path) -> None:
    source = write(tmp_path / "prompts.txt", "a")
    with pytest.raises(UserError, match=f"no such file: .*did you mean '{source}'"):
        load_prompts(str(tmp_path / "promts.txt"))
    with pytest.raises(UserError, match="no column 'titel'; did you mean 'title'"):
        load_prompts(write(tmp_path / "a.csv", "prompt,title\na,b\n"), column="titel")
    with pytest.raises(UserError, match="a data set is hf:NAME"):
        load_prompts("hf:a:b:c:d")


def test_it_imports_nothing_heavy() -> None:
    code = "import sys, flowrl.data; sys.exit(any(m in sys.modules for m in ('diffusers', 'datasets', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- order


def order(num: int, per_iteration: int, seed: int) -> PromptOrder:
    return PromptOrder([Prompt(f"prompt {i}", i) for i in range(num)], per_iteration, seed)


sizes = st.integers(1, 12)


@given(num=sizes, per_iteration=sizes, seed=st.integers(0, 5), epochs=st.integers(1, 3))
def test_every_epoch_visits_every_prompt_once(num: int, per_iteration: int, seed: int, epochs: int) -> None:
    run = order(num, per_iteration, seed)
    visited = [p.index for iteration in range(num * epochs) for p in run[iteration]]
    for epoch in range(epochs):
        assert sorted(visited[epoch * num : (epoch + 1) * num]) == list(range(num))


@given(num=sizes, per_iteration=sizes, seed=st.integers(0, 5), iteration=st.integers(0, 30))
def test_an_iteration_is_a_pure_function(num: int, per_iteration: int, seed: int, iteration: int) -> None:
    assert order(num, per_iteration, seed)[iteration] == order(num, per_iteration, seed)[iteration]
    # another batch size reads the same sequence
    sequence = [p for i in range((iteration + 1) * per_iteration) for p in order(num, 1, seed)[i]]
    assert order(num, per_iteration, seed)[iteration] == sequence[-per_iteration:]


@given(num=sizes, per_iteration=sizes, start=st.integers(0, 6), length=st.integers(0, 8))
def test_reached_is_exactly_what_the_cursor_reaches(num: int, per_iteration: int, start: int, length: int) -> None:
    run = order(num, per_iteration, 0)
    expected = dict.fromkeys(p.index for iteration in range(start, start + length) for p in run[iteration])
    assert [p.index for p in run.reached(start, start + length)] == list(expected)


def test_seeds_and_epochs_differ() -> None:
    first, second = order(50, 50, 0), order(50, 50, 1)
    assert first[0] != second[0]
    assert first[0] != first[1]
    assert [p.index for p in order(5, 5, 0)[0]] == [p.index for p in order(5, 5, 0)[0]]


@given(num=st.integers(1, 30), world=st.integers(1, 9))
def test_rank_slices_tile_the_batch(num: int, world: int) -> None:
    slices = [rank_slice(num, rank, world) for rank in range(world)]
    assert len({len(part.positions) for part in slices}) == 1
    pairs = [pair for part in slices for pair in zip(part.positions, part.weights, strict=True)]
    assert [position for position, weight in pairs if weight == 1.0] == list(range(num))
    assert {weight for _, weight in pairs} <= {0.0, 1.0}
    assert len(pairs) < num + world
    assert all(count >= 1 for count in Counter(position for position, _ in pairs).values())


def test_an_order_needs_prompts() -> None:
    with pytest.raises(ValueError, match="needs prompts"):
        order(0, 1, 0)
    with pytest.raises(ValueError, match="rank"):
        rank_slice(3, 2, 2)


# ---- training against evaluation


def test_an_overlap_is_named() -> None:
    train = [Prompt("A  cat.", 0), Prompt("a dog", 1)]
    check_disjoint(train, [Prompt("a hat", 0)])
    with pytest.raises(UserError, match=r"1 evaluation prompts are also training prompts.*'a CAT'"):
        check_disjoint(train, [Prompt("a CAT", 0), Prompt("a hat", 1)])
