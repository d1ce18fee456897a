"""What cheaper continuations change: the ranks of a group's rewards, the velocity, the trained model.

    python benchmarks/continuations.py rank --prompts 24 --output runs/rank.json
    python benchmarks/continuations.py velocity --model shapes
    python benchmarks/continuations.py velocity --model flux1_dev --size 720 --batch 12 --compile
    python benchmarks/continuations.py train runs/cheaper --seeds 5 --iterations 48 --cheaper '{precision: fp8}'

``--cheaper`` takes any number of continuations, in YAML as in a recipe, strided where they name no kind.

``rank``: rewards of the same actions of the shapes world by the exact continuation of stride 1 and by each cheaper one,
beside those by strides 2 and 3. Spearman's correlation within each group of siblings, averaged over a prompt's
decisions; mean and 95 % bootstrap interval over prompts. A cheaper continuation is accepted where its correlation is at
least stride 2's by every reward.
``velocity``: relative error |v' - v| / |v| at each step of an exact ODE, one step's residual reused at the next; with
``--model flux1_dev`` on random weights, of the published depth and width or smaller ones, with times of a forward.
``train``: final held-out gold over seeds, exact and cheaper paired by seed, through ``flowrl train``.

Each prints a Markdown table and, with ``--output``, writes JSON; both say command, device and versions.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from continuation_velocity import continuation_of, default_device, measure

from flowrl.approximation import approximation_of
from flowrl.continuations.strided import Strided
from flowrl.data import load_prompts
from flowrl.engine import execute
from flowrl.markdown import table
from flowrl.noise import Noise
from flowrl.plan import Plan
from flowrl.protocols import Continuation, Policy, Scorer
from flowrl.recipe import Recipe, load_recipe
from flowrl.scoring import Scoring
from flowrl.statistics import Interval, difference_interval, mean_interval, study_interval
from flowrl.tracking import read_rows

CHEAPER = (
    "{precision: fp8}",
    "{cache: {every: 2, blocks: [0.0, 1.0], order: 0}}",
    "{cache: {every: 2, blocks: [0.0, 1.0], order: 1}}",
    "{cache: {every: 2, blocks: [0.25, 0.75], order: 0}}",
    "{cache: {every: 2, blocks: [0.25, 0.75], order: 1}}",
    "{cache: {every: 2, blocks: [0.5, 1.0], order: 0}}",
    "{cache: {every: 3, blocks: [0.0, 1.0], order: 1}}",
    "{precision: fp8, cache: {every: 2, blocks: [0.0, 1.0], order: 1}}",
)
REFERENCES = (1, 2, 3)
Array = np.ndarray


def provenance() -> dict[str, Any]:
    """Where the numbers come from."""
    import diffusers

    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {
        "command": shlex.join(["python", "benchmarks/continuations.py", *sys.argv[1:]]),
        "device": f"{device}, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
    }


def report(result: dict[str, Any], lines: Sequence[str], output: Path | None) -> None:
    result = provenance() | result
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print("\n".join([f"    {result['command']}", "", f"{result['device']}, {versions}.", "", *lines]))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")


# ---- rank


@dataclass(frozen=True)
class Scored:
    """The rewards [P, E, R] of the actions, for each stream; what they cost, in forwards of the whole transformer."""

    streams: list[Array]
    cost: float


def rank(arguments: argparse.Namespace) -> None:
    overrides = [f"rollout.group={arguments.group}", f"rollout.prompts={arguments.prompts}", *arguments.set]
    recipe = load_recipe("g2rpo_wo_mgai", rewards=arguments.rewards, overrides=overrides)
    device = default_device()
    policy = recipe.model.load(device)
    scorers = {name: reward.scorer.load(device) for name, reward in recipe.rewards.items()}
    scorers |= {"gold": recipe.evaluation.scorers["gold"].model_copy(update={"value": "quality"}).load(device)}
    plan, (exact, *coarser) = _score(recipe, policy, scorers, Strided(strides=REFERENCES))
    plain = recipe.model_copy(update={"continuation": Strided()}).plan()
    candidates = {}
    for stride, scored in zip(REFERENCES[1:], coarser, strict=True):
        cost = recipe.model_copy(update={"continuation": Strided(strides=(stride,))}).plan().num_forwards
        candidates[f"stride {stride}"] = Scored([scored], cost)
    for words in arguments.cheaper or CHEAPER:
        continuation = continuation_of(words)
        _, streams = _score(recipe, policy, scorers, continuation)
        share = continuation.cache.share if continuation.cache else 0.0
        counts = recipe.model_copy(update={"continuation": continuation}).plan().forwards
        candidates[words] = Scored(streams, sum(counts) - share * counts.cached)
        print(f"{words}: scored", file=sys.stderr, flush=True)
    rows = {
        name: {reward: within_groups(plan, exact[..., r], found.streams[0][..., r]) for r, reward in enumerate(scorers)}
        for name, found in candidates.items()
    }
    cost = {name: found.cost / plain.num_forwards for name, found in candidates.items()}
    ranked = [_rank_row(name, by_reward, rows["stride 2"], cost[name]) for name, by_reward in rows.items()]
    cells = [
        [row["name"], f"{row['cost']:.2f}"]
        + [f"{c['mean']:.3f} ({c['low']:.3f} to {c['high']:.3f})" for c in row["rewards"].values()]
        + ["yes" if row["accepted"] else "no"]
        for row in ranked
    ]
    lines = [*table(["continuation", "forwards", *scorers, "accepted"], cells)]
    report({"group": arguments.group, "prompts": arguments.prompts, "rows": ranked}, lines, arguments.output)


def _score(
    recipe: Recipe, policy: Policy, scorers: Mapping[str, Scorer], continuation: Continuation
) -> tuple[Plan, list[Array]]:
    """The recipe's first actions, and their rewards [P, E, R] by each stream of a continuation."""
    plan = recipe.model_copy(update={"continuation": continuation}).plan()
    prompts = load_prompts(recipe.data.train)[: recipe.rollout.prompts]
    device = default_device()
    with Scoring(policy, scorers, dict.fromkeys(scorers, 1.0), prompts, plan, recipe.advantage.peers) as scoring:
        execute(
            plan,
            policy,
            policy.encode(prompts),
            recipe.kernel,
            Noise(recipe.run.seed, 0),
            positions=range(len(prompts)),
            on_leaves=scoring.add,
            device=device,
            max_batch=recipe.rollout.max_batch,
            leaf_batch=recipe.rollout.decode_batch,
            approximation=approximation_of(policy, continuation, recipe.run.precision),
        )
    values = scoring.rewards().values.numpy()
    streams = range(plan.num_streams)
    return plan, [np.stack([values[:, columns[s]].mean(1) for columns in plan.leaves_below], 1) for s in streams]


