"""A judged folder: retries, failures, resuming without asking twice, and the files that come out."""

from __future__ import annotations

import ast
import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from unigenbench_fakes import PROMPTS, FakeJudge, draw, said, small_csv

from flowrl.errors import RunFailed, UserError
from flowrl.evaluation.unigenbench.benchmark import Benchmark, load_benchmark
from flowrl.evaluation.unigenbench.evaluate import evaluate
from flowrl.evaluation.unigenbench.report import BenchResult
from flowrl.evaluation.unigenbench.wording import own_wording
from flowrl.hub import sha256
from flowrl.types import Answer, Question

NUM_IMAGES = 2 * len(PROMPTS)
TESTPOINTS = {index: len(names) for index, _, names, _ in PROMPTS}


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    return load_benchmark(str(small_csv(tmp_path / "test_prompts_en.csv")))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "drawn")


@pytest.fixture
def run(tmp_path: Path, benchmark: Benchmark, images: Path) -> Any:
    def judged(judge: Any, output: str = "out", **options: Any) -> BenchResult:
        options = {"identity": {"kind": "fake"}, "wording": own_wording("en"), "per_prompt": 2} | options
        options = {"say": lambda line: None} | options
        return evaluate(benchmark, images, judge, tmp_path / output, **options)

    return judged


def right(index: int, sample: int, times: int) -> str:
    """Everything is granted on even samples, nothing on odd ones."""
    return said([1 - sample % 2] * TESTPOINTS[index])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# ---- asking


@pytest.mark.parametrize("workers", [1, 3])
def test_every_image_is_asked_about_once_with_its_own_question(run: Any, workers: int) -> None:
    judge = FakeJudge(right)
    result = run(judge, workers=workers)
    assert judge.asked == Counter({(index, sample): 1 for index, *_ in PROMPTS for sample in range(2)})
    for question in judge.questions:
        index = question.image.getpixel((0, 0))[0]
        text = next(text for i, text, *_ in PROMPTS if i == index)
        assert f'"{text}"' in question.text
        assert not question.text_first
    assert result.counts.primary["Style"] == (1, 2, 2)
    assert result.title == "UniGenBench++ en: 3 prompts x 2 images, coverage 100 %"


def test_an_unreadable_answer_is_asked_for_again_by_the_same_question(run: Any, tmp_path: Path) -> None:
    judge = FakeJudge(lambda index, sample, times: "hm" if index == 3 and times < 4 else right(index, sample, times))
    result = run(judge, max_retries=4)
    assert judge.asked[3, 0] == judge.asked[3, 1] == 5
    assert len({question.text for question in judge.questions}) == len(PROMPTS)
    assert result.counts.coverage == 1
    row = next(row for row in lines(tmp_path / "out/answers.jsonl") if row["file"] == "3_1.png")
    assert [answer["text"] for answer in row["answers"]] == ["hm"] * 4 + [said([0, 0, 0])]
    assert (row["outcome"], row["passed"], row["index"], row["sample"]) == ("counted", [False] * 3, 3, 1)


def test_an_image_whose_answers_cannot_be_read_fails_and_shows(run: Any, tmp_path: Path) -> None:
    judge = FakeJudge(lambda index, sample, times: "hm" if (index, sample) == (3, 1) else right(index, sample, times))
    result = run(judge, max_retries=2)
    assert judge.asked[3, 1] == 3
    assert result.counts.outcomes == {"counted": 5, "lost": 0, "unreadable": 1}
    assert result.counts.primary["Style"] == (1, 1, 2)
    assert result.title.endswith("coverage 83.33 % (1 of 6 answers are missing from the numbers)")
    page = (tmp_path / "out/unigenbench.md").read_text()
    assert page.startswith(f"# {result.title}\n")
    assert "| accuracy | - | 100.00 |" in page
    assert "| failed = 0 | - | 50.00 |" in page
    summary = json.loads((tmp_path / "out/unigenbench.json").read_text())
    assert summary["coverage"] == pytest.approx(5 / 6)
    assert summary["dimensions"]["Style"]["accuracy"] == 1
    assert summary["dimensions"]["Style"]["failed_as_0"] == 0.5
    # asked for as often as agreed: asking again would be asking twice
    again = FakeJudge(right)
    assert run(again, max_retries=2, resume=True).counts.outcomes == result.counts.outcomes
    assert not again.asked


