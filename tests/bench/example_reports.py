"""Reports as the bench writes them, of made-up numbers in plausible shapes, and one full of hostile texts."""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

from flowrl.bench.report import (
    Budget,
    Cell,
    Claim,
    Column,
    Comparison,
    Figure,
    Gallery,
    Line,
    Panel,
    Picture,
    Report,
    Row,
    RunRecord,
    Table,
    Text,
)

METHODS = ("Base model", "Flow-GRPO", "DanceGRPO", "MixGRPO", "MixGRPO-Flash", "G2RPO w/o MGAI", "G2RPO")
LEARNED = METHODS[1:]
REWARD_SETS = ("Trained on HPS", "Trained on HPS & CLIP")
METRICS = {
    "hps": ("HPS", 0.305, 0.388),
    "clip": ("CLIP", 0.388, 0.406),
    "pickscore": ("PickScore", 0.226, 0.235),
    "image_reward": ("ImageReward", 1.040, 1.483),
    "unified_reward": ("UnifiedReward", 3.621, 3.783),
    "gold": ("Gold", 0.412, 0.683),
}
COLUMNS = tuple(Column(key=key, title=title, better="higher") for key, (title, _, _) in METRICS.items())
SEEDS = range(5)
HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"'><svg onload=alert(1)>",
    "a | b \\| c \\",
    "100 % of $x_1$ & #2 ^ ~ {curly} \\input{/etc/passwd}",
    '=HYPERLINK("http://evil.invalid";"click")',
    "@SUM(A1:A9)",
    "word" * 120,
    "שלום \u202eדג <b>",
    "[click](javascript:alert(1)) ![x](http://evil.invalid/x.png)",
    "`code` **bold** _line_ ~~gone~~\n# heading\n- item",
    "*starred* 一二三 é ß Ω 🙂",
    "]]></style></script><!--",
)


def key_of(reward_set: str, method: str, seed: int) -> str:
    return f"{random.Random(reward_set + method).getrandbits(40):010x}-s{seed}"


def run_records() -> dict[str, RunRecord]:
    found = {}
    for reward_set in REWARD_SETS:
        rewards = "hps" if reward_set == REWARD_SETS[0] else "hps_clip"
        for method in LEARNED:
            recipe = method.lower().replace(" w/o ", "_wo_").replace("-", "_")
            for seed in SEEDS:
                key = key_of(reward_set, method, seed)
                failed = method == "MixGRPO-Flash" and seed == 4 and rewards == "hps"
                found[key] = RunRecord(
                    key=key,
                    title=f"{method}, {reward_set.lower()}",
                    recipe=key.partition("-")[0] * 2,
                    seed=seed,
                    command=f"flowrl train {recipe} --model shapes --rewards {rewards} run.seed={seed}",
                    device="NVIDIA H200",
                    seconds=412.5 + 10 * seed,
                    status="failed" if failed else "done",
                    log="step 18\nRuntimeError: the loss is not finite at iteration 18" if failed else None,
                )
    return found


def main_report(budget: Budget = "full", missing: tuple[str, ...] = ()) -> Report:
    draw = random.Random(1)
    rows = []
    for reward_set in REWARD_SETS:
        for place, method in enumerate(METHODS):
            keys = tuple(key_of(reward_set, method, seed) for seed in SEEDS) if method != "Base model" else ()
            if method == "MixGRPO-Flash" and reward_set == REWARD_SETS[0]:
                failed = "RuntimeError: the loss is not finite at iteration 18 (runs/bench/main-full/flash/log.txt)"
                cells = {key: Cell(note="one of 5 seeds failed" if key == "hps" else None) for key in METRICS}
                rows.append(Row(title=method, group=reward_set, cells=cells, failed=failed))
                continue
            cells = {}
            for metric, (_, low, high) in METRICS.items():
                value = low + (high - low) * place / 6 + draw.gauss(0, 0.05) * (high - low)
                half = 0.04 * (high - low)
                paper = None if metric == "gold" or "Flash" in method else round(low + (high - low) * place / 6, 3)
                cells[metric] = Cell(value=value, low=value - half, high=value + half, paper=paper, runs=keys)
            rows.append(Row(title=method, group=reward_set, cells=cells))
    table = Table(
        name="main",
        title="Table 1: methods by reward set",
        columns=COLUMNS,
        rows=tuple(rows),
        caption="Means over 5 seeds and 400 held-out prompts at equal forwards; 95 % intervals by bootstrap over both.",
    )
    findings = Text(
        name="findings",
        title="What holds",
        paragraphs=(
            "At equal forwards, **G2RPO** scores highest on five of six metrics. The difference to *MixGRPO* "
            "on gold is 0.031 [0.012, 0.050]; see `main.csv`.",
        ),
        claims=claims(),
    )
    return Report(
        name="main",
        title="Main comparison",
        model="shapes",
        budget=budget,
        missing=missing,
        blocks=(findings, table),
        runs=run_records(),
        provenance=provenance("main", budget),
    )


