"""The files of a report: what a reader finds in them, whatever the texts hold."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from example_reports import HOSTILE, claims, curves_report, hostile_report, main_report
from PIL import Image

from flowrl.bench.entries import number, sheet
from flowrl.bench.files import load_report
from flowrl.bench.latex import PREAMBLE, latex
from flowrl.bench.markdown import markdown
from flowrl.bench.markdown import table as markdown_table
from flowrl.bench.report import Cell, Column, Report, Row, Table
from flowrl.bench.tidy import tidy
from flowrl.bench.write import write_report
from flowrl.errors import UserError
from flowrl.escape import one_line

WIDE = "\\setlength{\\textwidth}{6.875in}\n"  # of a page in two columns, as conferences have it


def main_table(report: Report) -> Table:
    return next(block for block in report.blocks if isinstance(block, Table))


def small(*values: float | str | None, better: str | None = "higher", groups: tuple[str, ...] = ()) -> Table:
    column = Column.model_validate({"key": "x", "title": "X", "better": better, "digits": 2})
    rows = tuple(
        Row(title=f"m{i}", cells={"x": Cell(value=value)}, group=groups[i] if groups else None)
        for i, value in enumerate(values)
    )
    return Table(name="small", title="Small", columns=(column,), rows=rows)


def ranks(table: Table) -> list[str | None]:
    return [entry.rank for entry in sheet(table).entries]


# ---- what is marked


def test_the_best_and_the_second_are_marked_by_what_is_shown() -> None:
    assert ranks(small(0.1, 0.3, 0.2, None, "text")) == [None, "best", "second", None, None]
    assert ranks(small(0.1, 0.3, 0.2, better="lower")) == ["best", None, "second"]
    assert ranks(small(0.1, 0.3, 0.2, better=None)) == [None] * 3
    assert ranks(small(0.301, 0.299, 0.2)) == ["best", "best", "second"], "both read 0.30"
    assert ranks(small(0.3, 0.3)) == [None, None]
    assert ranks(small(0.3)) == [None]


def test_ranks_are_within_a_group() -> None:
    assert ranks(small(0.1, 0.9, 0.2, 0.8, groups=("a", "b", "a", "b"))) == ["second", "best", "best", "second"]


def test_numbers_are_shown_as_the_column_says() -> None:
    assert number(0.12345, Column(key="x", title="X", digits=1, percent=True)) == "12.3 %"
    assert number(12345.6, Column(key="x", title="X", digits=0)) == "12,346"
    assert number(-0.0001, Column(key="x", title="X", digits=2)) == "0.00"


# ---- Markdown


def test_a_cell_has_its_interval_and_the_papers_number_marked_as_such() -> None:
    cell = Cell(value=0.331, low=0.325, high=0.337, paper=0.343)
    table = small(0.1).model_copy(update={"rows": (Row(title="m", cells={"x": cell}),)})
    text = "\n".join(markdown_table(table))
    assert "0.33 [0.33, 0.34] (paper 0.34)" in text
    assert "Paper: what the paper reports" in text


def test_failed_rows_have_their_reason_and_empty_cells_their_note() -> None:
    text = markdown(main_report())
    assert re.search(r"\| MixGRPO-Flash \(failed\) +\| +failed \(a\) \|", text)
    assert "- MixGRPO-Flash failed: RuntimeError: the loss is not finite" in text
    assert "- (a) one of 5 seeds failed" in text
    assert "done" in text
    assert "failed: RuntimeError: the loss is not finite at iteration 18" in text, "of the run"


@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
def test_the_title_says_what_is_not_full_and_complete(budget: str) -> None:
    report = main_report(budget, missing=("G2RPO, seed 4",))  # type: ignore[arg-type]
    title = markdown(report).splitlines()[0]
    assert ("budget" in title) == (budget != "full")
    assert "partial: 1 of 60 parts missing" in title
    assert "partial: 1 of 60 parts missing" in latex(report, main_table(report))
    assert "## Missing\n\n- G2RPO, seed 4" in markdown(report)
    assert markdown(main_report()).splitlines()[0] == "# Main comparison"


def test_claims_and_figures_are_in_the_page() -> None:
    text = markdown(main_report())
    assert all(claim.claim in text for claim in claims())
    assert re.findall(r"\| (yes|no|undecided) +\|", text) == ["yes", "undecided", "no"]
    assert re.search(r"!\[Three panels of rising curves[^\]]*\]\(curves\.png\)", markdown(curves_report()))


# ---- CSV


def test_csv_is_tidy_and_exact() -> None:
    report = main_report()
    table = main_table(report)
    lines = list(csv.DictReader(io.StringIO(tidy(report, table))))
    assert len(lines) == len(table.rows) * len(table.columns)
    by_place = {(line["group"], line["row"], line["column"]): line for line in lines}
    for row in table.rows:
        for key, cell in row.cells.items():
            line = by_place[row.group or "", row.title, key]
            for name in ("value", "low", "high", "paper"):
                value = getattr(cell, name)
                assert line[name] == ("" if value is None else repr(value))
            assert tuple(line["runs"].split()) == cell.runs
            assert bool(line["failed"]) == bool(row.failed)


def test_csv_holds_no_formulas(tmp_path: Path) -> None:
    report = hostile_report(tmp_path)
    lines = list(csv.reader(io.StringIO(tidy(report, main_table(report)))))
    assert len({len(line) for line in lines}) == 1
    fields = [field for line in lines for field in line if not re.fullmatch(r"-?[\d.]+", field)]
    assert not [field for field in fields if field[:1] in tuple("=+-@\t\r")]
    assert any(one_line(HOSTILE[4]) in field for field in fields)


# ---- LaTeX


def test_latex_marks_as_the_paper_does() -> None:
    report = main_report()
    text = latex(report, main_table(report))
    assert text.count(r"\textbf{") == 2 * 6
    assert text.count(r"\underline{") == 2 * 6
    assert r"\multicolumn{7}{l}{\textit{Trained on HPS \& CLIP}}" in text
    assert text.count(r"\quad paper") == 12, "of every row but the two of Flash"
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 2, 1]


@pytest.mark.parametrize("kind", ["main", "hostile"])
def test_latex_is_well_formed(kind: str, tmp_path: Path) -> None:
    report = main_report() if kind == "main" else hostile_report(tmp_path)
    table = main_table(report)
    text = latex(report, table)
    bare = re.sub(r"\\[\\{}$&#%_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    assert re.findall(r"\\begin\{(.*?)\}", text) == re.findall(r"\\end\{(.*?)\}", text)[::-1]
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(table.columns)}
    assert "\\input{/etc" not in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX")
@pytest.mark.parametrize("kind", ["main", "hostile"])
def test_latex_compiles(kind: str, tmp_path: Path) -> None:
    write_report(main_report() if kind == "main" else hostile_report(tmp_path), tmp_path)
    (tmp_path / "page.tex").write_text(f"{PREAMBLE}{WIDE}\\begin{{document}}\n\\input{{{kind}}}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert kind == "hostile" or "Overfull" not in done.stdout


# ---- all files


def test_every_block_has_its_files_and_the_json_comes_back_equal(tmp_path: Path) -> None:
    report = main_report()
    names = {path.name for path in write_report(report, tmp_path)}
    assert names == {"main.json", "main.md", "main.csv", "main.tex"}
    assert {path.name for path in tmp_path.iterdir()} == names, "and no leftovers"
    read = load_report(tmp_path / "main.json")
    assert read == report
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(read, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_figures_are_drawn_whole(tmp_path: Path) -> None:
    written = write_report(curves_report(), tmp_path)
    assert {path.suffix for path in written} == {".json", ".md", ".png", ".pdf"}
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    for path in tmp_path.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        border = np.concatenate(
            [pixels[:4].ravel(), pixels[-4:].ravel(), pixels[:, :4].ravel(), pixels[:, -4:].ravel()]
        )
        assert border.min() == 255, "nothing touches the edge"
        assert (pixels < 250).mean() > 0.03


def test_hostile_texts_are_written_too(tmp_path: Path) -> None:
    names = {path.name for path in write_report(hostile_report(tmp_path), tmp_path)}
    assert names == {"hostile.json", "hostile.md", "hostile.csv", "hostile.tex", "figure.png", "figure.pdf"}
    text = (tmp_path / "hostile.md").read_text(encoding="utf-8")
    without_code = re.sub(r"(`+).*?\1", "", text)
    assert not re.findall(r"(?<!\\)<(script|img|svg)", without_code)
    assert load_report(tmp_path / "hostile.json") == hostile_report(tmp_path)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"name": "../up"}, "no name of files"),
        ({"runs": {}}, "unknown run"),
        ({"blocks": (small(1.0), small(2.0))}, "two blocks of kind table are named small"),
    ],
)
def test_a_report_at_odds_with_itself_is_not_written(update: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_report(main_report().model_copy(update=update), tmp_path / "new")
    assert not (tmp_path / "new").exists()