def test_coverage_is_never_rounded_up_to_all(run: Any) -> None:
    result = run(
        FakeJudge(lambda index, sample, times: "hm" if index == 7 else right(index, sample, times)), max_retries=0
    )
    counts = type(result.counts)({"counted": 99_999, "lost": 1, "unreadable": 0}, {}, {}, {})
    shown = type(result)(**{**vars(result), "counts": counts}).title
    assert "coverage 99.99 % (1 of 100000" in shown


def test_a_lost_answer_is_not_asked_for_again(run: Any) -> None:
    judge = FakeJudge(lambda index, sample, times: said([True] * TESTPOINTS[index]))
    assert run(judge).counts.outcomes == {"counted": 0, "lost": 6, "unreadable": 0}
    assert set(judge.asked.values()) == {1}


def test_an_answer_that_was_cut_off_counts_if_it_can_be_read(run: Any) -> None:
    judge = FakeJudge(lambda index, sample, times: Answer(right(index, sample, times) + "\nAnd", "cut off"))
    assert run(judge).counts.coverage == 1


# ---- a judge that is not there


def test_a_silent_judge_ends_it_and_nothing_is_lost(run: Any, tmp_path: Path) -> None:
    judge = FakeJudge(lambda index, sample, times: right(index, sample, times) if index == 0 else None)
    with pytest.raises(RunFailed, match=r"not answered 4 times in a row \(gone\).*--resume"):
        run_silent(run, judge, limit=4)
    again = FakeJudge(right)
    assert run(again, resume=True).counts.coverage == 1
    assert set(again.asked) == {(3, 0), (3, 1), (7, 0), (7, 1)}


