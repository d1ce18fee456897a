"""How two recipes differ: a name for the trajectory, and what keeps a run of one from being continued with another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from flowrl.protocols import Schedule

TRAJECTORY_FREE_KEYS = frozenset(
    {
        "name",
        "summary",
        "rollout.max_batch",
        "rollout.decode_batch",
        "rollout.score_ahead",
        "data.test",
        "evaluation",
        "run.parallel",
        "run.microbatch",
        "run.checkpoint_every",
        "run.keep_checkpoints",
        "run.sample_every",
        "run.num_samples",
        "run.trackers",
        "run.self_check_bound",
        "run.non_finite",
        "model.cache_dir",
        "model.cache_limit",
        "model.compile",
        "model.attention",
        "model.gradient_checkpointing",
    }
)
"""Keys (with all below them) that do not enter the parameters' trajectory."""
PAIRED_KEYS = frozenset({"data.test", "evaluation.num_steps", "evaluation.seed", "evaluation.limit"})
"""Those of them that a resumed run keeps all the same: before and after are compared prompt by prompt. Scorers may come
and go, but not change under their name."""


def digest(values: Mapping[str, Any]) -> str:
    """A name for the trajectory of a resolved recipe."""
    entering = sorted((key, repr(value)) for key, value in _leaves(values) if not _is_under(key, TRAJECTORY_FREE_KEYS))
    return hashlib.sha256(json.dumps(entering).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps a run of the resolved recipe ``old`` from being continued with ``new``, one line per key.

    Keys of ``TRAJECTORY_FREE_KEYS`` may differ, except what before and after are compared by (``PAIRED_KEYS``).
    ``run.iterations`` may grow where neither the schedule nor the learning rate depends on it.

    >>> differences({"optimizer": {"lr": 1e-4}}, {"optimizer": {"lr": 2e-4}})
    ['optimizer.lr: 0.0001 -> 0.0002']
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    found = []
    for key in sorted(before.keys() | after.keys()):
        a, b = before.get(key, "not set"), after.get(key, "not set")
        if a == b or (_is_under(key, TRAJECTORY_FREE_KEYS) and not _is_paired(key, old, new)):
            continue
        if key == "run.iterations":
            if b < a:
                found.append(f"{key}: {a} -> {b} (it may only grow)")
            elif reason := _depends_on_iterations(old, new):
                found.append(f"{key}: {a} -> {b} ({reason} depends on it)")
            continue
        found.append(f"{key}: {a} -> {b}")
    return found


def _depends_on_iterations(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """What of the iterations of ``old`` would be another with the number of iterations of ``new``."""
    if old["optimizer"]["schedule"] != "constant":
        return "optimizer.schedule"
    schedule = Schedule.model_validate(old["schedule"])
    count = old["run"]["iterations"]
    shape = {
        "num_steps": old["grid"]["num_steps"],
        "group": old["rollout"]["group"],
        "seed": old["run"]["seed"],
    }
    for iteration in range(count):
        planned = schedule.arms(iteration=iteration, iterations=count, **shape)
        if planned != schedule.arms(iteration=iteration, iterations=new["run"]["iterations"], **shape):
            return "schedule"
    return None


def _is_paired(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether ``key`` says what before and after are compared by, a scorer of both recipes included."""
    scorers = [values.get("evaluation", {}).get("scorers", {}) for values in (old, new)]
    common = {f"evaluation.scorers.{name}" for name in scorers[0] if name in scorers[1]}
    return _is_under(key, PAIRED_KEYS | common)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything that is not a mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_under(key: str, keys: frozenset[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:length]) in keys for length in range(1, len(parts) + 1))
