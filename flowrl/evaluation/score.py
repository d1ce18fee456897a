"""The second stage: what each scorer says of each image, from the files of the first alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from flowrl.errors import UserError
from flowrl.evaluation import records
from flowrl.evaluation.ranks import Ranks
from flowrl.evaluation.results import (
    ImageRecord,
    Provenance,
    ScoreRecord,
    ScorerRecord,
    read_manifest,
    read_prompts,
    same,
    scores_path,
)
from flowrl.hub import sha256
from flowrl.protocols import Scorer, ScorerConfig
from flowrl.types import Prompt, Scores

CHUNK = 32
"""Images that are read and scored at once: 0.1 GB at 1024x1024."""
Key = tuple[int, int]


def score(folder: Path, metrics: Mapping[str, ScorerConfig], ranks: Ranks) -> None:
    """Score the images of ``folder`` by each metric that has not scored them yet; the processes share the images.

    What was scored before is kept as long as the scorer's identity and the image are the same. Raises UserError where
    an image is not the one that the manifest names.
    """
    images = read_manifest(folder)
    prompts = {prompt.index: prompt for prompt in read_prompts(folder)}
    for name, config in metrics.items():
        _score(folder, name, config, images, prompts, ranks)


def _score(
    folder: Path,
    name: str,
    config: ScorerConfig,
    images: Sequence[ImageRecord],
    prompts: Mapping[int, Prompt],
    ranks: Ranks,
) -> None:
    path, about = scores_path(folder, name), scores_path(folder, name).with_suffix(".json")
    if ranks.is_first:
        path.parent.mkdir(exist_ok=True)
        _forget_others(path, about, name, config)
    ranks.wait()
    there = known_scores(path, images)
    ranks.wait()  # all have looked before anyone writes
    missing = [image for image in images if image.key not in there]
    if missing:
        scorer = config.keeping_answers(path.with_suffix(".answers.jsonl")).load(ranks.device)
        chunks = list(_chunks(images, missing, scorer))
        for number, chunk in enumerate(chunks[ranks.rank :: ranks.world]):
            lines = _judge(folder, scorer, chunk, [prompts[image.index] for image in chunk])
            records.append(records.part(path, ranks.rank), [line.model_dump() for line in lines])
            done = min((number + 1) * ranks.world, len(chunks))
            ranks.say(f"{name}: {done} of {len(chunks)} batches scored")
    else:
        ranks.say(f"{name}: all {len(images)} images are scored already")
    ranks.wait()
    if ranks.is_first:
        there = known_scores(path, images)
        records.merge(path, [there[image.key].model_dump() for image in images])
    ranks.wait()


def _forget_others(path: Path, about: Path, name: str, config: ScorerConfig) -> None:
    """Delete the scores of another scorer of that name, and note who scores now."""
    others = {other: ScorerRecord.load(other) for other in about.parent.glob("*.json")}
    known = others.get(about)
    order = known.order if known else 1 + max((other.order for other in others.values()), default=0)
    now = ScorerRecord(metric=name, identity=config.identity(), provenance=Provenance.here(), order=order)
    if known is not None and same(known.identity, now.identity):
        return
    for file in (path, *records.parts(path)):
        file.unlink(missing_ok=True)
    now.write(about)


def known_scores(path: Path, images: Sequence[ImageRecord]) -> dict[Key, ScoreRecord]:
    """The scores that are recorded of these images, as their files are now."""
    files = {image.key: image.sha256 for image in images}
    lines = (ScoreRecord.parse(line, path) for line in records.read_all(path))
    return {line.key: line for line in lines if files.get(line.key) == line.sha256}


def _chunks(
    images: Sequence[ImageRecord], missing: Sequence[ImageRecord], scorer: Scorer
) -> Iterator[Sequence[ImageRecord]]:
    """What is scored at once: missing images or, for a scorer of groups, all images of a prompt that lacks one."""
    if scorer.scope == "image":
        for start in range(0, len(missing), CHUNK):
            yield missing[start : start + CHUNK]
        return
    for index in dict.fromkeys(image.index for image in missing):
        yield [image for image in images if image.index == index]


def _judge(
    folder: Path, scorer: Scorer, images: Sequence[ImageRecord], prompts: Sequence[Prompt]
) -> Iterator[ScoreRecord]:
    from PIL import Image

    with ExitStack() as stack:
        pictures = []
        for image in images:
            path = folder / image.file
            if not path.is_file() or sha256(path) != image.sha256:
                state = "is missing" if not path.is_file() else "has changed"
                raise UserError(f"{path} {state} since it was drawn; draw it again with flowrl eval MODEL_OR_RUN")
            pictures.append(stack.enter_context(Image.open(path)))
        scores = scorer.score(pictures, prompts)
    yield from _records(images, scores)


def _records(images: Sequence[ImageRecord], scores: Scores) -> Iterator[ScoreRecord]:
    values, valid = _numbers(scores.values), scores.valid.tolist()
    parts = {name: _numbers(part) for name, part in scores.parts.items()}
    for row, image in enumerate(images):
        is_valid = bool(valid[row]) and values[row] is not None
        yield ScoreRecord(
            index=image.index,
            j=image.j,
            sha256=image.sha256,
            value=values[row] if is_valid else None,
            valid=is_valid,
            parts={name: part[row] if is_valid else None for name, part in parts.items()},
        )


def _numbers(tensor: Tensor) -> list[float | None]:
    """None for what is not finite, which JSON does not have."""
    return [value if math.isfinite(value) else None for value in tensor.detach().double().cpu().tolist()]
