"""``flowrl unigenbench``: a judge's verdict on a folder of images, testpoint by testpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from flowrl.evaluation.unigenbench.report import BenchResult


def unigenbench(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of INDEX_J.png, J from 0.")],
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="CSV", help="The benchmark's CSV file, or shapes:bench.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where answers and results go.")],
    judge_url: Annotated[
        str | None, typer.Option("--judge-url", metavar="URL", help="For example http://localhost:8000/v1.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", metavar="NAME", help="The name that the judge is served under.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option("--judge", metavar="FILE", help="A judge in YAML: kind and its fields.")
    ] = None,
    per_prompt: Annotated[int, typer.Option("--per-prompt", min=1, metavar="N", help="Images per prompt.")] = 4,
    official_from: Annotated[
        Path | None,
        typer.Option("--official-from", metavar="DIR", help="Read the official wording from this checkout."),
    ] = None,
    rows: Annotated[
        Literal["fail", "repair", "skip"], typer.Option("--rows", help="What becomes of broken rows of the CSV.")
    ] = "fail",
    resume: Annotated[bool, typer.Option("--resume", help="Ask only what the output holds no answer to.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N prompts.")] = None,
    max_retries: Annotated[
        int, typer.Option("--max-retries", min=0, metavar="N", help="Times an unreadable answer is asked for again.")
    ] = 10,
    on_failure: Annotated[
        Literal["skip", "fail"],
        typer.Option("--on-failure", help="What becomes of an image without an answer that counts."),
    ] = "skip",
) -> None:
    """Judge images by UniGenBench++."""
    import torch

    from flowrl.evaluation.unigenbench.benchmark import load_benchmark
    from flowrl.evaluation.unigenbench.evaluate import evaluate
    from flowrl.evaluation.unigenbench.judge import judge_config
    from flowrl.evaluation.unigenbench.wording import official_wording, own_wording

    benchmark = load_benchmark(prompts, rows).first(limit)
    language = benchmark.language
    wording = own_wording(language) if official_from is None else official_wording(official_from, language)
    config = judge_config(benchmark, file=judge, url=judge_url, model=judge_model)
    result = evaluate(
        benchmark,
        images,
        config.load(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        output,
        identity=config.identity(),
        wording=wording,
        per_prompt=per_prompt,
        resume=resume,
        max_retries=max_retries,
        on_failure=on_failure,
        workers=getattr(config, "concurrency", 1),
        say=typer.echo,
    )
    _print(result)


def _print(result: BenchResult) -> None:
    """The paper's columns, with the coverage above them."""
    (_, columns), *rows = result.table()
    shown = [("%", columns), *((name, cells) for name, cells in rows if name != "95 % interval")]
    widths = [max(len(name) for name, _ in shown), *(max(len(cells[k]) for _, cells in shown) for k in range(11))]
    typer.echo(f"\n{result.title}")
    for name, cells in shown:
        typer.echo("  ".join(f"{cell:>{width}}" for cell, width in zip([name, *cells], widths, strict=True)))
    typer.echo(f"\nThe numbers with their intervals, and every answer, are in {result.output}")