def within_groups(plan: Plan, exact: Array, found: Array) -> Array:
    """[P] Spearman's correlation of rewards [P, E] within the siblings of a decision, a mean over a prompt's decisions.

    A group whose rewards are all equal has none and is left out; NaN where no group of a prompt has one.
    """
    decision = np.array(plan.decision_of_action)
    groups = [np.flatnonzero(decision == d) for d in range(len(plan.decisions))]
    by_group = np.stack([spearman(exact[:, rows], found[:, rows]) for rows in groups], 1)
    count = np.isfinite(by_group).sum(1)
    return np.where(count, np.nansum(by_group, 1) / np.maximum(count, 1), np.nan)


def spearman(x: Array, y: Array) -> Array:
    """Correlation of ranks along the last axis, equal values sharing their mean rank; NaN where all are equal.

    >>> spearman(np.array([[1.0, 2.0, 5.0]]), np.array([[2.0, 3.0, 4.0]])).round(6).tolist()
    [1.0]
    """
    x, y = (_centred_ranks(values) for values in (x, y))
    norm = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), norm, out=np.full(norm.shape, np.nan), where=norm > 0)


def _centred_ranks(values: Array) -> Array:
    below = (values[..., :, None] > values[..., None, :]).sum(-1)
    above = (values[..., :, None] < values[..., None, :]).sum(-1)
    centred: Array = (below - above) / 2
    return centred


def _rank_row(name: str, found: Mapping[str, Array], stride_two: Mapping[str, Array], cost: float) -> dict[str, Any]:
    """A row: correlations and, paired by prompt, how far they lie above those of stride 2."""
    rewards: dict[str, Any] = {}
    for reward, values in found.items():
        both = np.isfinite(values) & np.isfinite(stride_two[reward])
        rewards[reward] = mean_interval(values[both])._asdict() | {
            "above_stride_2": difference_interval(stride_two[reward][both], values[both])._asdict()
        }
    accepted = all(entry["above_stride_2"]["mean"] >= 0 for entry in rewards.values())
    return {"name": name, "cost": round(cost, 4), "rewards": rewards, "accepted": accepted}


