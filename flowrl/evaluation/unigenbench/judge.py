"""Which judge is asked: an address, a file, or the one that an embedded benchmark brings."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from flowrl.errors import UserError
from flowrl.evaluation.unigenbench.benchmark import Benchmark
from flowrl.protocols import JudgeConfig
from flowrl.recipe_errors import explain
from flowrl.recipe_files import Merged, read


class _File(BaseModel):
    judge: JudgeConfig


def judge_config(
    benchmark: Benchmark, *, file: Path | None = None, url: str | None = None, model: str | None = None
) -> JudgeConfig:
    """The judge of a YAML file (``kind`` and its fields), of an OpenAI-compatible endpoint by ``url`` and ``model``,
    or, where nothing is given, the embedded world's own. Raises UserError for anything else."""
    merged = Merged()
    if file is not None and url is None and model is None:
        merged.add({"judge": read(file).values}, str(file))
    elif url is not None and model is not None and file is None:
        merged.add({"judge": {"kind": "endpoint", "url": url, "model": model}}, "--judge-url and --judge-model")
    elif file is None and url is None and model is None and benchmark.category in JudgeConfig.members():
        merged.add({"judge": {"kind": benchmark.category}}, benchmark.source)
    else:
        raise UserError(
            "a judge is given as --judge-url URL together with --judge-model NAME, or as --judge FILE.yaml; only an "
            "embedded benchmark brings its own"
        )
    try:
        return _File.model_validate(merged.values).judge
    except ValidationError as error:
        raise UserError(explain(error, _File, merged, str(file or "the judge"))) from error
