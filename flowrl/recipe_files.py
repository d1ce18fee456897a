"""Recipe files: where a name is looked up, how included fragments merge, and which file each value came from.

Only the standard library and PyYAML, so that listing the recipes needs nothing heavy. What the values mean is
:mod:`flowrl.recipe`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from flowrl.errors import UserError, did_you_mean, listing

Role = Literal["model", "rewards", "other"]
_ROLES: tuple[Role, ...] = ("model", "rewards", "other")  # the lowest precedence first
_STRUCTURE = ("include", "fragment", "for")  # keys that say how files combine, not what is trained
COMMAND_LINE = "command line"


def shipped_folder() -> Path:
    """The recipes that come with flowrl: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def as_typed(path: Path) -> str:
    """The path as a user would type it: relative to the working folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@dataclass(frozen=True)
class RecipeFile:
    """One YAML file: its values, and the part it plays when a recipe includes it."""

    path: Path
    values: Mapping[str, Any]
    role: Role = "other"

    @property
    def label(self) -> str:
        return as_typed(self.path)

    @property
    def is_fragment(self) -> bool:
        return bool(self.values.get("fragment", False))


@dataclass
class Merged:
    """The values of all layers, the later over the earlier, and for every path in them the layer that set it."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[tuple[str, ...], str] = field(default_factory=dict)
    model_name: str | None = None

    def add(self, values: Mapping[str, Any], origin: str) -> None:
        """Lay ``values`` over what is there.

        Mappings merge key by key and plugins add up; anything else replaces. A mapping that names another ``kind``
        replaces too, as the keys of one kind mean nothing to another.
        """
        self._merge(self.values, values, (), origin)

    def _merge(self, below: dict[str, Any], above: Mapping[str, Any], path: tuple[str, ...], origin: str) -> None:
        for key, value in above.items():
            here = (*path, key)
            self.origins[here] = origin
            old = below.get(key)
            if isinstance(old, str) and isinstance(value, Mapping):
                old = {"kind": old}
            if isinstance(value, Mapping):
                keeps = isinstance(old, dict) and value.get("kind", old.get("kind")) == old.get("kind")
                below[key] = dict(old) if keeps and isinstance(old, dict) else {}
                self._merge(below[key], value, here, origin)
            elif here == ("plugins",) and isinstance(old, list) and isinstance(value, list):
                below[key] = [*old, *(name for name in value if name not in old)]  # each part needs its own
            else:
                below[key] = value

    def origin(self, path: Sequence[str | int]) -> str | None:
        """The layer that set the value at ``path``, or the nearest mapping above it."""
        for length in range(len(path), 0, -1):
            if (found := self.origins.get(tuple(str(part) for part in path[:length]))) is not None:
                return found
        return None


def assemble(
    recipe: str | Path, *, model: str | None = None, rewards: str | None = None, overrides: Sequence[str] = ()
) -> tuple[RecipeFile, Merged]:
    """Merge a recipe with all it includes: command line > recipe ``for`` > recipe > rewards > model.

    Args:
        recipe: path of a recipe, or the name of a shipped one.
        model, rewards: fragments (path or name) that replace the recipe's own.
        overrides: ``dotted.path=value``, the value in YAML.
    """
    root = read(find_recipe(recipe))
    if root.is_fragment:
        raise UserError(f"{root.label} is a fragment (fragment: true): a part that recipes include, not a recipe")
    files = list(_collect(root, ()))
    if model is not None:
        files = _swap(files, "model", read(find("models", model, root.path.parent)))
    if rewards is not None:
        files = _swap(files, "rewards", read(find("rewards", rewards, root.path.parent)))
    files.sort(key=lambda file: _ROLES.index(file.role))  # stable: within a role, the order of the includes

    merged = _merge(files)
    for override in overrides:
        merged.add(_parse_override(override), COMMAND_LINE)
    return root, merged


