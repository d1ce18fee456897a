"""Python environments of their own for packages that cannot live beside this one.

An environment is a venv with the pinned packages of environments.json, over the packages of the environment that flowrl
runs in: torch is not installed twice, and nothing in that environment changes. It lies in the cache folder, and is
built again when the pins or the interpreter change.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from flowrl.atomic import LEFTOVER, write_json
from flowrl.errors import RunFailed, UserError
from flowrl.hub import cache_dir

STAMP = "flowrl.json"
OVERLAY = "flowrl_overlay.pth"


@cache
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("environments.json").read_text())
    return table


def names() -> tuple[str, ...]:
    """What can be built.

    >>> names()
    ('hpsv2', 'image_reward')
    """
    return tuple(_table())


def pins(name: str) -> list[str]:
    """The packages and versions that an environment adds.

    >>> pins("hpsv2")[0]
    'hpsv2==1.2.0'
    """
    return list(_table()[name]["pins"])


def folder_of(name: str, root: Path | None = None) -> Path:
    """Where an environment lies: below ``root``, or in the cache under a name that this interpreter's prefix has."""
    if root is not None:
        return root / name
    return cache_dir("environments") / f"{name}-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]}"


def is_built(name: str, root: Path | None = None) -> bool:
    """Whether it is there, for these pins and this interpreter."""
    try:
        return bool(json.loads((folder_of(name, root) / STAMP).read_text()) == _wanted(name))
    except (OSError, ValueError):
        return False


def interpreter(name: str, root: Path | None = None) -> Path:
    """The Python of an environment. Raises UserError with the command that builds it."""
    if not is_built(name, root):
        raise UserError(
            f"the environment {name} ({_table()[name]['what']}) is not built, or its pins have changed; build it with\n"
            f"  flowrl scorers environments {name}"
        )
    return _python(folder_of(name, root))


def build(name: str, root: Path | None = None) -> Path:
    """The Python of an environment, which is built where it is not there yet; needs a package index then.

    Another process that builds the same one is waited for. Raises UserError for what this environment lacks, RunFailed
    with pip's own words where a package cannot be installed; nothing half built stays.
    """
    folder = folder_of(name, root)
    with _locked(folder):
        if not is_built(name, root):
            _check_needs(name)
            temporary = folder.with_name(f"{LEFTOVER}{folder.name}")
            shutil.rmtree(temporary, ignore_errors=True)  # of a killed build: nobody else holds the lock
            try:
                _fill(temporary, name)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return _python(folder)


def _fill(folder: Path, name: str) -> None:
    """A venv is moved into place afterwards: its Python finds its packages by its own place, and its scripts, which
    would not, are not used."""
    _run([sys.executable, "-m", "venv", str(folder)], f"environment {name}: no venv can be made")
    packages = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (packages / OVERLAY).write_text("".join(f"{path}\n" for path in _site_packages()))
    install = [str(_python(folder)), "-m", "pip", "install", "--quiet", "--no-input", "--no-deps", *pins(name)]
    _run(install, f"environment {name}: a package cannot be installed")
    for source, target in _table()[name]["copy"].items():
        shutil.copyfile(_beside_import(source), packages / target)
    write_json(folder / STAMP, _wanted(name))


def _wanted(name: str) -> dict[str, Any]:
    return {**_table()[name], "python": sys.version, "prefix": sys.prefix, "site_packages": _site_packages()}


def _site_packages() -> list[str]:
    """Where this environment's packages lie."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    found = dict.fromkeys([*site.getsitepackages(), *user])
    return [path for path in found if Path(path).is_dir()]


def _check_needs(name: str) -> None:
    missing = [module for module in _table()[name]["needs"] if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"environment {name} stands on packages of this one, which lacks {', '.join(missing)}")


def _beside_import(path: str) -> Path:
    """A file inside an installed package, which is not imported for it."""
    package, _, rest = path.partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / rest


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _run(command: Sequence[str], what: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if not line.startswith("WARNING")]
        raise RunFailed("\n  | ".join([f"{what}; its last lines:", *lines[-12:]]))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among processes; the lock goes with the process that holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".lock-{folder.name}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
