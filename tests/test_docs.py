"""The documentation is true: examples run, commands parse, costs are the program's, and what it names exists."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny  # noqa: F401 - registers the kinds that the examples are trained with
import torch
import typer
import yaml
from contracts import test_variants as contracts
from runs import run, write_recipe
from test_kernels import errors
from typer.testing import CliRunner, Result

from flowrl.cli import app
from flowrl.continuations.strided import Strided
from flowrl.data import load_prompts
from flowrl.protocols import Advantage, Continuation, Kernel, Loss, PolicyConfig, Schedule, ScorerConfig
from flowrl.recipe import load_recipe
from flowrl.sigmas import Grid
from flowrl.variant import Variant

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
ALGORITHMS = [name for name in PAGES if name.startswith("docs/algorithms/")]
FAMILIES = (Schedule, Continuation, Kernel, Advantage, Loss)
ALGORITHM_SECTIONS = ("schedule", "continuation", "kernel", "advantage", "loss", "train")
pages = pytest.mark.parametrize("page", PAGES)


class Block(NamedTuple):
    """A fenced block: its language ("" for none) and text, and the file that its first line names, if any."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        found = re.match(r"# ([\w/.-]+\.(?:py|yaml))\b", self.text)
        return found[1] if found else None


@cache
def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.M | re.S)]


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- what the pages name


@pages
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (PAGES[page].parent / name).resolve() if name else PAGES[page]
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pages
def test_files_and_symbols_exist(page: str) -> None:
    path_and_symbol = r"(?<![\w/.])((?:flowrl|recipes|tests|benchmarks)/[\w/.-]*\w/?)(?::([A-Za-z_][\w.]*))?"
    named = re.findall(path_and_symbol, text_of(page))
    for name, symbol in named:
        path = ROOT / name
        assert path.exists(), name
        if symbol:
            assert has_symbol(path, symbol), f"{name}:{symbol}"


def has_symbol(path: Path, symbol: str) -> bool:
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in symbol.split("."):
        found = [node for node in body if part in names_of(node)]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_the_index_lists_every_page() -> None:
    for page in PAGES:
        if page.startswith("docs/") and not page.startswith("docs/worlds/") and page != "docs/README.md":
            assert f"]({page.removeprefix('docs/')})" in text_of("docs/README.md"), page


# ---- commands


def commands(page: str) -> Iterator[list[str]]:
    """The arguments of every ``flowrl`` command in a block, and of those in running text without options to fill."""
    shown = [block.text.replace("\\\n", " ") for block in blocks(page) if block.language in ("", "bash")]
    inline = [code for code in re.findall(r"`(flowrl [^`]*)`", prose(page).replace("\n", " ")) if "[" not in code]
    for line in [line for text in shown for line in text.splitlines()] + inline:
        for command in re.split(r"&&", line.removeprefix("$ ")):
            if command.strip().startswith("flowrl "):
                argv = shlex.split(command, comments=True)[1:]
                yield ["1" if word in ("N", "I", "S", "SECONDS") else word for word in argv]


@pages
def test_commands_parse(page: str) -> None:
    program = typer.main.get_command(app)
    for argv in commands(page):
        command, words = program, argv
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            assert words[0] in command.commands, argv
            command, words = command.commands[words[0]], words[1:]
        if words and "..." not in words:
            command.make_context(argv[0], words, resilient_parsing=False)


@pytest.mark.parametrize("page", ["README.md", "docs/variants.md", *ALGORITHMS])
def test_recipes_of_commands_load(page: str, examples: Path) -> None:
    for argv in commands(page):
        if argv[0] in ("train", "plan") and argv[1:] and not argv[1].isupper():
            recipe = ROOT / argv[1] if argv[1].startswith("recipes/") else argv[1]
            options = {key: argv[argv.index(f"--{key}") + 1] for key in ("model", "rewards") if f"--{key}" in argv}
            load_recipe(recipe, overrides=[word for word in argv if re.match(r"[\w.]+=", word)], **options)


def program(*argv: str) -> Result:
    result = CliRunner().invoke(app, [*argv])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("page", ["README.md", *ALGORITHMS])
def test_costs_are_the_programs(page: str, examples: Path) -> None:
    """Tables headed ``flowrl plan`` and blocks that show its output."""
    num_rows = 0
    for table in re.findall(r"^\| `flowrl plan` \|.*\n\|[-|]+\n(?:\|.*\n)+", text_of(page), re.M):
        head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        for command, *cells in rows:
            found = json.loads(program("plan", *shlex.split(command.strip("`")), "--json").stdout)
            shown = {key.strip("`"): cell for key, cell in zip(head[1:], cells, strict=True) if key.startswith("`")}
            assert {key: float(cell.replace(",", "")) for key, cell in shown.items()} == {
                key: found[key] for key in shown
            }, command
            num_rows += 1
    for block in blocks(page):
        if block.text.startswith("$ flowrl plan "):
            command, _, output = block.text.partition("\n")
            assert program(*shlex.split(command)[2:]).stdout.strip() == output.strip()
    assert num_rows


@pytest.mark.parametrize(
    ("page", "strides", "forwards"), [("g2rpo", (1, 2, 3), "2,188"), ("g2rpo_wo_mgai", (1,), "1,216")]
)
def test_forwards_of_the_released_loop(page: str, strides: tuple[int, ...], forwards: str) -> None:
    """A noiseless image, and 12 samples that take each noisy step and each granularity after it by themselves."""
    grid = Grid(16, 3.0)
    after = sum(len(path.sigmas) - 1 for k in range(8) for path in Strided(strides=strides).paths(grid, k + 1))
    assert f"{16 + 12 * (8 + after):,}" == forwards
    text = text_of(f"docs/algorithms/{page}.md")
    assert f"takes {forwards}: 16" in text
    assert f"8 noisy steps and {after} steps" in text


