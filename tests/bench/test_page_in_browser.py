"""The page of all reports in a real browser, at the widths of a desk and of a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PROGRAM, Browser, chromium
from example_reports import LEARNED, METHODS, example_reports, hostile_report
from PIL import Image

from flowrl.bench.page import write_page
from flowrl.bench.write import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    for report in example_reports(folder):
        (folder / f"{report.name}.json").write_text(report.model_dump_json())
    return write_page(folder)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


FAINT_TEXTS = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    const colour = element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)";
    return numbers(colour)[3] === 0 ? ground(element.parentElement) : colour;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("").trim();
    if (!text || !element.checkVisibility() || ["SCRIPT", "OPTION"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const ink = element.ownerSVGElement ? style.fill : style.color;
    const pair = [light(ink), light(ground(element))].sort((a, b) => a - b);
    const ratio = (pair[1] + 0.05) / (pair[0] + 0.05);
    if (ratio < 4.5) found.push([element.tagName, text.slice(0, 20), ratio]);
  }
  return found;
})()
"""


def is_clean(browser: Browser, path: Path) -> None:
    """No sideways scroll, no error, nothing asked of anyone."""
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.complaints == []
    assert browser.requests == [path.resolve().as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(width: int, scheme: str, made: Path, browser: Browser, tmp_path: Path) -> None:
    browser.open(made, width, scheme=scheme)
    is_clean(browser, made)
    box = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth > e.clientWidth)"
    assert any(browser.run(box)) == (width < 600) or browser.run(box)[-1], "wide tables scroll in their own box"
    assert browser.run(FAINT_TEXTS) == []
    browser.screenshot(tmp_path / "page.png", whole=False)
    ground = Image.open(tmp_path / "page.png").convert("L").getpixel((2, 2))
    assert (ground > 200) == (scheme == "light")


def test_tables_sort_by_click_and_by_key(made: Path, browser: Browser) -> None:
    browser.open(made, 1280)
    heading = "document.querySelectorAll('table.sortable thead th')[{}]"
    groups = "[...document.querySelector('table.sortable').tBodies].map(b => [...b.rows].slice(1).map(r => r.cells{}))"
    rows, values = groups.format("[0].textContent"), groups.format("[6].dataset.value")
    as_written = browser.run(rows)
    assert [row.removesuffix(" failed") for row in as_written[0]] == list(METHODS)
    browser.run(heading.format(6) + ".querySelector('button').click()")
    assert browser.run(heading.format(6) + ".ariaSort") == "descending"
    for group in browser.run(values):
        numbers = [float(value) for value in group if value is not None]
        assert numbers == sorted(numbers, reverse=True)
        assert group[: len(numbers)] == [value for value in group if value is not None], "what has none comes last"
    browser.run(heading.format(6) + ".querySelector('button').focus()")
    browser.press("Enter")
    assert browser.run(heading.format(6) + ".ariaSort") == "ascending"
    assert "ascending" in browser.run("document.getElementById('said').textContent")
    browser.press(" ")
    assert browser.run(heading.format(6) + ".ariaSort") == "none"
    assert browser.run(rows) == as_written
    is_clean(browser, made)


def test_curves_tell_their_values_to_pointer_and_keys(made: Path, browser: Browser) -> None:
    browser.open(made, 390)
    tip = "document.querySelector('.tip')"
    assert browser.run(f"{tip}.hidden")
    browser.run("document.querySelector('svg[data-points]').scrollIntoView({block: 'center'})")
    left, top = browser.run(
        "(r => [r.left + r.width / 3, r.top + 60])(document.querySelector('svg[data-points]').getBoundingClientRect())"
    )
    browser.point(left, top)
    words = browser.run(f"{tip}.innerText")
    assert words.startswith("iteration ")
    assert all(method in words for method in LEARNED)
    assert re.search(r"0\.\d+ \[0\.\d+, 0\.\d+\]", words)
    browser.point(1, 1)
    assert browser.run(f"{tip}.hidden")
    browser.run("document.querySelector('svg[data-points]').focus()")
    browser.press("ArrowRight")
    first = browser.run(f"{tip}.innerText")
    browser.press("ArrowRight")
    assert browser.run(f"{tip}.innerText") != first
    is_clean(browser, made)


def test_the_slider_moves_by_key_and_changes_its_sides(made: Path, browser: Browser) -> None:
    browser.open(made, 390)
    assert browser.run("document.querySelectorAll('.slider').length") == 3
    at = "document.querySelector('.stage').style.getPropertyValue('--at')"
    assert browser.run(at) == "50%"
    browser.run("document.querySelector('.slider input').focus()")
    browser.press("ArrowLeft")
    assert browser.run(at) == "49%"
    browser.run("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    box = "(r => [r.left, r.top + 40, r.width])(document.querySelector('.stage').getBoundingClientRect())"
    left, top, width = browser.run(box)
    browser.drag((left + width / 4, top), (left + 3 * width / 4, top))
    assert browser.run(at) == "75%"
    browser.point(left + width / 4, top)
    assert browser.run(at) == "75%", "not held any more"
    shown = "[...document.querySelectorAll('.stage')[0].children].map(i => i.alt.split(':')[0])"
    assert browser.run(shown) == ["G2RPO", "Base model"]
    browser.run(
        "(s => { s.value = 1; s.dispatchEvent(new Event('change')); })(document.querySelector('.sides select'))"
    )
    assert browser.run(shown) == ["G2RPO", "DanceGRPO"]
    assert "DanceGRPO" in browser.run("document.querySelector('.slider input').getAttribute('aria-label')")
    is_clean(browser, made)


def test_a_number_leads_to_its_runs(made: Path, browser: Browser) -> None:
    browser.open(made, 1280)
    browser.run("document.querySelector('a.runs').focus()")
    browser.press("Enter")
    words = browser.run("document.querySelector('dialog[open]').innerText")
    assert "comes from 5 runs" in words
    assert words.count("flowrl train flow_grpo --model shapes --rewards hps run.seed=") == 5
    browser.press("Escape")
    assert browser.run("document.querySelector('dialog[open]')") is None
    assert browser.run("document.activeElement.className") == "runs"
    target = browser.run("document.querySelector('a.runs').getAttribute('href')")
    assert browser.run(f"document.querySelectorAll('{target} a').length") == 5
    is_clean(browser, made)


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_texts_do_nothing(width: int, browser: Browser, tmp_path: Path) -> None:
    write_report(hostile_report(tmp_path), tmp_path)
    path = write_page(tmp_path)
    browser.open(path, width)
    browser.run("document.querySelector('a.runs').click()")
    browser.run(
        "document.querySelector('svg[data-points]').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
    )
    assert browser.run("document.title") == "What the paper claims, and what was measured"
    assert browser.run("document.scripts.length") == 1
    is_clean(browser, path)
