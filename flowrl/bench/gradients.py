"""Signal-to-noise of the gradient: how much of a prompt-iteration's gradient is what training is after.

A sample g is the gradient of the recipe's surrogate for one prompt in one iteration, before any update; its expectation
G, over prompts, noise and the places of the schedule, is the signal and everything else is noise:

    SNR = |G|^2 / tr Cov(g)           of one sample; of the mean over n samples n times as much
    1 / SNR                           the samples at which signal and noise are equal: the simple noise scale B_simple
                                      of McCandlish et al. (arXiv 1812.06162, Eq. 2.9)

With ``cross[p, q]`` the mean of g_p . g_q over pairs of different samples and ``square[p]`` the mean of |g_p|^2, the
prompts drawn independently (Hoeffding's U-statistics, 1948; for one sample a prompt those of arXiv 1812.06162, A.1):

    |G|^2      = mean of cross[p, q] over p != q           unbiased
    E |g|^2    = mean of square[p]                         unbiased
    tr Cov(g)  = E |g|^2 - |G|^2                           unbiased
    E |G_p|^2  = mean of cross[p, p]                       unbiased; G_p the expectation at one prompt

so that tr Cov parts into E |g|^2 - E |G_p|^2, from noise, and E |G_p|^2 - |G|^2, from prompts that ask for other
things. Where a method's advantage looks at all prompts together (scope: batch), samples of one iteration are not quite
independent; all others' are. Axes: P prompts, K repetitions, D parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.bench.probe import Stand
from flowrl.bench.report import Cell, Column, Row, Table
from flowrl.bench.within import RESAMPLES, Array, cell, column, rounded, seeds_in_words
from flowrl.learner import sites_of
from flowrl.recipe import Recipe
from flowrl.statistics import Interval
from flowrl.updates import decisions_of

# ---- measuring


def forwards(recipe: Recipe, *, num_prompts: int = 16, repetitions: int = 6) -> int:
    """Velocity evaluations of :func:`measure` without gradients."""
    return num_prompts * sum(recipe.plan(iteration).num_forwards for iteration in spread(recipe, repetitions))


def spread(recipe: Recipe, repetitions: int) -> list[int]:
    """Iterations at equal distances over the run, so that a moving schedule is seen at all its places."""
    return [repetition * recipe.run.iterations // repetitions for repetition in range(repetitions)]


def measure(recipe: Recipe, *, num_prompts: int = 16, repetitions: int = 6) -> dict[str, Any]:
    """Gradients of ``repetitions`` iterations, spread evenly over the run, each on the same prompts; JSON values.

    Holds all of them: 4 bytes x trainable parameters x prompts x repetitions, on the policy's device.
    """
    stand = Stand.of(recipe, num_prompts)
    gradients = torch.empty(0)
    training = 0.0
    for repetition, iteration in enumerate(spread(recipe, repetitions)):
        found, spent = _gradients(stand, iteration, repetition)
        if not len(gradients):
            gradients = found.new_empty(num_prompts, repetitions, found.shape[1])
        gradients[:, repetition] = found
        training += spent / num_prompts / repetitions
    cross, square = moments(gradients)
    return {
        "kind": "gradients",
        "method": recipe.name,
        "seed": recipe.run.seed,
        "prompts": [prompt.index for prompt in stand.prompts],
        "repetitions": repetitions,
        "parameters": gradients.shape[2],
        "forwards": forwards(recipe, num_prompts=num_prompts, repetitions=repetitions) / num_prompts / repetitions,
        "training_forwards": training,
        "cross": rounded(cross.tolist()),
        "square": rounded(square.tolist()),
    }


def _gradients(stand: Stand, iteration: int, repetition: int) -> tuple[Tensor, int]:
    """[P, D] the gradient of each prompt's mean loss over its trained actions, and the training forwards."""
    recipe, trainer = stand.recipe, stand.trainer
    plan = recipe.plan(iteration)
    rollout, values = stand.roll_out(plan, repetition)
    advantage = stand.advantage(values, plan)
    found, forwards = [], 0
    for p in range(len(stand.prompts)):
        updates = recipe.partition(plan, iteration, p)
        trained = tuple(sorted(action for update in updates for action in update))
        forwards += sum(len(decisions_of(plan, update)) for update in updates)
        chosen = [trained if other == p else () for other in range(len(stand.prompts))]
        sites = sites_of(plan, chosen, [1.0] * len(chosen))
        trainer.optimizer.zero_grad(set_to_none=True)
        count, scale = len(sites), 1 / len(trained)
        trainer.learner.accumulate(plan, rollout, stand.cond, advantage, sites, num_sites=count, scale=scale)
        found.append(torch.cat([_gradient(parameter) for parameter in trainer.parameters.values()]))
    trainer.optimizer.zero_grad(set_to_none=True)
    return torch.stack(found), forwards