def test_recipes_are_shown_as_they_are() -> None:
    shown = [block for page in PAGES for block in blocks(page) if (block.file or "").startswith("recipes/")]
    algorithms = {f"recipes/{Path(page).stem}.yaml" for page in ALGORITHMS}
    assert algorithms <= {block.file for block in shown}
    for block in shown:
        there = (ROOT / str(block.file)).read_text(encoding="utf-8")
        assert yaml.safe_load(block.text) == yaml.safe_load(there), block.file


# ---- examples


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every example in a file of its own, in the working folder; what they register is forgotten afterwards."""
    for name, text in (example_files("python") | example_files("yaml")).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na green star\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    families = (*FAMILIES, PolicyConfig, ScorerConfig)
    kinds = {family: dict(family.members()) for family in families}
    modules, search_path = set(sys.modules), list(sys.path)
    yield tmp_path
    for family, members in kinds.items():
        family.kinds = members
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]
    sys.path[:] = search_path


def example_files(language: str, of: Iterable[str] = PAGES) -> dict[str, str]:
    """File -> text of the pages' examples; a recipe that names no file has its page's name."""
    found = {}
    for page in of:
        for block in blocks(page):
            name = block.file or f"{Path(page).stem}.yaml"
            is_example = block.file or "plugins:" in block.text
            if block.language == language and is_example and "/" not in name:
                found[name] = block.text
    return found


RECIPES = [name for name, text in example_files("yaml").items() if "fragment: true" not in text]


def test_there_is_an_example_of_every_family(examples: Path) -> None:
    before = {family: set(family.kinds) for family in (*FAMILIES, PolicyConfig, ScorerConfig)}
    for file in example_files("python"):
        importlib.import_module(Path(file).stem)
    assert all(set(family.kinds) - kinds for family, kinds in before.items())


@pytest.mark.parametrize("name", RECIPES)
def test_an_example_trains(name: str, examples: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.plan().actions
    values = recipe.resolved()
    path = write_recipe(examples / "own")
    small = yaml.safe_load(path.read_text()) | {section: values[section] for section in ALGORITHM_SECTIONS}
    small |= {"plugins": ["tiny", *values["plugins"]], "grid": values["grid"]}
    small["rollout"] |= {"group": values["rollout"]["group"], "prompts": 2}
    small["run"] |= {"iterations": 1}
    path.write_text(yaml.safe_dump(small))
    summary = run(path, examples / "out")
    assert summary.finished
    assert summary.forwards == 2 * recipe.plan().num_forwards


@pytest.mark.parametrize("file", example_files("python", ("README.md", "docs/variants.md")))
def test_an_example_holds_in_the_package(file: str, examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped into its family's folder it is found, and keeps the family's promises."""
    bases = re.findall(r"class \w+\((\w+), kind=", (examples / file).read_text())
    family = next(f for f in (*FAMILIES, PolicyConfig, ScorerConfig) if f.__name__ == bases[0])
    folder = examples / "dropped"
    folder.mkdir()
    (folder / file).write_text((examples / file).read_text())
    package = importlib.import_module(str(family.package))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    variant = family.members()[Path(file).stem]
    assert variant.__module__ == f"{family.package}.{Path(file).stem}"
    if family in FAMILIES:
        keeps_the_promises(variant, family)


def keeps_the_promises(variant: type[Variant], family: type[Variant]) -> None:
    contracts.test_is_its_own_frozen_config(variant)
    contracts.test_lives_alone_in_a_file_that_is_named_after_it(variant)
    if family is Schedule:
        for num_steps in (8, 16, 25):
            contracts.test_schedules_are_pure_and_compile(variant, num_steps)
    elif family is Continuation:
        for num_steps in (2, 8, 25):
            contracts.test_continuations_lead_from_anywhere_to_the_end(variant, num_steps)
    elif family is Kernel:
        contracts.test_kernels_are_differentiable_distributions_at_every_step(variant)
        spread, centre = errors(variant(), 256, count=50_000)
        assert abs(spread) < 0.02
        assert abs(centre) < 0.02
    elif family is Advantage:
        contracts.test_advantages_are_relative_and_silent_without_differences(variant)
    else:
        contracts.test_losses_start_as_the_policy_gradient(variant)


def test_the_examples_policy_trains_with_the_examples_scorer(examples: Path) -> None:
    program("train", "g2rpo", "--model", "pixels.yaml", "--rewards", "plain_pictures.yaml", "--output", "out")
    rows = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    assert rows[0]["reward/compressibility"] < 0
    assert rows[0]["grad_norm"] > 0


def test_the_examples_policy_has_a_reference(examples: Path) -> None:
    policy = importlib.import_module("pixels").Pixels().load(torch.device("cpu"))
    cond = policy.encode(load_prompts("prompts.txt"))
    x, sigma = torch.randn(3, *policy.latent_shape), torch.tensor([1.0, 0.5, 0.1])
    first = policy.velocity(x, sigma, cond)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.add_(0.1)
    changed = policy.velocity(x, sigma, cond)
    with policy.reference():
        assert torch.equal(policy.velocity(x, sigma, cond), first)
    assert torch.equal(policy.velocity(x, sigma, cond), changed)
    assert not torch.equal(first, changed)
