"""What throughput.py measured, as words, as one merged file, and as a page with figures."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flowrl.atomic import replacing, write_json, write_text
from flowrl.errors import UserError
from flowrl.hub import read_json
from flowrl.markdown import table as lines_of_table
from flowrl.rates import table

Line = dict[str, Any]
Columns = dict[str, Callable[[Line], object]]
"""Head -> what a line has in that column."""
PHASES = {
    "encode": "#999999",
    "gathering": "#8e44ad",
    "prefix": "#1b4f72",
    "rollout": "#2e86c1",
    "branches": "#2e86c1",
    "continuations": "#5dade2",
    "decode": "#f39c12",
    "score": "#d35400",
    "waiting": "#f5b7b1",
    "train": "#27ae60",
    "optimiser": "#145a32",
    "engine": "#e74c3c",
}
"""And their colours. Ours has a rollout, whose prefix and branches share batches; with rollout.score_ahead decoding and
scoring run beside it, and what is left of them is waiting."""


def main(argv: Sequence[str]) -> int:
    """The commands ``merge``, ``report`` and ``rates``."""
    parser = argparse.ArgumentParser(prog="throughput.py")
    commands = parser.add_subparsers(dest="command", required=True)
    merger = commands.add_parser("merge", help="several files into one")
    merger.add_argument("files", nargs="+", type=Path)
    merger.add_argument("-o", "--output", type=Path, required=True)
    reporter = commands.add_parser("report", help="a page and its figures, beside it")
    reporter.add_argument("file", type=Path)
    reporter.add_argument("-o", "--output", type=Path, required=True)
    reporter.add_argument("--notes", type=Path, help="Markdown that is put at the end: what did not win, and why")
    rater = commands.add_parser("rates", help="print lines for flowrl/rates.yaml")
    rater.add_argument("file", type=Path)
    options = parser.parse_args(argv)
    if options.command == "merge":
        write_json(options.output, {"runs": merge(options.files)})
    elif options.command == "rates":
        print("\n".join(f"  - {json.dumps(rate)}" for run in runs_of(options.file) for rate in rates(run)))
    else:
        notes = options.notes.read_text(encoding="utf-8") if options.notes else ""
        report(runs_of(options.file), options.output, notes)
    return 0


def runs_of(file: Path) -> list[Line]:
    """The runs of a file, merged or as throughput.py wrote it."""
    found = read_json(file)
    runs = found.get("runs", [found])
    if not all(isinstance(run, dict) and "lines" in run for run in runs):
        raise UserError(f"{file} was not written by benchmarks/throughput.py")
    return list(runs)


def merge(files: Iterable[Path]) -> list[Line]:
    """All runs; of those with one command, commit and device the last."""
    found: dict[tuple[str, ...], Line] = {}
    for file in files:
        for run in runs_of(file):
            key = (run["command"], run["commit"], run["device"])
            found.pop(key, None)
            found[key] = run
    return list(found.values())


def plain(value: Any) -> Any:
    """JSON values: numbers that are none become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


# ---- words


def in_words(line: Line) -> str:
    """A line as it is printed while measuring."""
    if "failed" in line:
        batch = f", batch {line['batch']}" if "batch" in line else ""
        return f"{line['name']}{batch}: out of {line['failed']}"
    if line["what"] == "ratio":
        apart = _number(line["max_reward_difference"], 3)
        return (
            f"{line['recipe']}: {line['fast']} is {line['ratio']:.2f} times as fast as {line['slow']}; rewards of the "
            f"same noise differ by at most {apart} ({line['rewards_compared']} compared, their std is "
            f"{_number(line['reward_std'], 3)}), rank correlation {_number(line['rank_correlation'], 3)}"
        )
    if line["what"] == "images":
        return f"{line['part']}, {line['name']}, batch {line['batch']}: {line['ms_per_sample']:.4g} ms an image"
    if line["what"] != "iteration":
        return (
            f"{line['what']}, {line['name']}, batch {line['batch']}: {line['ms_per_sample']:.4g} ms a sample "
            f"({_percent(line['peak_share'])} of peak at {line['counted_forwards']} x forward), "
            f"{_memory(line['peak_memory_gb'])}"
        )
    words = [f"{line['recipe']}, {line['name']}: {line['seconds']:.4g} s"]
    if "seconds_measured" in line:
        words.append(
            f"scaled from {line['seconds_measured']:.4g} s of parts {line['parts']}, whose seconds per forward spread "
            f"by {_percent(line['spread'])}"
        )
    words.append(f"{line['forwards']['rollout']:.0f} + {line['training_forwards']:.0f} forwards")
    words.append(f"{_percent(line['peak_share'])} of peak in the rollout, {_memory(line['peak_memory_gb'])}")
    if "padding_share" in line:
        words.append(f"engine {_percent(line['engine_share'])}, padding {_percent(line['padding_share'])}")
    if "seconds_without_phases" in line:
        words.append(f"{line['seconds_without_phases']:.4g} s without phases")
    phases = ", ".join(f"{name} {line['phases'][name]:.3g}" for name in PHASES if name in line["phases"])
    predicted = line.get("predicted")
    if predicted:
        words.append(f"predicted {predicted['seconds']:.4g} s ({_off_by(line)})")
    return "; ".join(words) + f"\n    {phases}"