def assemble_model(name: str) -> tuple[RecipeFile, Merged]:
    """A model fragment (path or name) alone, with what it includes."""
    root = read(find("models", name, Path.cwd()))
    if root.role != "model":
        raise UserError(f"{root.label} is not a model: it needs `fragment: true` and a `model:` section")
    return root, _merge(list(_collect(root, ())))


def assemble_metrics(name: str) -> tuple[RecipeFile, Merged]:
    """A metrics fragment (path or name), with what it includes."""
    root = read(find("metrics", name, Path.cwd()))
    if not root.is_fragment or not root.values.keys() & {"metrics", "benchmarks"}:
        raise UserError(f"{root.label} holds no metrics: it needs `fragment: true` and a `metrics:` section")
    return root, _merge(list(_collect(root, ())))


def model_names() -> list[str]:
    """The shipped model fragments."""
    return sorted(path.stem for path in (shipped_folder() / "models").glob("*.yaml"))


def _merge(files: Sequence[RecipeFile]) -> Merged:
    """Layers in the order given; each file's ``for`` block lies over the file itself."""
    merged = Merged()
    models = [file for file in files if file.role == "model" and "model" in file.values]
    merged.model_name = models[-1].path.stem if models else None
    for file in files:
        structure = (*_STRUCTURE, "name", "summary") if file.is_fragment else _STRUCTURE
        merged.add({key: value for key, value in file.values.items() if key not in structure}, file.label)
        merged.add(_for_model(file, merged.model_name), file.label)
    return merged


def read(path: Path) -> RecipeFile:
    """Read one file. Its role follows from what a fragment sets: ``model``, ``rewards``, or neither."""
    file = RecipeFile(path, {})
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file.label}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file.label} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file.label}: a recipe is a mapping of sections, this is {_describe(values)}")
    if not isinstance(values.get("fragment", False), bool):
        raise UserError(f"{file.label}: fragment must be true or false, got {values['fragment']!r}")
    role: Role = "other"
    if values.get("fragment", False):
        role = "model" if "model" in values else "rewards" if "rewards" in values else "other"
    return RecipeFile(path, values, role)


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a shipped recipe (with or without ``recipes/`` and ``.yaml``)."""
    path = Path(recipe)
    for candidate in (path, path.with_name(path.name + ".yaml")):
        if candidate.is_file():
            return candidate.resolve()
    name = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    shipped = shipped_folder() / f"{name}.yaml"
    if not path.is_absolute() and shipped.is_file():
        return shipped.resolve()
    names = [name for name, _ in shipped_recipes()]
    raise UserError(f"no recipe {str(recipe)!r}: no such file, nor a shipped recipe{_hint(name, names)}")


def find(folder: Literal["models", "rewards", "metrics"], name: str, beside: Path) -> Path:
    """The fragment of ``--model``, ``--rewards`` or ``--metrics``: a path, or a name looked up from the working folder
    and from a recipe's folder upwards, then in the shipped recipes."""
    for candidate in (Path(name), Path(f"{name}.yaml")):
        if candidate.is_file():
            return candidate.resolve()
    qualified = name if name.startswith(f"{folder}/") else f"{folder}/{name}"
    found = _look_up(qualified, Path.cwd()) or _look_up(qualified, beside)
    if found is None:
        known = sorted(path.stem for path in (shipped_folder() / folder).glob("*.yaml"))
        option = {"models": "--model", "rewards": "--rewards", "metrics": "--metrics"}[folder]
        raise UserError(f"{option} {name}: no such file, nor a {qualified}.yaml{_hint(name, known)}")
    return found


def shipped_recipes() -> list[tuple[str, str]]:
    """Name and summary of every shipped recipe, fragments apart; names are what ``flowrl train`` accepts."""
    folder = shipped_folder()
    files = [read(path) for path in sorted(folder.rglob("*.yaml"))]
    recipes = [file for file in files if not file.is_fragment]
    names = [file.path.relative_to(folder).with_suffix("").as_posix() for file in recipes]
    found = [(name, str(file.values.get("summary", ""))) for name, file in zip(names, recipes, strict=True)]
    return sorted(found, key=lambda item: (item[0].count("/"), item[0]))


