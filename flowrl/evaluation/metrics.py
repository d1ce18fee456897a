"""Metrics by name: those of a model's fragment in ``recipes/metrics/``, or of a file of one's own."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, ValidationError

from flowrl.errors import UserError, all_of, did_you_mean, listing
from flowrl.evaluation.benchmarks import UniGenBench
from flowrl.protocols import ScorerConfig
from flowrl.recipe import Section, import_plugins
from flowrl.recipe_errors import explain
from flowrl.recipe_files import Merged, RecipeFile, assemble_metrics

ALL = "all"
SECTIONS = ("metrics", "benchmarks")


class Benchmarks(Section):
    """What draws prompts of its own."""

    unigenbench: UniGenBench | None = None


class MetricsFragment(Section):
    """What a metrics fragment holds, by name."""

    plugins: tuple[str, ...] = ()
    """Modules that hold scorers of one's own."""
    metrics: dict[str, ScorerConfig] = Field(default_factory=dict)
    benchmarks: Benchmarks = Benchmarks()

    def check(self) -> None:
        """Raise UserError with everything that is needed to score and is missing."""
        checks = [scorer.check for scorer in self.metrics.values()]
        if self.benchmarks.unigenbench is not None:
            checks.append(self.benchmarks.unigenbench.judge.check)
        all_of(*checks)


def find_metrics(names: str, fragment: str) -> MetricsFragment:
    """What ``names`` ask for.

    Args:
        names: comma-separated metrics of ``fragment``, ``all`` of them, or YAML files, each of which means all of its.
        fragment: the model's metrics fragment, a name or file.

    Raises:
        UserError: for an unknown name or kind.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    files = [name for name in asked if name.endswith(".yaml")]
    own = [name for name in asked if name not in files]
    found = MetricsFragment()
    for file, chosen in [*((file, [ALL]) for file in files), *([(fragment, own)] if own else [])]:
        loaded = _load(file, chosen)
        unigenbench = loaded.benchmarks.unigenbench or found.benchmarks.unigenbench
        found = MetricsFragment(
            metrics={**found.metrics, **loaded.metrics}, benchmarks=Benchmarks(unigenbench=unigenbench)
        )
    if not asked:
        known = [ALL, *_names(*assemble_metrics(fragment))]
        raise UserError(f"--metrics names no metric (known: {listing(known)})")
    return found


def _load(fragment: str, chosen: Sequence[str]) -> MetricsFragment:
    """A fragment, of which only what is chosen is looked at: the rest may need what is not installed."""
    file, merged = assemble_metrics(fragment)
    known = _names(file, merged)
    for name in chosen:
        if name != ALL and name not in known:
            hint = did_you_mean(name, [ALL, *known])
            raise UserError(f"--metrics: {file.label} has no metric {name!r}{hint} (known: {listing([ALL, *known])})")
    import_plugins(file, merged)
    for section in SECTIONS:
        values = merged.values.get(section, {})
        merged.values[section] = {name: values[name] for name in values if ALL in chosen or name in chosen}
    try:
        return MetricsFragment.model_validate(merged.values)
    except ValidationError as error:
        raise UserError(explain(error, MetricsFragment, merged, file.label)) from error


def _names(file: RecipeFile, merged: Merged) -> list[str]:
    """The names in all sections of a fragment."""
    for section in SECTIONS:
        if not isinstance(merged.values.get(section, {}), dict):
            raise UserError(f"{file.label}: {section} must map names to settings, got {merged.values[section]!r}")
    return [name for section in SECTIONS for name in merged.values.get(section, {})]