def run_silent(run: Any, judge: FakeJudge, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowrl.evaluation.unigenbench.evaluate._SILENCE", limit)
        run(judge)


def test_one_image_without_an_answer_fails_and_is_asked_about_on_resuming(run: Any) -> None:
    judge = FakeJudge(lambda index, sample, times: None if (index, sample) == (3, 0) else right(index, sample, times))
    result = run(judge)
    assert judge.asked[3, 0] == 3
    assert result.counts.outcomes["unreadable"] == 1
    again = FakeJudge(right)
    assert run(again, resume=True).counts.coverage == 1
    assert again.asked == Counter({(3, 0): 1})


# ---- resuming


class Killed(BaseException):
    """As if the process ended."""


def dying(after: int) -> FakeJudge:
    """Answers ``after`` images, then the world ends."""
    given = 0

    def answer(index: int, sample: int, times: int) -> str:
        nonlocal given
        given += 1
        if given > after:
            raise Killed
        return right(index, sample, times)

    return FakeJudge(answer)


def test_resuming_asks_only_what_is_missing(run: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(dying(after=3))
    again, said_lines = FakeJudge(right), list[str]()
    resumed = run(again, resume=True, say=said_lines.append)
    assert sum(again.asked.values()) == NUM_IMAGES - 3
    assert said_lines[0] == "3 of 6 images are answered already"
    assert resumed.counts == run(FakeJudge(right), "other").counts
    nobody = FakeJudge(right)
    run(nobody, resume=True)
    assert not nobody.asked
    for name in ("drawn_en.json", "drawn_en.csv", "unigenbench.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_line_that_was_cut_in_two_is_asked_for_again(run: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(dying(after=3))
    path = tmp_path / "out/answers.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    again = FakeJudge(right)
    assert run(again, resume=True).counts.coverage == 1
    assert sum(again.asked.values()) == NUM_IMAGES - 2
    assert len(lines(path)) == NUM_IMAGES


def test_answers_of_an_unfinished_image_are_kept(run: Any, tmp_path: Path) -> None:
    silent = FakeJudge(lambda index, sample, times: "hm" if times == 0 else None)
    with pytest.raises(RunFailed):
        run_silent(lambda judge: run(judge, max_retries=3), silent, limit=2)
    assert [row["outcome"] for row in lines(tmp_path / "out/answers.jsonl")] == ["unreadable"]
    again = FakeJudge(lambda index, sample, times: "hm")
    run(again, max_retries=3, resume=True)
    assert again.asked[0, 0] == 3  # the first of four tries was before
    assert again.asked[7, 1] == 4


@pytest.mark.parametrize("changed", ["picture", "judge", "wording"])
def test_what_was_not_asked_this_way_is_asked(run: Any, images: Path, tmp_path: Path, changed: str) -> None:
    run(FakeJudge(right))
    options: dict[str, Any] = {"resume": True}
    if changed == "picture":
        Image.new("RGB", (8, 8), (3, 1, 200)).save(images / "3_1.png")
    elif changed == "judge":
        options["identity"] = {"kind": "another"}
    else:
        words = own_wording("en")
        options["wording"] = type(words)({"name": "mine"}, lambda prompt: words.render(prompt) + "!")
    again = FakeJudge(right)
    run(again, **options)
    assert sum(again.asked.values()) == (1 if changed == "picture" else NUM_IMAGES)
    nobody = FakeJudge(right)
    run(nobody, **options)
    assert not nobody.asked
    assert len(lines(tmp_path / "out/answers.jsonl")) == NUM_IMAGES + sum(again.asked.values())  # paid for, so kept


def test_a_killed_process_is_resumed_with_nothing_asked_twice(tmp_path: Path, run: Any, images: Path) -> None:
    log = tmp_path / "asked.txt"
    program = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from unigenbench_fakes import FakeJudge, said
from flowrl.evaluation.unigenbench.benchmark import load_benchmark
from flowrl.evaluation.unigenbench.evaluate import evaluate
from flowrl.evaluation.unigenbench.wording import own_wording
def answer(index, sample, times):
    with open({str(log)!r}, "a") as file:
        count = len(open({str(log)!r}).readlines())
        if count == 4:
            print("half-way", flush=True)
            time.sleep(60)
        file.write(f"{{index}}_{{sample}}\\n")
    return said([1 - sample % 2] * {TESTPOINTS!r}[index])
evaluate(load_benchmark({str(tmp_path / "test_prompts_en.csv")!r}), Path({str(images)!r}), FakeJudge(answer),
         Path({str(tmp_path / "out")!r}), identity={{"kind": "fake"}}, wording=own_wording("en"), per_prompt=2,
         say=lambda line: None)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half-way\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = log.read_text().split()
    assert len(before) == 4
    again = FakeJudge(right)
    assert run(again, resume=True).counts.coverage == 1
    assert {f"{index}_{sample}" for index, sample in again.asked}.isdisjoint(before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_in_flight(run: Any, tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def answer(index: int, sample: int, times: int) -> str:
        if (index, sample) == (0, 1):
            os.kill(os.getpid(), number)
        time.sleep(0.1)
        return right(index, sample, times)

    judge = FakeJudge(answer)
    with pytest.raises(RunFailed, match=r"stopped by SIG.*; .*--resume"):
        run(judge, workers=2)
    rows = lines(tmp_path / "out/answers.jsonl")
    assert len(rows) == sum(judge.asked.values()) < NUM_IMAGES
    again = FakeJudge(right)
    assert run(again, resume=True).counts.coverage == 1
    assert not set(again.asked) & set(judge.asked)
    assert signal.getsignal(number) is before


# ---- mistakes


def test_all_missing_images_are_told_at_once(run: Any, images: Path) -> None:
    for name in ("3_0.png", "7_1.png"):
        (images / name).unlink()
    judge = FakeJudge(right)
    with pytest.raises(UserError, match=r"lacks 2 of 6 images: 3_0.png, 7_1.png; .*--per-prompt"):
        run(judge)
    with pytest.raises(UserError, match=r"lacks 8 of 12 images: 0_2.png, .* and 3 more"):
        run(judge, per_prompt=4)
    assert not judge.asked


def test_a_picture_that_cannot_be_read_is_named_and_nothing_is_lost(run: Any, images: Path) -> None:
    whole = (images / "7_0.png").read_bytes()
    (images / "7_0.png").write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"7_0.png is not a readable picture"):
        run(FakeJudge(right))
    (images / "7_0.png").write_bytes(whole)
    again = FakeJudge(right)
    run(again, resume=True)
    assert (7, 0) in again.asked
    assert (0, 0) not in again.asked


def test_an_output_in_use_is_left_alone(run: Any, tmp_path: Path) -> None:
    run(FakeJudge(right))
    judge = FakeJudge(right)
    with pytest.raises(UserError, match=r"holds answers already; .*--resume"):
        run(judge)
    with (tmp_path / "out/answers.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="being written by another process"):
            run(judge, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(judge, "file/out")
    assert not judge.asked


def test_a_damaged_line_is_named(run: Any, tmp_path: Path) -> None:
    run(FakeJudge(right))
    path = tmp_path / "out/answers.jsonl"
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"answers.jsonl, line 1 is damaged"):
        run(FakeJudge(right), resume=True)


# ---- files


NASTY = ['it\'s "red"', "猫\u2028", "a,b\r\nc", "\udc80 not text", "</p> 1"]


def nasty(index: int, sample: int, times: int) -> str:
    """Answers that tables break on; among them some that are not counted."""
    count = TESTPOINTS[index]
    scores: Sequence[object] = [[1, 0, 1], ["1", 1.0, 0], [True] * 3, (1, 1, 1)][(index // 3 + 2 * sample) % 4][:count]
    text = NASTY[(index + sample) % 5].encode("utf-8", "replace").decode()
    return f"{NASTY[sample]}<analysis>{[text] * count}</analysis>\r<score>{scores}</score>"


def test_the_official_files_add_up_the_official_way(run: Any, tmp_path: Path) -> None:
    """The table, read by pandas and counted by what the published program does with it, gives the summary."""
    import pandas as pd

    result = run(FakeJudge(nasty))
    table = pd.read_csv(tmp_path / "out/drawn_en.csv")
    assert list(table.columns) == ["index", "prompt", "testpoint", "output", "result_json", "img_path"]
    assert list(table["img_path"]) == [str(tmp_path / f"drawn/{i}_{j}.png") for i, *_ in PROMPTS for j in range(2)]
    totals, skipped = dict[str, list[int]](), 0
    for row in table.to_dict("records"):
        try:
            scores = ast.literal_eval(row["result_json"])["score"]
        except ValueError:
            skipped += 1
            continue
        for name, score in zip(ast.literal_eval(row["testpoint"]), scores, strict=True):
            passed_and_counted = totals.setdefault(name, [0, 0])
            passed_and_counted[0] += score == 1
            passed_and_counted[1] += 1
    summary = json.loads((tmp_path / "out/drawn_en.json").read_text())
    found = {name: [sub["correct"], sub["total"]] for name, sub in summary["sub_dimensions"].items()}
    assert found == dict(sorted(totals.items()))
    assert skipped == result.counts.outcomes["lost"] > 0
    assert {"Attribute ", "Style"} <= set(summary["primary_dimensions"])


def test_the_official_table_byte_by_byte(run: Any, images: Path, tmp_path: Path) -> None:
    run(FakeJudge(lambda index, sample, times: "hm" if index != 7 else said([1])), max_retries=0)
    with (tmp_path / "out/drawn_en.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    first, last = rows[1], rows[-1]
    assert first == [
        "0", PROMPTS[0][1], "['Attribute - Color', 'Action - Animal']", "hm", "null", f"{images}/0_0.png"
    ]  # fmt: skip
    kept = '{\n    "prompt": "a sign that says GO",\n    "testpoint": [\n        "Text Generation"\n    ],\n'
    kept += '    "analysis": [\n        "seen"\n    ],\n    "score": [\n        1\n    ]\n}'
    assert last == ["7", "a sign that says GO", "['Text Generation']", said([1]), kept, f"{images}/7_1.png"]


def test_the_summary_says_what_it_is_of(run: Any, benchmark: Benchmark, tmp_path: Path) -> None:
    run(FakeJudge(right), identity={"kind": "fake", "model": "QwenVL"})
    summary = json.loads((tmp_path / "out/unigenbench.json").read_text())
    assert summary["judge"] == {"kind": "fake", "model": "QwenVL"}
    assert summary["wording"]["name"] == "flowrl"
    assert summary["benchmark"]["sha256"] == benchmark.digest()
    assert summary["images"] == {"asked": 6, "counted": 6, "lost": 0, "unreadable": 0}
    assert summary["overall"] is None
    page = (tmp_path / "out/unigenbench.md").read_text()
    assert "There is no Overall: nothing was counted of World Knowledge, Relationship," in page


def test_left_out_and_repaired_rows_are_told(images: Path, tmp_path: Path) -> None:
    rows = (tmp_path / "broken.csv", PROMPTS)
    path = small_csv(rows[0])
    path.write_text(path.read_text().replace('""Attribute - Color"", ', '""Attribute - Color"" '))
    for option, title, word in (("skip", "2 of 3 prompts", "Left out"), ("repair", "3 prompts", "Repaired")):
        benchmark = load_benchmark(str(path), option)
        output = tmp_path / option
        words = own_wording("en")
        result = evaluate(
            benchmark, images, FakeJudge(right), output, identity={}, wording=words, per_prompt=2, say=lambda line: None
        )
        assert title in result.title
        assert f"{word} in " in (output / "unigenbench.md").read_text()


# ---- an image without an answer that counts


@pytest.mark.parametrize("answer", ["no score", said([True, False, True]), None], ids=["unreadable", "lost", "silent"])
def test_such_an_image_ends_it_where_told(run: Any, tmp_path: Path, answer: str | None) -> None:
    def one_fails(index: int, sample: int, times: int) -> str | None:
        return answer if (index, sample) == (3, 0) else right(index, sample, times)

    judge = FakeJudge(one_fails)
    with pytest.raises(RunFailed, match=r"3_0\.png has no answer that counts \(.*\), and on_failure is fail"):
        run(judge, max_retries=4, on_failure="fail")
    asked = judge.asked.total()
    assert judge.asked[7, 1] == 0, "the rest is not asked about"
    kept = [row for row in lines(tmp_path / "out" / "answers.jsonl") if row["file"] == "3_0.png"]
    assert len(kept) == 1, "what was said is kept"
    if answer is not None:
        with pytest.raises(RunFailed, match="on_failure is fail"):
            run(judge, max_retries=4, on_failure="fail", resume=True)
        assert judge.asked.total() == asked, "its answers are final, so nothing is asked"
    assert run(judge, max_retries=4, resume=True).counts.counted == NUM_IMAGES - 1
    assert run(FakeJudge(right), "other", on_failure="fail").counts.coverage == 1


def test_what_came_instead_of_an_answer_is_kept_whole(run: Any, tmp_path: Path) -> None:
    body = "busy " * 1000

    def one_fails(index: int, sample: int, times: int) -> Answer | str:
        return Answer(None, "HTTP 400: busy", body) if (index, sample) == (3, 0) else right(index, sample, times)

    run(FakeJudge(one_fails))
    (row,) = [row for row in lines(tmp_path / "out" / "answers.jsonl") if row["file"] == "3_0.png"]
    assert {answer["body"] for answer in row["answers"]} == {body}
    assert run(FakeJudge(right), resume=True).counts.coverage == 1


# ---- a manifest beside the images


def manifest_of(images: Path, per_prompt: int = 2) -> list[dict[str, Any]]:
    made = {"seed": 0, "model_digest": "m", "steps": 1, "sigmas": "pipeline", "height": 8, "width": 8}
    return [
        {"prompt": text, "index": index, "j": j, "file": f"{images.name}/{index}_{j}.png", "hybrid_steps": None}
        | {"sha256": sha256(images / f"{index}_{j}.png")}
        | made
        for index, text, *_ in PROMPTS
        for j in range(per_prompt)
    ]


def write_manifest(images: Path, rows: Sequence[dict[str, Any]]) -> None:
    (images.parent / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_manifest_binds_files_to_prompts(run: Any, images: Path) -> None:
    rows = manifest_of(images)
    write_manifest(images, rows)
    judge = FakeJudge(right)
    assert run(judge, "good").counts.coverage == 1
    swapped = [row | {"prompt": "another"} if row["index"] == 7 else row for row in rows]
    write_manifest(images, swapped)
    with pytest.raises(UserError, match=r"7_0\.png shows 'another', and prompt 7 of the benchmark is 'a sign that"):
        run(judge, "swapped")
    write_manifest(images, rows[:-1])
    with pytest.raises(UserError, match=r"lacks 1 of 6 images: 7_1\.png"):
        run(judge, "short")
    write_manifest(images, rows)
    Image.new("RGB", (8, 8), (3, 1, 8)).save(images / "3_1.png")
    with pytest.raises(UserError, match=r"3_1\.png has changed since it was drawn"):
        run(judge, "changed")
    assert judge.asked.total() == NUM_IMAGES
    write_manifest(images, [row | {"file": f"others/{row['index']}_{row['j']}.png"} for row in rows])
    assert run(FakeJudge(right), "external").counts.coverage == 1, "a manifest of another folder says nothing of it"


def test_the_judge_protocol_is_all_that_is_asked_for(run: Any) -> None:
    class Bare:
        def ask(self, questions: Sequence[Question]) -> list[Answer]:
            return [Answer(right(*question.image.getpixel((0, 0))[:2], 0)) for question in questions]

    assert run(Bare()).counts.coverage == 1
