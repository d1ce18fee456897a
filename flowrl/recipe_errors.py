"""From pydantic's errors to one message a user can act on: file, path inside the file, rule, nearest match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flowrl.errors import did_you_mean, listing
from flowrl.recipe_files import Merged
from flowrl.variant import Variant

Path = tuple[str, ...]


def explain(error: ValidationError, schema: type[BaseModel], merged: Merged, recipe: str) -> str:
    """All problems of a recipe, one per line.

    Args:
        schema: the recipe's class.
        merged: the values that were checked, with the file each came from.
        recipe: the recipe's own file, named where a value comes from no file.
    """
    problems: dict[tuple[str, str], list[str]] = {}
    for details in error.errors(include_url=False):
        path = _path_in_file(details, merged.values)
        missing = details["type"] == "missing"
        origin = recipe if missing else merged.origin(path) or recipe
        rule = _rule(details, path, schema, merged.values)
        problems.setdefault((origin, ".".join(path)), []).append(rule)
    lines = [f"{origin}: {path}: {' or '.join(dict.fromkeys(rules))}" for (origin, path), rules in problems.items()]
    if len(lines) == 1:
        return lines[0]
    return "\n  ".join([f"{recipe}: {len(lines)} problems", *lines])


def _path_in_file(details: ErrorDetails, values: Mapping[str, Any]) -> Path:
    """The location as the file spells it: pydantic adds names of union branches and of fields that YAML has flat."""
    path: list[str] = []
    value: Any = values
    for part in details["loc"]:
        items: Mapping[Any, Any] = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(items, Mapping) and part in items:
            value = items[part]
        elif part == details["loc"][-1] and details["type"] == "missing":
            value = None
        else:
            continue
        path.append(str(part))
    return tuple(path)


def _rule(details: ErrorDetails, path: Path, schema: type[BaseModel], values: Mapping[str, Any]) -> str:
    given = details.get("input")
    match details["type"]:
        case "extra_forbidden":
            known = _known_keys(schema, values, path[:-1])
            hint = did_you_mean(path[-1], known) or _elsewhere(schema, values, path[-1])
            return f"unknown key{hint} (known: {listing(known)})"
        case "missing":
            return "required, but neither the recipe nor what it includes sets it"
        case "value_error":
            return str(details["ctx"]["error"])
        case "literal_error":
            allowed = [text.strip("'") for text in details["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            return f"must be {details['ctx']['expected']}, got {given!r}{did_you_mean(given, allowed)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a mapping, got {given!r}"
        case _:
            rule = details["msg"].replace("Input should be ", "must be ").replace("valid ", "")
            return f"{rule[0].lower()}{rule[1:]}, got {given!r}"


def _known_keys(schema: type[BaseModel], values: Mapping[str, Any], path: Path) -> list[str]:
    """The keys that may stand in the mapping at ``path``."""
    section: type[BaseModel] | None = schema
    value: Any = values
    keys: list[str] = []
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
        field = section.model_fields.get(part) if section is not None else None
        if field is not None:
            section = _model_in(field.annotation)
        # a name in a mapping of sections (rewards, scorers) leaves the section's class as it is
    while section is not None:
        if issubclass(section, Variant) and not hasattr(section, "kind"):
            kind = value.get("kind") if isinstance(value, Mapping) else value
            keys.append("kind")
            section = section.members().get(str(kind))
            continue
        fields = dict(section.model_fields)
        is_kind = issubclass(section, Variant)  # else a reward, written as one mapping with its scorer
        inner = None if is_kind else fields.pop("scorer", None)
        keys += fields
        section = _model_in(inner.annotation) if inner is not None else None
    return keys


def _elsewhere(schema: type[BaseModel], values: Mapping[str, Any], key: str) -> str:
    """A hint for a key that exists in another section: ``group`` for ``rollout.group``."""
    for section, value in values.items():
        known = section in schema.model_fields and isinstance(value, Mapping)
        if known and key in _known_keys(schema, values, (section,)):
            return f"; did you mean '{section}.{key}'?"
    return ""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as ``X``, ``X | None`` or ``dict[str, X]``."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for arg in get_args(annotation) if (found := _model_in(arg)) is not None), None)