def _off_by(line: Line) -> str:
    """How far the prediction is from what was measured."""
    return f"{100 * (line['predicted']['seconds'] / line['seconds'] - 1):+.1f} %"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _memory(value: float | None) -> str:
    return "memory not measured" if value is None else f"{value:.1f} GB at most"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


# ---- rates

BATCHES = {"forward": 12, "train": 4, "images": 4}
"""The batch whose rate is kept, or the largest below it."""


def rates(run: Line) -> Iterator[Line]:
    """What the run adds to flowrl/rates.yaml: JSON is YAML. Of a size other than FLUX.1-dev's nothing."""
    if run["size"] != "flux":
        return
    words = run["device"].lower().split()
    source = {"gpu": next((key for key in table()["gpus"] if key in words), run["device"])}
    source |= {"hardware": f"one {run['device']}", "command": run["command"]}
    lines = [line for line in run["lines"] if "failed" not in line]
    for what in ("forward", "train"):
        of_it = [line for line in lines if line["what"] == what and line["batch"] <= BATCHES[what]]
        for name in dict.fromkeys(line["name"] for line in of_it):
            line = max((line for line in of_it if line["name"] == name), key=lambda line: line["batch"])
            rate = {"ms": round(line["ms_per_sample"], 1)} | source
            if what == "forward":
                yield {"what": "forward", "compiled": line["compiled"], "precision": line["precision"]} | rate
            elif isinstance(line["checkpointed"], bool):
                keys = {key: line[key] for key in ("compiled", "checkpointed", "tune")}
                yield {"what": "training"} | keys | rate
    of_images = [line for line in lines if line["what"] == "images" and line["batch"] <= BATCHES["images"]]
    of_images = [line for line in of_images if line["scorers"] == "full" and not line["overrides"]]
    for part in dict.fromkeys(line["part"] for line in of_images):
        line = max((line for line in of_images if line["part"] == part), key=lambda line: line["batch"])
        key = {"what": "decode"} if part == "decode" else {"what": "score", "scorer": part}
        yield key | {"ms": round(line["ms_per_sample"], 2)} | source


# ---- page


def report(runs: Sequence[Line], page: Path, notes: str = "") -> None:
    """Writes the page, and its figures as PNG files beside it."""
    lines = [line | {"run": number} for number, run in enumerate(runs, 1) for line in run["lines"]]
    failed = [line for line in lines if "failed" in line]
    lines = [line for line in lines if "failed" not in line]
    iterations = [line for line in lines if line["what"] == "iteration"]
    parts = ["# Performance", _INTRODUCTION]
    parts += _section("Ratios", _ratios(lines), "")
    parts += _section("Seconds of an iteration, by phase", _iterations(iterations), _figure(iterations, page, "phases"))
    for what, title in (("forward", "A forward"), ("train", "A training forward and backward")):
        of_it = [line for line in lines if line["what"] == what]
        parts += _section(title, _per_sample(of_it), _figure(of_it, page, what))
    of_images = [line for line in lines if line["what"] == "images"]
    parts += _section("Decoding and scoring, alone on the device", _of_images(of_images), "")
    parts += _section("Several processes", _scaling(iterations), "")
    parts += _section("Predicted and measured", _predicted(iterations), "")
    parts += ["; ".join(f"{in_words(line)} (run {line['run']})" for line in failed)]
    parts += _section("Runs", _provenance(runs), "")
    write_text(page, "\n\n".join(filter(None, [*parts, notes.strip()])) + "\n")


