"""The page of all reports, as a browser shows it, and what ``flowrl report`` makes of a folder."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from example_reports import HOSTILE, example_reports, gallery_report, hostile_report, main_report
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from flowrl import escape
from flowrl.bench.images import LARGEST, inlined
from flowrl.bench.markup import inline
from flowrl.bench.page import page, write_page
from flowrl.bench.report import Figure, Gallery, Line, Panel, Report, Table, Text
from flowrl.bench.write import rebuild, write_report
from flowrl.cli import app
from flowrl.escape import one_line
from flowrl.plots import COLOURS

NAMES = ("main", "curves", "gallery", "settings")


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's reports, and nothing made from them."""
    path = tmp_path_factory.mktemp("reports")
    for report in example_reports(path):
        (path / f"{report.name}.json").write_text(report.model_dump_json())
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "reports"))


def program(*argv: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *argv])
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


# ---- the command


def test_everything_is_rebuilt_from_the_json_alone(copy: Path) -> None:
    values = json.loads((copy / "curves.json").read_bytes())
    (copy / "curves.json").write_text(json.dumps(values | {"blocks": values["blocks"][1:]}))
    before = {path: path.read_bytes() for path in copy.glob("*.json")}
    code, output = program(str(copy))
    assert code == 0, output
    assert "index.html" in output
    assert "kB" in output
    made = {path.name for path in copy.iterdir() if path.suffix != ".json" and path.is_file()}
    of_blocks = {"main.csv", "main.tex", "settings.csv", "settings.tex", "curves-scatter.png", "curves-scatter.pdf"}
    assert made == {"index.html", *(f"{name}.md" for name in NAMES), *of_blocks}
    assert {path: json.loads(path.read_bytes()) for path in before} == {p: json.loads(b) for p, b in before.items()}
    first = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    for name in made:
        (copy / name).unlink()
    rebuild(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()} == first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("main.json", '{"format": 1, "blocks"', "is damaged, it is not JSON"),
        ("main.json", '{"format": 1, "blocks": []}', "is damaged: name: Field required"),
        ("main.json", '{"format": 2, "blocks": [], "new": 1}', "is of format 2, this flowrl reads 1"),
        ("other.json", None, "holds the report 'main'; it belongs into main.json"),
    ],
)
def test_what_cannot_be_read_is_told_and_nothing_is_written(
    name: str, content: str | None, message: str, copy: Path
) -> None:
    (copy / name).write_text((copy / "main.json").read_text() if content is None else content)
    code, output = program(str(copy))
    assert code == 2
    assert message in output
    assert str(copy / name) in output
    assert not (copy / "index.html").exists()


def test_a_folder_without_reports_is_an_error(tmp_path: Path) -> None:
    assert "does not exist" in program(str(tmp_path / "nothing"))[1]
    (tmp_path / "rates.json").write_text("{}")
    code, output = program(str(tmp_path))
    assert code == 2
    assert "holds no report" in output


def test_other_json_is_left_out_aloud(copy: Path) -> None:
    (copy / "rates.json").write_text('{"seconds": 1.0}')
    said: list[str] = []
    write_page(copy, said.append)
    assert said == [f"{copy / 'rates.json'} is not a report: left out"]


def test_reports_that_share_a_file_are_an_error(copy: Path) -> None:
    report = main_report().model_copy(update={"name": "copy"})
    (copy / "copy.json").write_text(report.model_dump_json())
    code, output = program(str(copy))
    assert code == 2
    assert "both have files named" in output


def test_a_missing_picture_is_told_and_loses_no_other(copy: Path) -> None:
    (copy / "pictures/best-2.png").unlink()
    (copy / "pictures/best-3.png").write_text("no picture")
    said: list[str] = []
    text = write_page(copy, said.append).read_text(encoding="utf-8")
    assert [Path(line.split()[0]).name for line in said] == ["best-2.png", "best-3.png"]
    assert text.count("the picture is missing") == 2
    assert len(Elements(text).all("img")) == 13


# ---- the page as text


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    text = page(example_reports(folder), folder)
    found = Elements(text)
    assert not [a for _, a in found.found if re.match(r"(https?:)?//", a.get("src") or "")]
    assert [a["href"] for a in found.all("link")] == ["data:,"]
    assert all(str(a["src"]).startswith("data:image/webp;base64,") for a in found.all("img"))
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 250_000
    assert page(example_reports(folder), folder) == text


