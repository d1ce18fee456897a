"""Configuration files of a checkpoint that would have a library run code which the checkpoint names.

flowrl never passes ``trust_remote_code``. What is refused here are ways that ask no one, in some versions at least.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowrl.errors import UserError
from flowrl.hub import read_json

LIBRARIES = ("diffusers", "transformers")
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Keys of a configuration of transformers; a value with a slash is a repository whose kernels are fetched and run."""


def refuse_kernels(config: Path) -> dict[str, Any]:
    """The content of a configuration of transformers. Raises UserError where it asks for kernels out of a repository.

    >>> import tempfile; config = Path(tempfile.mkdtemp()) / "config.json"
    >>> _ = config.write_text('{"model_type": "clip", "attn_implementation": "sdpa"}')
    >>> refuse_kernels(config)["model_type"]
    'clip'
    """
    values = read_json(config)
    for name, value in _pairs(values):
        if name in KERNELS and isinstance(value, str) and "/" in value:
            raise UserError(f"{config}: {name} {value!r} would run code of that repository; remove the key")
    return values


def refuse_auto_map(config: Path) -> dict[str, Any]:
    """As ``refuse_kernels``, and raises UserError where the configuration names classes of its own files."""
    values = refuse_kernels(config)
    if "auto_map" in values:
        raise UserError(f"{config}: auto_map names code that the model brings along, and flowrl runs none; remove it")
    return values


def refuse_foreign_components(index: Path) -> None:
    """Raise UserError where a pipeline's ``model_index.json`` takes a class from elsewhere than :data:`LIBRARIES`."""
    values = read_json(index)
    if not isinstance(values.get("_class_name", ""), str):
        raise UserError(
            f"{index}: _class_name {values['_class_name']!r} names code of the checkpoint's own, not a class"
        )
    for name, value in values.items():
        library = value[0] if isinstance(value, list) and value and not name.startswith("_") else None
        if library is not None and library not in LIBRARIES:
            raise UserError(
                f"{index}: {name} is a class of {library!r}; components are of {' or '.join(LIBRARIES)}, "
                "whatever else there is would run code that the checkpoint names"
            )


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    if isinstance(value, dict):
        yield from value.items()
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _pairs(inner)