_INTRODUCTION = """Written by `python benchmarks/throughput.py report`; never edited by hand. Random weights of the
sizes named. Every line names its run; the runs are listed at the end with command, commit, device and versions. Ratios
compare lines of one process on one device."""


def _section(title: str, table: str, figure: str) -> list[str]:
    return [f"## {title}", *filter(None, [figure, table])] if table else []


def _table(columns: Columns, lines: Sequence[Line]) -> str:
    rows = [[str(cell(line)).replace("|", "\\|") for cell in columns.values()] for line in lines]
    return "\n".join(lines_of_table([*columns], rows, left=range(len(columns)))) if rows else ""


def _ratios(lines: Sequence[Line]) -> str:
    columns: Columns = {
        "recipe": lambda line: line["recipe"],
        "trained": lambda line: line["tune"],
        "slow": lambda line: line["slow"],
        "fast": lambda line: line["fast"],
        "ratio": lambda line: f"**{line['ratio']:.2f}**",
        "rewards compared": lambda line: line["rewards_compared"],
        "largest difference": lambda line: _number(line["max_reward_difference"], 3),
        "mean difference": lambda line: _number(line["mean_reward_difference"], 3),
        "their std": lambda line: _number(line["reward_std"], 3),
        "rank correlation in a group": lambda line: _number(line["rank_correlation"], 3),
        "run": lambda line: line["run"],
    }
    return _table(columns, [line for line in lines if line["what"] == "ratio"])


def _iterations(lines: Sequence[Line]) -> str:
    columns: Columns = {
        "recipe": lambda line: line["recipe"],
        "trained": lambda line: line["tune"],
        "what": _name,
        "seconds": lambda line: f"{line['seconds']:.2f}",
    }
    for phase in PHASES:
        columns[phase] = lambda line, phase=phase: _number(line["phases"].get(phase), 3)  # type: ignore[misc]
    columns |= {
        "forwards": lambda line: f"{line['forwards']['rollout']:.0f}",
        "training forwards": lambda line: f"{line['training_forwards']:.0f}",
        "rollout, of peak": lambda line: _percent(line["peak_share"]),
        "padding": lambda line: _percent(line.get("padding_share")),
        "compiling, s": lambda line: _number(line.get("compile_seconds"), 3),
        "GB": lambda line: _number(line["peak_memory_gb"], 3),
        "run": lambda line: line["run"],
    }
    return _table(columns, lines)


def _name(line: Line) -> str:
    if "spread" in line:
        return f"{line['name']}; from parts {line['parts']}, spread {_percent(line['spread'])}"
    beside = ", ".join(f"{name} {seconds:.2f} s beside" for name, seconds in line["beside"].items())
    return "; ".join(filter(None, [line["name"], beside]))


def _per_sample(lines: Sequence[Line]) -> str:
    columns: Columns = {
        "what": lambda line: line["name"],
        "trained": lambda line: line["tune"],
        "batch": lambda line: line["batch"],
        "ms a sample": lambda line: f"{line['ms_per_sample']:.1f}",
        "of peak": lambda line: _percent(line["peak_share"]),
        "counted as": lambda line: f"{line['counted_forwards']} x forward",
        "first call, s": lambda line: _number(line["first_seconds"], 3),
        "GB": lambda line: _number(line["peak_memory_gb"], 3),
        "run": lambda line: line["run"],
    }
    return _table(columns, lines)


def _of_images(lines: Sequence[Line]) -> str:
    columns: Columns = {
        "what": lambda line: line["part"],
        "variant": lambda line: line["name"],
        "batch": lambda line: line["batch"],
        "ms an image": lambda line: f"{line['ms_per_sample']:.1f}",
        "first call, s": lambda line: _number(line["first_seconds"], 3),
        "run": lambda line: line["run"],
    }
    return _table(columns, lines)