def _look_up(name: str, beside: Path) -> Path | None:
    """A name beside a file, then in its parent folders, then in the shipped recipes."""
    for folder in (beside, *beside.parents, shipped_folder()):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate.resolve()
    return None


def _collect(file: RecipeFile, above: tuple[RecipeFile, ...]) -> Iterator[RecipeFile]:
    """The included files, depth first, then the file itself."""
    if any(file.path == other.path for other in above):
        chain = " -> ".join(other.label for other in (*above, file))
        raise UserError(f"{above[-1].label}: include: the files include each other: {chain}")
    includes = file.values.get("include", [])
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise UserError(f"{file.label}: include must be a list of names, got {includes!r}")
    for name in includes:
        path = _look_up(name, file.path.parent)
        if path is None:
            folder = shipped_folder()
            known = [found.relative_to(folder).with_suffix("").as_posix() for found in folder.rglob("*.yaml")]
            raise UserError(
                f"{file.label}: include: no {name}.yaml beside this file, in a parent folder "
                f"or in the shipped recipes{_hint(name, known)}"
            )
        included = read(path)
        if file.role != "other":  # what a model fragment includes is swapped with it
            included = RecipeFile(included.path, included.values, file.role)
        yield from _collect(included, (*above, file))
    yield file


def _swap(files: Sequence[RecipeFile], role: Role, fragment: RecipeFile) -> list[RecipeFile]:
    """The files with all those of a role replaced by a fragment and what it includes."""
    if fragment.role != role:
        section = "model" if role == "model" else "rewards"
        raise UserError(f"{fragment.label} cannot be the {role}: it needs `fragment: true` and a `{section}:` section")
    return [*_collect(fragment, ()), *(file for file in files if file.role != role)]


def _for_model(file: RecipeFile, model_name: str | None) -> Mapping[str, Any]:
    """The values that a file gives for one model only."""
    blocks = file.values.get("for", {})
    if not isinstance(blocks, dict) or not all(isinstance(block, dict) for block in blocks.values()):
        raise UserError(f"{file.label}: for: must map a model's name to a mapping of sections, got {blocks!r}")
    for name in blocks:
        if name != model_name and _look_up(f"models/{name}", file.path.parent) is None:
            hint = _hint(name, model_names())
            raise UserError(f"{file.label}: for.{name}: there is no model fragment of that name{hint}")
        if nested := [key for key in _STRUCTURE if key in blocks[name]]:
            raise UserError(f"{file.label}: for.{name}.{nested[0]}: belongs to the top of a file only")
    block: Mapping[str, Any] = blocks.get(model_name, {})
    return block


def _parse_override(override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{override!r} is not an override: write dotted.path=value, for example rollout.group=4")
    if parts[0] in _STRUCTURE:
        raise UserError(f"{override!r}: {parts[0]!r} belongs in a file; use --model or --rewards, or set single values")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: the value is not valid YAML: {_one_line(error)}") from error
    for part in reversed(parts):
        value = {part: value}
    result: dict[str, Any] = value
    return result


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number (YAML 1.2, not PyYAML's 1.1) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                problem = f"the key {key.value!r} is given twice, first in line {seen[key.value].line + 1}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[key.value] = key.start_mark
        return {self._text(key): value for key, value in super().construct_mapping(node, deep).items()}

    @staticmethod
    def _text(key: Hashable) -> Hashable:
        return key if isinstance(key, str) else str(key)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{where}{problem}"


def _describe(value: object) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _hint(value: str, known: Sequence[str]) -> str:
    return f"{did_you_mean(value, known)} (known: {listing(known)})"
