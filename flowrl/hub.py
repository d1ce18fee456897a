"""Files of models: in an embedded world, in a local folder, or in the local download cache of a model hub.

Nothing is downloaded here: what is missing is named, with the command that fetches it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flowrl
from flowrl.errors import UserError, did_you_mean, listing

SCHEMES = ("local-dir:", "hf-hub:")
WORLDS = Path(flowrl.__file__).parent / "worlds"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
BARE_HUB_ID = re.compile(rf"{HUB_ID.pattern}|[A-Za-z0-9][\w.-]*")
"""With the old ids that have no owner, which configurations of models still name."""


def in_worlds(path: str) -> dict[str, Path]:
    """Name -> ``path`` inside the world, of every embedded world that has it.

    >>> sorted(in_worlds("pipeline/model_index.json"))
    ['shapes']
    """
    return {folder.parts[len(WORLDS.parts)]: folder for folder in sorted(WORLDS.glob(f"*/{path}"))}


def locate_files(source: str, files: Sequence[str], *, what: str, world_folder: str) -> Path:
    """The folder that holds ``files`` (relative paths).

    ``source``: the name of an embedded world that has ``world_folder``, a local folder, or a hub id whose files
    ``hf download`` has fetched; ``local-dir:`` and ``hf-hub:`` in front, which are open_clip's, say which. ``what``
    begins the error, for example ``reward hps``. Raises UserError that names the source, the missing files and the
    command that fetches them.
    """
    scheme, _, name = source.partition(":") if source.startswith(SCHEMES) else ("", "", source)
    worlds = {} if scheme else in_worlds(world_folder)
    folder = worlds.get(name) or Path(name).expanduser()
    if scheme != "hf-hub" and folder.is_dir():
        remedy = "copy them there, or name another folder or hub id"
    elif scheme != "local-dir" and HUB_ID.fullmatch(name):
        folder = cached_snapshot(name, files[0])
        remedy = f"fetch them with\n  hf download {name} {' '.join(files)}"
    else:
        raise UserError(
            f"{what}: source {source!r} is neither an embedded world ({listing(worlds)}), nor a folder, nor a hub id "
            f"'owner/name'{did_you_mean(name, [*worlds, *siblings(folder)])}"
        )
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(f"{what}: {name} lacks {', '.join(missing)}; {remedy}")
    return folder


def cached_snapshot(hub_id: str, file: str) -> Path:
    """The folder in the download cache that holds a file of a hub id, or a path that does not exist."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, file)
    if not isinstance(found, str):
        return Path("not in the download cache")
    return Path(found[: -len(file)])


def siblings(path: Path, *, folders: bool = True) -> Iterator[str]:
    """Folders or files beside ``path``, for the nearest match of a misspelt one."""
    if path.parent.is_dir():
        yield from (str(path.parent / other.name) for other in path.parent.iterdir() if other.is_dir() == folders)


def read_json(path: Path, *required: str) -> dict[str, Any]:
    """A JSON file that must hold an object with the ``required`` keys; UserError where it does not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    if absent := [key for key in required if key not in value]:
        raise UserError(f"{path} lacks {', '.join(absent)}")
    return value


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex.

    >>> import tempfile; file = Path(tempfile.mkdtemp()) / "empty"; file.touch(); sha256(file)[:8]
    'e3b0c442'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir(name: str) -> Path:
    """A folder for what can be made again: in ``$FLOWRL_CACHE``, ``$XDG_CACHE_HOME/flowrl`` or ``~/.cache/flowrl``."""
    root = os.environ.get("FLOWRL_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flowrl"
    return base.expanduser() / name