def test_links_lead_somewhere_in_the_page(folder: Path) -> None:
    found = Elements(page(example_reports(folder), folder))
    ids = [str(a["id"]) for _, a in found.found if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [str(a["href"]) for a in found.all("a")]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    labelled = {str(a[key]) for _, a in found.found for key in ("aria-labelledby", "aria-describedby") if key in a}
    assert labelled <= set(ids)


def test_pictures_and_figures_say_what_they_show(folder: Path) -> None:
    found = Elements(page(example_reports(folder), folder))
    assert len(found.all("img")) == 15
    assert all("a large red circle" in str(a["alt"]) or ":" in str(a["alt"]) for a in found.all("img"))
    plots = [a for a in found.all("svg") if "data-points" in a]
    assert len(plots) == 4
    assert all(a["role"] == "img" and a["aria-label"] for a in plots)
    assert "Three panels of rising curves" in found.text


def test_headings_skip_no_level_and_there_is_one_main_part(folder: Path) -> None:
    found = Elements(page(example_reports(folder), folder))
    levels = [int(tag[1]) for tag, _ in found.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [len(found.all(tag)) for tag in ("h1", "main", "nav", "header", "footer")] == [1] * 5
    assert all("tabindex" in a and a["aria-label"] for _, a in found.found if a.get("class") == "scroll")


def test_claims_come_first_with_what_was_measured(folder: Path) -> None:
    text = Elements(page(example_reports(folder), folder)).text
    places = [
        text.index(words)
        for words in ("Singular stochastic sampling beats", "Measured: HPS +0.021", "Table 1: methods")
    ]
    assert places == sorted(places)
    assert "1 report, 60 runs (1 failed)" in Elements(page([main_report()], folder)).text


def test_partial_and_small_reports_are_named_at_the_top(folder: Path) -> None:
    text = Elements(page([main_report("smoke", missing=("G2RPO, seed 4",))], folder)).text
    title = "Main comparison (smoke budget; partial: 1 of 60 parts missing)"
    assert text.index("Not every report is a full and complete measurement") < text.index(title)
    assert text.count(title) == 2
    assert "Missing: 1 part" in text
    assert "Not every report" not in Elements(page([main_report()], folder)).text


def test_hostile_texts_are_texts(tmp_path: Path) -> None:
    text = page([hostile_report(tmp_path)], tmp_path)
    found = Elements(text)
    assert len(found.all("script")) == 1
    assert not [a for _, a in found.found if any(key.startswith("on") for key in a)]
    assert not [a for a in found.all("a") if str(a["href"]).startswith(("javascript:", "http"))]
    assert all(one_line(words) in found.text for words in HOSTILE[:5])
    assert "\u202e" not in text


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_an_escaped_text_reads_the_same_in_a_paragraph(text: str) -> None:
    found = Elements(inline(escape.markdown(text)))
    assert found.text == one_line(text)
    assert not found.found


def test_a_paragraph_has_emphasis_code_and_links() -> None:
    assert inline("*a* **b** `c*` [d](#e) [f](g.csv)") == (
        '<em>a</em> <strong>b</strong> <code>c*</code> <a href="#e">d</a> <a href="g.csv">f</a>'
    )
    assert Elements(inline("[x](javascript:alert(1)) ![y](https://z.invalid)")).found == []


def test_large_pictures_are_made_smaller_and_small_ones_kept(tmp_path: Path) -> None:
    Image.effect_noise((1536, 1024), 40).convert("RGB").save(tmp_path / "large.png")
    large = inlined(tmp_path / "large.png")
    assert large is not None
    assert (large.width, large.height) == (LARGEST, round(LARGEST * 2 / 3))
    assert not large.pixelated
    assert len(large.uri) < (tmp_path / "large.png").stat().st_size / 8
    gallery_report(tmp_path)
    small = inlined(tmp_path / "pictures/best-0.png")
    assert small is not None
    assert small.pixelated
    assert (small.width, small.height) == (64, 64)


def linear(colour: str) -> np.ndarray:
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares])


