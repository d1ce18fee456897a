"""Imports only go downwards, and heavy libraries stay where they belong. Read from the syntax trees alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowrl

PACKAGE = Path(flowrl.__file__).parent
TOP = 5
LAYERS = {
    0: "plan ready sigmas gaussian credit surrogate types errors seeds atomic statistics",
    1: "variant protocols updates",
    2: "schedules continuations kernels advantages losses",
    3: "hub foreign_code workers policies rewards judges",
    4: "noise engine learner data background scoring approximation",
}
LAYER_OF = {f"flowrl.{name}": layer for layer, names in LAYERS.items() for name in names.split()}
FAMILIES = tuple(f"flowrl.{name}" for name in LAYERS[2].split())
HEAVY = {"diffusers", "transformers", "accelerate", "peft", "open_clip"}
MODULES = {
    ".".join(("flowrl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def layer_of(module: str) -> int:
    """The layer of a module, or of the package it lies in; what is named nowhere is at the top."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 1, -1)]
    return next((LAYER_OF[name] for name in names if name in LAYER_OF), TOP if len(parts) > 1 else 0)


def imports(path: Path, *, nested: bool) -> Iterator[str]:
    """Modules that a file imports; those for type checkers apart, those inside functions where ``nested``."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif nested or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_downwards(module: str) -> None:
    upwards = {
        name for name in imports(MODULES[module], nested=False) if name in MODULES and layer_of(name) > layer_of(module)
    }
    assert not upwards, f"{module} is in layer {layer_of(module)}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(FAMILIES)])
def test_members_of_the_zoo_do_not_know_each_other(module: str) -> None:
    assert not [name for name in imports(MODULES[module], nested=True) if name.startswith(FAMILIES)]


@pytest.mark.parametrize("module", [m for m in MODULES if layer_of(m) <= 2])
def test_the_lower_layers_know_no_model_library(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(MODULES[module], nested=True)} & HEAVY


def test_only_few_know_accelerate() -> None:
    knowing = {
        m for m, path in MODULES.items() if "accelerate" in {n.split(".")[0] for n in imports(path, nested=True)}
    }
    assert knowing <= {"flowrl.parallel", "flowrl.trainer", "flowrl.learner", "flowrl.tracking"}


@pytest.mark.parametrize("module", [m for m in MODULES if layer_of(m) <= 4])
def test_heavy_libraries_are_imported_inside_functions(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(MODULES[module], nested=False)} & HEAVY


@pytest.mark.parametrize("module", ["flowrl.cli", *(m for m in MODULES if m.startswith("flowrl.commands."))])
def test_the_command_line_imports_only_typer_and_rich(module: str) -> None:
    found = {name for name in imports(MODULES[module], nested=False) if not name.startswith("flowrl.commands")}
    assert {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) <= {"typer", "rich"}
