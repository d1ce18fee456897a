"""A run's output folder from the run's side: claiming it, finding where to go on, and the files that say what it is."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flowrl import atomic, checkpoint
from flowrl.errors import UserError
from flowrl.launch import is_first_rank
from flowrl.output import RECIPE, check_output
from flowrl.recipe import Recipe
from flowrl.recipe_changes import differences

if TYPE_CHECKING:
    from flowrl.trainer import Trainer

CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
SCORERS = "scorers.json"
ANSWERS = "answers"

Identities = Mapping[str, Mapping[str, Any]]
"""``rewards`` and ``evaluation``: scorer's name -> :meth:`flowrl.protocols.ScorerConfig.identity`."""


def prepare(recipe: Recipe, output: Path, resume: bool) -> checkpoint.Found | None:
    """Refuse a folder in use and a recipe that is not the one that was begun; find where to go on."""
    if is_first_rank():
        check_output(output, resume)
    if not resume:
        return None
    began = output / RECIPE
    found = checkpoint.newest(output / CHECKPOINTS)
    if found.path is None:
        if found.skipped:
            raise UserError(f"--resume: no checkpoint in {output} can be used: {'; '.join(found.skipped)}")
        return found if yaml.safe_load(began.read_text()) == recipe.resolved() else None  # None: nothing is kept
    old = checkpoint.read_manifest(found.path)["recipe"]
    changed = differences(old, recipe.resolved())
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"--resume: the run in {output} was begun with other values (theirs -> yours):\n  {listed}\n"
            f"go on with its own recipe, {began}, or start a new run in another folder"
        )
    return found


def write_snapshot(recipe: Recipe, output: Path) -> None:
    """The resolved recipe, beside it the plugins that lay beside the recipe: together they are the recipe anew."""
    atomic.write_text(output / RECIPE, yaml.safe_dump(recipe.resolved(), sort_keys=False, width=110))
    for name in recipe.plugins:
        plugin = Path(sys.modules[name].__file__ or "")
        if plugin.parent in (recipe.source_path.parent, Path.cwd()) and plugin.parent != output.resolve():
            shutil.copy(plugin, output)


def write_identities(identities: Identities, output: Path, *, resumed: bool) -> None:
    """What every scorer is, in ``scorers.json``. Raises UserError where a reward that a run is resumed with, its
    settings the same, has other weights than it was begun with."""
    path = output / SCORERS
    if resumed and path.is_file():
        began = json.loads(path.read_text())["rewards"]
        for name, now in identities["rewards"].items():
            if began.get(name, now) != now:
                raise UserError(
                    f"--resume: reward {name} is not what the run in {output} was begun with ({SCORERS}):\n"
                    f"  then {json.dumps(began[name])}\n  now  {json.dumps(now)}\n"
                    "put the files of then back, or start a new run in another folder"
                )
    atomic.write_json(path, identities)


def save_weights(trainer: Trainer, output: Path) -> None:
    """``weights/`` and, where an average is kept, ``weights_ema/``: each appears whole or not at all.

    All processes call it. Raises OSError, in all of them alike.
    """
    trainer.export(lambda: _save_policy(trainer, output / "weights"))
    if trainer.ema is not None:
        with trainer.ema.swapped_in():
            trainer.export(lambda: _save_policy(trainer, output / "weights_ema"))


def _save_policy(trainer: Trainer, folder: Path) -> None:
    with atomic.new_folder(folder) as temporary:
        trainer.policy.save_pretrained(temporary)