def claims() -> tuple[Claim, ...]:
    return (
        Claim(
            claim="Singular stochastic sampling beats noise at every step",
            source="Table 1, w/o MGAI against DanceGRPO",
            measured="HPS +0.021 [+0.014, +0.029] at equal forwards, paired by seed and prompt",
            reproduced=True,
        ),
        Claim(
            claim="Granularities {1, 2, 3} beat {1}",
            source="Table 2",
            measured="gold +0.004 [-0.006, +0.013] at equal forwards",
            reproduced=None,
        ),
        Claim(
            claim="G2RPO costs little more than its singular version",
            source="Section 4.3",
            measured="2.1 times the forwards per iteration, 1.8 times the seconds",
            reproduced=False,
        ),
    )


def provenance(name: str, budget: str) -> dict[str, object]:
    return {
        "command": f"flowrl bench --table {name} --budget {budget} --seeds 5",
        "commit": "371a6e1c0ffee",
        "numerics": 3,
        "device": "NVIDIA H200",
        "date": "2026-11-25",
        "versions": {"flowrl": "0.5.0", "torch": "2.14.0"},
    }


def curves_report() -> Report:
    panels = []
    for title, x, scale, log in (
        ("Equal iterations", "iteration", 1, False),
        ("Equal forwards", "forwards per prompt", 220, False),
        ("Equal time", "GPU seconds", 3.4, True),
    ):
        lines = []
        for place, method in enumerate(LEARNED):
            steps = range(0, 61, 2)
            mean = [0.412 + (0.12 + 0.035 * place) * (1 - math.exp(-i / (30 - 2 * place))) for i in steps]
            half = [0.004 + 0.0004 * i for i in steps]
            lines.append(
                Line(
                    title=method,
                    x=tuple(scale * (1 + 0.2 * place) * i for i in steps),
                    mean=tuple(mean),
                    low=tuple(m - h for m, h in zip(mean, half, strict=True)),
                    high=tuple(m + h for m, h in zip(mean, half, strict=True)),
                    runs=tuple(key_of(REWARD_SETS[0], method, seed) for seed in SEEDS),
                    dashed=method == "Flow-GRPO",
                )
            )
        panels.append(Panel(title=title, x=x, y="gold, held out", lines=tuple(lines), log_x=log))
    scatter = Panel(
        title="Reward and gold",
        x="training reward (HPS)",
        y="gold, held out",
        lines=tuple(
            Line(
                title=method,
                x=tuple(0.31 + 0.01 * place + 0.002 * seed for seed in SEEDS),
                mean=tuple(0.45 + 0.03 * place - 0.004 * seed for seed in SEEDS),
                low=tuple(0.44 + 0.03 * place - 0.004 * seed for seed in SEEDS),
                high=tuple(0.46 + 0.03 * place - 0.004 * seed for seed in SEEDS),
            )
            for place, method in enumerate(LEARNED)
        ),
        marks="points",
    )
    caption = "Mean over 5 seeds; bands are 95 % intervals over seeds."
    return Report(
        name="curves",
        title="Learning curves",
        model="shapes",
        budget="full",
        blocks=(
            Figure(
                name="curves",
                title="Gold against iterations, forwards and time",
                panels=tuple(panels),
                caption=caption,
                description="Three panels of rising curves; G2RPO ends highest in each, Flow-GRPO lowest.",
            ),
            Figure(
                name="curves-scatter",
                title="Where each seed ends",
                panels=(scatter,),
                caption="One point per seed.",
                description="A scatter of gold against training reward; methods lie in order along a line.",
            ),
        ),
        runs=run_records(),
        provenance=provenance("curves", "full"),
    )


def settings_report() -> Report:
    """A table of words."""
    columns = tuple(Column(key=key, title=key) for key in ("schedule", "continuation", "loss", "prompts"))
    rows = []
    for method, schedule in zip(LEARNED, ("all steps",) * 2 + ("window of 4",) * 2 + ("one step",) * 2, strict=True):
        continuation = "strides 1, 2, 3 on the published grid" if method == "G2RPO" else "stride 1"
        words = {"schedule": schedule, "continuation": continuation, "loss": "clip 1e-4"}
        cells = {**{key: Cell(value=word) for key, word in words.items()}, "prompts": Cell(value=8.0)}
        rows.append(Row(title=method, cells=cells))
    columns = (*columns[:3], columns[3].model_copy(update={"digits": 0}))
    table = Table(name="settings", title="Table 4: settings", columns=columns, rows=tuple(rows))
    provenance_of = provenance("settings", "full")
    return Report(
        name="settings", title="Settings", model="shapes", budget="full", blocks=(table,), provenance=provenance_of
    )