# ---- velocity


def velocity(arguments: argparse.Namespace) -> None:
    result, lines = measure(arguments, arguments.cheaper or CHEAPER)
    report(result, lines, arguments.output)


# ---- train


def train(arguments: argparse.Namespace) -> None:
    wanted = {"exact": "{}"} | {words: words for words in arguments.cheaper or CHEAPER[:1]}
    jobs = [(name, words, seed) for seed in range(arguments.seeds) for name, words in wanted.items()]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        gold = list(pool.map(lambda job: _train(arguments, *job), jobs))
    by_name = {name: [g for (n, _, _), g in zip(jobs, gold, strict=True) if n == name] for name in wanted}
    rows, cells = [], []
    for name, values in by_name.items():
        gold_of, change = _over_seeds(values), _over_seeds(np.subtract(values, by_name["exact"]))
        rows.append({"name": name, "gold": values, "difference": change._asdict() if len(values) > 1 else None})
        paired = "" if name == "exact" else f"{change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
        cells.append([name, f"{gold_of.mean:.4f} [{gold_of.low:.4f}, {gold_of.high:.4f}]", paired])
    lines = [*table(["continuation", "gold", "minus exact, paired by seed"], cells)]
    lines += ["", f"Final held-out gold, {arguments.seeds} seeds, {arguments.iterations} iterations, 95 % Student's t."]
    report({"recipe": arguments.recipe, "rows": rows}, lines, arguments.output or arguments.folder / "train.json")


def _over_seeds(values: Sequence[float] | np.ndarray) -> Interval:
    return study_interval(np.asarray(values)[:, None])


def _train(arguments: argparse.Namespace, name: str, words: str, seed: int) -> float:
    """Final gold of a run; one that is finished already is not repeated."""
    slug = "".join(c if c.isalnum() or c in ".-" else "_" for c in name).strip("_")
    output = arguments.folder / f"{slug}-{seed}"
    if not (output / "summary.json").is_file():
        settings = [f"continuation={yaml.safe_dump(_fields(arguments.recipe, words), default_flow_style=True).strip()}"]
        settings += [f"run.iterations={arguments.iterations}", f"run.seed={seed}", "run.trackers=[]", *arguments.set]
        command = [sys.executable, "-m", "flowrl", "train", arguments.recipe, "--model", "shapes", "--rewards"]
        done = subprocess.run(
            [*command, arguments.rewards, "--output", str(output), *settings], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{name}, seed {seed}: {done.stderr[-2000:]}")
    return float([row["test/gold"] for row in read_rows(output) if row.get("test/gold") is not None][-1])


def _fields(recipe: str, words: str) -> dict[str, Any]:
    """The recipe's continuation with the cheaper fields."""
    fields: dict[str, Any] = load_recipe(recipe).continuation.model_dump(mode="json")
    return fields | yaml.safe_load(words)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for function in (rank, velocity, train):
        command = commands.add_parser(function.__name__)
        command.set_defaults(run=function)
        command.add_argument("--cheaper", nargs="*", metavar="FIELDS")
        command.add_argument("--output", type=Path)
        if function is train:
            command.add_argument("folder", type=Path)
            for name, value in (("seeds", 3), ("iterations", 12), ("jobs", 1)):
                command.add_argument(f"--{name}", type=int, default=value)
            command.add_argument("--recipe", default="g2rpo_wo_mgai")
        if function is velocity:
            command.add_argument("--model", choices=["shapes", "flux1_dev"], default="shapes")
            sizes = {"steps": 8, "batch": 8, "double": 19, "single": 38, "heads": 24, "head-dim": 128, "size": 720}
            for name, value in (sizes | {"text-tokens": 512}).items():
                command.add_argument(f"--{name}", type=int, default=value)
            for name in ("compile", "time"):
                command.add_argument(f"--{name}", action="store_true")
        else:
            command.add_argument("--rewards", default="hps_clip")
            command.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
        if function is rank:
            command.add_argument("--prompts", type=int, default=16)
            command.add_argument("--group", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    parsed = parse()
    parsed.run(parsed)