def luminance(colour: str) -> float:
    return float(XYZ[1] @ linear(colour))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


SEEN = {
    "all cones": np.eye(3),
    "no long": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no medium": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no short": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
"""Linear RGB as the colour-blind see it (Machado, Oliveira and Fernandes 2009, severity 1)."""
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def distance(seen: np.ndarray, one: str, other: str) -> float:
    """CIE 1976 difference of two colours; 2 is just noticeable side by side."""
    places = []
    for colour in (one, other):
        x, y, z = XYZ @ np.clip(seen @ linear(colour), 0, 1) / (0.9505, 1, 1.089)
        x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
        places.append(np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)]))
    return float(np.linalg.norm(places[0] - places[1]))


def test_colours_stand_out_in_every_scheme() -> None:
    style = (Path(page.__code__.co_filename).parent / "page.css").read_text()
    schemes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", part)) for part in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(schemes[:2]) == 2
    assert tuple(schemes[0][f"c{i}"] for i in range(len(COLOURS))) == COLOURS, "as in the PNG files"
    for scheme in schemes[:2]:
        for ink, ground in [*((i, g) for i in ("ink", "muted", "link") for g in ("bg", "panel")), ("ink", "yes-bg")]:
            assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)
        for kind in ("yes", "no", "open"):
            assert contrast(scheme[kind], scheme[f"{kind}-bg"]) >= 4.5, kind
        lines = [scheme[f"c{i}"] for i in range(len(COLOURS))]
        assert all(contrast(line, scheme["bg"]) >= 3 for line in lines)
        for seen in SEEN.values():
            assert min(distance(seen, one, other) for one, other in combinations(lines, 2)) > 15


# ---- odd reports


def line(x: tuple[float, ...], mean: tuple[float, ...], title: str = "line", **ends: tuple[float | None, ...]) -> Line:
    return Line(title=title, x=x, mean=mean, **ends)


ODD = {
    "no panels": (),
    "no lines": (Panel(title="p", x="x", y="y", lines=()),),
    "nothing on a log axis": (Panel(title="p", x="x", y="y", lines=(line((0.0,), (2.0,)),), log_x=True),),
    "one point": (Panel(title="p", x="x", y="y", lines=(line((1.0,), (2.0,)),), marks="points"),),
    "huge": (Panel(title="p", x="x", y="y", lines=(line((1e300, 2e300), (1e300, -1e300)),)),),
    "a band with gaps": (
        Panel(title="p", x="x", y="y", lines=(line((1.0, 2.0), (0.0, 0.0), low=(None, -1.0), high=(1.0, 1.0)),)),
    ),
    "many lines": (
        Panel(title="p", x="x", y="y", lines=tuple(line((1.0, 2.0), (i, i + 1.0), f"line {i}") for i in range(16))),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_figures_are_drawn(name: str, tmp_path: Path) -> None:
    figure = Figure(name="odd", title="Odd", description="odd", panels=ODD[name])
    report = Report(name="odd", title="Odd", model="m", budget="full", blocks=(figure,), provenance={})
    write_report(report, tmp_path)
    found = Elements(page([report], tmp_path))
    numbers = " ".join(str(a.get("d", "")) for a in found.all("path"))
    assert "nan" not in numbers
    assert "inf" not in numbers
    if name == "many lines":
        legend = [a for a in found.all("svg") if "aria-hidden" in a]
        symbols = [path["d"] for path in found.all("path") if path.get("class") == "symbol"][-16:]
        assert len({(a["class"], shape) for a, shape in zip(legend, symbols, strict=True)}) == 16, "no two look alike"


def test_empty_tables_and_galleries_are_shown(tmp_path: Path) -> None:
    blocks = (
        Table(name="none", title="No columns", columns=(), rows=()),
        Gallery(name="none", title="No pictures", comparisons=()),
        Text(name="none", title="No words"),
    )
    report = Report(name="odd", title="Odd", model="m", budget="full", blocks=blocks, provenance={})
    names = {path.name for path in write_report(report, tmp_path)}
    assert names == {"odd.json", "odd.md", "none.csv", "none.tex"}
    assert "No report here holds a claim" in Elements(page([report], tmp_path)).text