def gallery_report(folder: Path) -> Report:
    """Its pictures are drawn into ``folder``/pictures."""
    prompts = (
        ("best", "a large red circle to the left of two small blue squares, on a yellow ground"),
        ("median", "three green stars above a purple triangle"),
        ("worst", "the word HELLO below an orange hexagon"),
    )
    methods = ("Base model", "DanceGRPO", "MixGRPO", "G2RPO w/o MGAI", "G2RPO")
    comparisons = []
    for rule, prompt in prompts:
        pictures = []
        for place, method in enumerate(methods):
            file = f"pictures/{rule}-{place}.png"
            draw_picture(folder / file, random.Random(rule), place)
            pictures.append(Picture(file=file, label=method, score=0.35 + 0.12 * place))
        chosen = f"{rule} gold difference of G2RPO to the base model, seed 0"
        comparisons.append(Comparison(prompt=prompt, chosen=chosen, pictures=tuple(pictures)))
    return Report(
        name="gallery",
        title="Gallery",
        model="shapes",
        budget="full",
        blocks=(
            Gallery(
                name="gallery",
                title="Same prompt, same seed",
                comparisons=tuple(comparisons),
                caption="The number is the gold score. Prompts are chosen by rule, never by hand.",
            ),
        ),
        provenance=provenance("gallery", "full"),
    )


def draw_picture(path: Path, draw: random.Random, place: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (64, 64), (238, 214, 120))
    pen = ImageDraw.Draw(image)
    for colour in ("#c0392b", "#2457a6", "#1e8449")[: 1 + place // 2]:
        x, y = draw.randint(4, 40) + place, draw.randint(4, 40)
        pen.ellipse((x, y, x + 18, y + 18), fill=colour)
    image.save(path)


def hostile_report(folder: Path) -> Report:
    """Every text that comes from outside is one that wants to be more than text."""
    draw_picture(folder / "pictures/hostile.png", random.Random(0), 4)
    run = RunRecord(
        key=HOSTILE[0],
        title=HOSTILE[1],
        recipe=HOSTILE[2],
        seed=0,
        command=HOSTILE[10],
        device=HOSTILE[8],
        status="failed",
        log=HOSTILE[0] + "\n" + HOSTILE[12],
    )
    columns = tuple(Column(key=f"c{i}", title=text, better="higher", unit=text) for i, text in enumerate(HOSTILE[:3]))
    rows = []
    for i, text in enumerate(HOSTILE):
        cells = {
            "c0": Cell(value=text, runs=(run.key,), note=text),
            "c1": Cell(value=float(i), low=-1.0, high=2.0, paper=1.0, runs=(run.key,)),
        }
        rows.append(Row(title=text, group=HOSTILE[i % 2], cells=cells, failed=text if i % 3 == 0 else None))
    line = Line(title=HOSTILE[4], x=(0.0, 1.0), mean=(1.0, 2.0), runs=(run.key,))
    panels = (Panel(title=HOSTILE[0], x=HOSTILE[4], y=HOSTILE[7], lines=(line,)),)
    pictures = tuple(Picture(file="pictures/hostile.png", label=text, score=0.5) for text in HOSTILE)
    blocks = (
        Text(
            name="texts",
            title=HOSTILE[0],
            paragraphs=HOSTILE,
            claims=tuple(Claim(claim=text, source=text, measured=text, reproduced=None) for text in HOSTILE),
        ),
        Table(name="hostile", title=HOSTILE[4], columns=columns, rows=tuple(rows), caption=HOSTILE[1]),
        Figure(name="figure", title=HOSTILE[1], panels=panels, caption=HOSTILE[0], description=HOSTILE[2]),
        Gallery(
            name="pictures",
            title=HOSTILE[2],
            comparisons=tuple(Comparison(prompt=text, chosen=text, pictures=pictures) for text in HOSTILE[:2]),
            caption=HOSTILE[11],
        ),
    )
    return Report(
        name="hostile",
        title=HOSTILE[0],
        model=HOSTILE[1],
        budget="small",
        missing=(HOSTILE[0], HOSTILE[3]),
        blocks=blocks,
        runs={run.key: run},
        provenance={HOSTILE[0]: HOSTILE[1], "nested": {HOSTILE[2]: [HOSTILE[0]]}},
    )


def example_reports(folder: Path) -> list[Report]:
    return [main_report(), curves_report(), gallery_report(folder), settings_report()]