def _scaling(lines: Sequence[Line]) -> str:
    """Weak scaling: a prompt for each process, so that perfect scaling keeps the seconds of the fewest processes."""
    ours = [line for line in lines if line["way"] == "ours"]
    if all(line["world"] == 1 for line in ours):
        return ""
    keys = ("recipe", "tune", "name")
    fewest: dict[tuple[str, ...], Line] = {}
    for line in sorted(ours, key=lambda line: -line["world"]):
        fewest[tuple(line[key] for key in keys)] = line

    def share(line: Line) -> str:
        first = fewest[tuple(line[key] for key in keys)]
        return f"{_percent(first['seconds'] / line['seconds'])} of {first['world']}"

    columns: Columns = {
        "recipe": lambda line: line["recipe"],
        "trained": lambda line: line["tune"],
        "what": lambda line: line["name"],
        "processes": lambda line: line["world"],
        "seconds": lambda line: f"{line['seconds']:.2f}",
        "by rank": lambda line: ", ".join(f"{seconds:.2f}" for seconds in line.get("seconds_by_rank", [])) or "-",
        "of perfect, from the fewest processes": share,
        "run": lambda line: line["run"],
    }
    return _table(columns, sorted(ours, key=lambda line: (*(line[key] for key in keys), line["world"])))


def _predicted(lines: Sequence[Line]) -> str:
    columns: Columns = {
        "recipe": lambda line: line["recipe"],
        "trained": lambda line: line["tune"],
        "what": lambda line: line["name"],
        "predicted, s": lambda line: f"{line['predicted']['seconds']:.2f}",
        "measured, s": lambda line: f"{line['seconds']:.2f}",
        "off by": _off_by,
        "predicted, GB": lambda line: _number(line["predicted"]["memory_gb"], 3),
        "measured, GB": lambda line: _number(line["peak_memory_gb"], 3),
        "run": lambda line: line["run"],
    }
    return _table(columns, [line for line in lines if line.get("predicted")])


def _provenance(runs: Sequence[Line]) -> str:
    columns: Columns = {
        "run": lambda run: run["number"],
        "command": lambda run: f"`{run['command']}`",
        "commit": lambda run: run["commit"],
        "device": lambda run: f"{run['processes']} x {run['device']}",
        "peak, TFLOP/s": lambda run: f"{run['matmul_tflops']:.1f}",
        "versions": lambda run: ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version),
        "date": lambda run: run["date"],
    }
    return _table(columns, [run | {"number": number} for number, run in enumerate(runs, 1)])


# ---- figures


def _figure(lines: Sequence[Line], page: Path, kind: str) -> str:
    """The Markdown of a figure, drawn beside the page."""
    if not lines:
        return ""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.6 + 0.45 * len(lines) if kind == "phases" else 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw: Callable[..., None] = _bars if kind == "phases" else _curves
    draw(axes, lines)
    path = page.with_name(f"{page.stem}_{kind}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=140)
    return f"![{kind}]({path.name})"


def _bars(axes: Any, lines: Sequence[Line]) -> None:
    labels = [f"{line['recipe']}\n{_label(line)}" for line in lines]
    left = [0.0] * len(lines)
    for phase, colour in PHASES.items():
        widths = [line["phases"].get(phase, 0.0) for line in lines]
        if any(widths):
            axes.barh(range(len(lines)), widths, left=left, color=colour, label=phase)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(lines)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of an iteration, one prompt a process")
    axes.figure.legend(fontsize=7, ncols=5, loc="outside lower center")


def _curves(axes: Any, lines: Sequence[Line]) -> None:
    for name in dict.fromkeys((line["name"], line["tune"], line["run"]) for line in lines):
        of_it = [line for line in lines if (line["name"], line["tune"], line["run"]) == name]
        axes.plot(
            [x["batch"] for x in of_it], [x["ms_per_sample"] for x in of_it], "o-", label=f"{name[0]} ({name[2]})"
        )
    axes.set_xlabel("batch")
    axes.set_ylabel("ms a sample")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)


def _label(line: Line) -> str:
    return f"{line['name']}, {line['tune']} (run {line['run']})"
