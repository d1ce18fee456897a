"""Several training runs, one after another, by several processes that are started once.

    ranks = start_ranks(folder, [Case("name", recipe, ("run.parallel=fsdp",))], processes=2)

As a program it is one of those processes. What each case came to in each process is in ``folder/NAME.RANK.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A run of ``recipe`` into ``folder/output`` (by default its name).

    ``by_rank`` adds overrides in one process alone. In rank 1 ``poison`` makes what the learner computes NaN in the
    iteration of that number, and the checkpoint after iteration ``full_disk`` cannot be written.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    output: str | None = None
    options: dict[str, Any] = field(default_factory=lambda: {"stop_after": 3})
    by_rank: dict[str, tuple[str, ...]] = field(default_factory=dict)
    poison: int | None = None
    full_disk: int | None = None


def run_cases(folder: Path, cases: list[Case], processes: int, environment: Mapping[str, str] | None = None) -> None:
    """Run the cases as ``processes`` ranks, from which a launcher has found that all succeeded."""
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    code = f"import sys; from flowrl import launch; sys.exit(launch.run([{str(folder)!r}], {processes}, "
    code += f"command=[sys.executable, {str(TESTS / 'ranks.py')!r}], grace=5))"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    env |= environment or {}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout


def results(folder: Path, name: str, processes: int) -> list[dict[str, Any]]:
    """What a case came to in each process: ``error``, ``batches`` of its rollouts, ``sharded`` parameters."""
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(processes)]


def main(folder: Path) -> None:
    from flowrl import parallel, shards
    from flowrl.learner import Learner
    from flowrl.recipe import load_recipe
    from flowrl.run import train
    from flowrl.trainer import Trainer

    rank = int(os.environ["RANK"])
    roll_out, terms, write = Trainer._roll_out, Learner._terms, shards.write
    found: dict[str, Any] = {}
    case: Case

    def counted(self: Trainer, plan: Any, batch: Any) -> Any:
        rollout, scoring = roll_out(self, plan, batch)
        found["batches"].append(rollout.num_batches)
        found["sharded"] = all(map(shards.is_cut, self.parameters.values()))
        found["iteration"] = self.iteration
        return rollout, scoring

    def poisoned(self: Learner, plan: Any, rollout: Any, cond: Any, advantage: Any, sites: Any) -> Any:
        if case.poison == found["iteration"] + 1 and rank == 1:
            advantage = advantage * float("nan")
        return terms(self, plan, rollout, cond, advantage, sites)

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        if case.full_disk == found["iteration"] + 1 and rank == 1:
            raise OSError(28, "No space left on device")
        return write(path, *args, **kwargs)

    Trainer._roll_out, Learner._terms, shards.write = counted, poisoned, full  # type: ignore[method-assign]
    for values in json.loads((folder / "cases.json").read_text()):
        case = Case(**values)
        found = {"error": None, "batches": [], "sharded": None}
        began = time.process_time()
        overrides = (*case.overrides, *case.by_rank.get(str(rank), ()))
        try:
            train(
                load_recipe(case.recipe, overrides=overrides),
                output=folder / (case.output or case.name),
                **case.options,
            )
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
        found["seconds"] = time.process_time() - began
        (folder / f"{case.name}.{rank}.json").write_text(json.dumps(found))
    parallel.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