def _gradient(parameter: nn.Parameter) -> Tensor:
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).detach().flatten()


def moments(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Of [P, K, D]: ``cross`` [P, P], the mean over pairs of different samples of their inner products (NaN on the
    diagonal for K = 1), and ``square`` [P], float64."""
    num_prompts, repetitions, _ = gradients.shape
    flat = gradients.flatten(0, 1)
    gram = (flat @ flat.T).double().cpu().reshape(num_prompts, repetitions, num_prompts, repetitions)
    cross = gram.mean((1, 3))
    own = torch.einsum("pkpk->pk", gram)
    same = torch.einsum("pkpl->p", gram) - own.sum(1)
    pairs = repetitions * (repetitions - 1)
    cross.diagonal().copy_(same / pairs)  # 0 / 0 of one repetition
    return cross, own.mean(1)


# ---- what it says


def estimates(cross: Array, square: Array, times: Array | None = None) -> dict[str, Array]:
    """|G|^2, tr Cov, its part from noise, and E |G_p|^2. ``times`` [..., P] counts each prompt (a resample's).

    Two draws of the same prompt are no independent pair: only pairs of different prompts enter |G|^2.
    """
    times = np.ones(len(square)) if times is None else times.astype(float)
    others = np.where(np.eye(len(square), dtype=bool), 0.0, cross)
    total = times.sum(-1)
    pairs = total**2 - (times**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        signal = np.einsum("...p,pq,...q->...", times, others, times) / pairs  # NaN of a single prompt
    second, own = times @ square / total, times @ np.diag(cross) / total
    return {"signal": signal, "noise": second - signal, "own": own, "own_noise": second - own}


@dataclass(frozen=True)
class Ratio:
    """A ratio, and its values over resampled prompts: methods measured on the same prompts are resampled alike."""

    value: float
    drawn: Array

    def interval(self) -> Interval | None:
        """With the 2.5 % and 97.5 % quantiles; None where it is not defined."""
        drawn = self.drawn[np.isfinite(self.drawn)]
        if not np.isfinite(self.value) or not len(drawn):
            return None
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Interval(self.value, float(low), float(high))

    def times(self, factor: float) -> Ratio:
        return Ratio(factor * self.value, factor * self.drawn)

    def minus(self, other: Ratio) -> Ratio:
        return Ratio(self.value - other.value, self.drawn - other.drawn)


RATIOS = {"all": ("signal", "noise"), "prompt": ("own", "own_noise")}


def snr(measurements: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Ratio]:
    """``all``: |G|^2 / tr Cov; ``prompt``: E |G_p|^2 / (E |g|^2 - E |G_p|^2), a prompt's own. The four estimates are
    averaged over the measurements before they are divided; the prompts of each are resampled."""
    generator = np.random.default_rng(seed)
    points, resampled = [], []
    for found in sorted(measurements, key=lambda one: one["seed"]):
        cross, square = np.stack([column(row) for row in found["cross"]]), column(found["square"])
        count = len(square)
        times = generator.multinomial(count, [1 / count] * count, size=RESAMPLES)
        points.append(estimates(cross, square))
        resampled.append(estimates(cross, square, times))
    return {name: _ratio(points, resampled, *parts) for name, parts in RATIOS.items()}


def _ratio(points: Sequence[dict[str, Array]], resampled: Sequence[dict[str, Array]], signal: str, noise: str) -> Ratio:
    with np.errstate(invalid="ignore", divide="ignore"):
        value, drawn = (
            np.sum([found[signal] for found in each], 0) / np.sum([found[noise] for found in each], 0)
            for each in (points, resampled)
        )
    return Ratio(float(value), drawn)


def table(
    measurements: Sequence[Mapping[str, Any]],
    runs: Mapping[str, tuple[str, ...]] | None = None,
    reference: str | None = None,
) -> Table:
    """A row per method, with the difference to a ``reference`` method. ``runs``: method -> keys of its runs."""
    runs = runs or {}
    names = list(dict.fromkeys(found["method"] for found in measurements))
    of_method = {name: [found for found in measurements if found["method"] == name] for name in names}
    base = of_method.get(reference or "")
    rows = [Row(title=name, cells=_cells(found, base, runs.get(name, ()))) for name, found in of_method.items()]
    found = measurements[0]
    compared = Column(key="difference", title=f"the same minus {reference}'s", digits=4)
    return Table(
        name="credit_snr",
        title="Signal-to-noise of the gradient",
        columns=(
            Column(key="snr", title="SNR of a prompt-iteration", better="higher", digits=4),
            Column(key="scale", title="prompts for SNR 1", better="lower", digits=0),
            Column(key="prompt", title="SNR of one prompt's own", better="higher", digits=4),
            Column(key="forwards", title="forwards", digits=0),
            Column(key="training", title="training forwards", digits=0),
            Column(key="per_forwards", title="SNR per 1000 forwards", better="higher", digits=4),
            *([compared] if base else []),
        ),
        rows=tuple(rows),
        caption=f"|E g|^2 / tr Cov(g) of the gradient of {found['parameters']:,} parameters; a sample is one prompt in "
        f"one iteration. {len(found['prompts'])} prompts, {found['repetitions']} iterations spread over the run, "
        f"{seeds_in_words(measurements)}; 95 % bootstrap intervals over prompts. "
        "Forwards of the rollout; per 1000 of them the SNR is 1000 / forwards times that of a sample. Differences are "
        "paired by prompt.",
    )


def _cells(
    measurements: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]] | None, runs: tuple[str, ...]
) -> dict[str, Cell]:
    found = snr(measurements)
    forwards, training = (fmean(one[key] for one in measurements) for key in ("forwards", "training_forwards"))
    whole, thousand = found["all"].interval(), _per_thousand(measurements)
    scale = Cell(note="the signal cannot be told from 0", runs=runs)
    if whole is not None and whole.low > 0:
        scale = Cell(value=1 / whole.mean, low=1 / whole.high, high=1 / whole.low, runs=runs)
    cells = {
        "snr": cell(whole, runs),
        "scale": scale,
        "prompt": cell(found["prompt"].interval(), runs),
        "forwards": Cell(value=forwards),
        "training": Cell(value=training),
        "per_forwards": cell(thousand.interval(), runs),
    }
    if base is not None and base[0]["method"] != measurements[0]["method"]:
        cells["difference"] = cell(_difference(measurements, base), runs)
    return cells


def _per_thousand(measurements: Sequence[Mapping[str, Any]]) -> Ratio:
    return snr(measurements)["all"].times(1000 / fmean(found["forwards"] for found in measurements))


def _difference(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> Interval | None:
    """One's SNR per 1000 forwards minus the other's, over the seeds and prompts of both."""
    shared = {(found["seed"], *found["prompts"]) for found in one} & {
        (found["seed"], *found["prompts"]) for found in other
    }
    pair = [[found for found in each if (found["seed"], *found["prompts"]) in shared] for each in (one, other)]
    return _per_thousand(pair[0]).minus(_per_thousand(pair[1])).interval() if shared else None
