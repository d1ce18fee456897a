"""The first stage: images by prompt and number, and the manifest that says what each is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from flowrl import atomic
from flowrl.errors import UserError
from flowrl.evaluation import records
from flowrl.evaluation.ranks import Ranks
from flowrl.evaluation.results import GENERATION, IMAGES, MANIFEST, PROMPTS, Generation, ImageRecord, read_prompts
from flowrl.hub import sha256
from flowrl.sampling import Sampler, image_seed, save_image
from flowrl.types import Prompt

BENCHMARK = "unigenbench"
"""A folder of images of its own, inside an evaluation that may have no others."""
Key = tuple[int, int]
"""A prompt's index, and the number j of its image."""
Batch = tuple[int, Sequence[Prompt]]
"""j, and the prompts whose image j is drawn together."""


def check_folder(folder: Path, asked: Generation, prompts: Sequence[Prompt]) -> None:
    """Raise UserError where the folder holds something else than a part of what is asked."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; name a folder")
    if not (folder / GENERATION).is_file():
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        others = [name for name in names if not name.startswith(".") and name != BENCHMARK]
        if others:
            raise UserError(f"--output {folder} is in use, and not by an evaluation ({others[0]}); name another folder")
        return
    found = Generation.load(folder / GENERATION)
    differing = _differences(found, asked) or _other_prompts(read_prompts(folder), prompts)
    if differing:
        listed = "\n  ".join(differing)
        raise UserError(
            f"--output {folder} holds images that were drawn otherwise (theirs -> yours):\n  {listed}\n"
            "name another folder, or ask for the same"
        )


def _differences(found: Generation, asked: Generation) -> list[str]:
    theirs = {"model": found.model_digest} | asdict(found.drawing)
    yours = {"model": asked.model_digest} | asdict(asked.drawing)
    differing = [f"{key}: {theirs[key]} -> {yours[key]}" for key in theirs if theirs[key] != yours[key]]
    for name in ("num_prompts", "images_per_prompt"):
        old, new = getattr(found, name), getattr(asked, name)
        differing += [f"{name}: {old} -> {new} (it may only grow)"] if new < old else []
    return differing


def _other_prompts(found: Sequence[Prompt], asked: Sequence[Prompt]) -> list[str]:
    texts = {prompt.index: prompt.text for prompt in asked}
    other = [prompt for prompt in found if prompt.text != texts.get(prompt.index)]
    return [f"prompt {prompt.index}: {prompt.text!r} -> {texts.get(prompt.index)!r}" for prompt in other[:3]]


def generate(folder: Path, asked: Generation, prompts: Sequence[Prompt], sampler: Sampler, ranks: Ranks) -> None:
    """Draw into ``folder`` what it lacks; the processes share the batches, and the first writes the manifest.

    Batches are the same however many processes there are, and a batch of which anything is missing is drawn as a
    whole, so that an image is the same in all its bytes. Raises UserError as :func:`check_folder` does.
    """
    if ranks.is_first:
        check_folder(folder, asked, prompts)
        folder.mkdir(parents=True, exist_ok=True)
        _record(folder, asked, drawn_now=False)  # first: it says that the folder is an evaluation's
        (folder / IMAGES).mkdir(exist_ok=True)
        atomic.remove_leftovers(folder / IMAGES)
        lines = ({"index": prompt.index, "prompt": prompt.text, "meta": dict(prompt.meta)} for prompt in prompts)
        records.merge(folder / PROMPTS, lines)
    ranks.wait()
    there = _there(folder)
    ranks.wait()  # all have looked before anyone writes
    batches = list(_batches(prompts, asked.images_per_prompt, sampler.batch))
    missing = [(j, chunk) for j, chunk in batches if any((prompt.index, j) not in there for prompt in chunk)]
    if there:
        ranks.say(f"{len(there)} images are there already")
    if missing and ranks.is_first:
        _record(folder, asked, drawn_now=True)
    for number, batch in enumerate(missing[ranks.rank :: ranks.world]):
        records.append(
            records.part(folder / MANIFEST, ranks.rank),
            [image.model_dump() for image in _draw(folder, asked, sampler, batch, there)],
        )
        done = min((number + 1) * ranks.world, len(missing))
        ranks.say(f"drawn: {done} of {len(missing)} batches of {sampler.batch}")
    ranks.wait()
    if ranks.is_first:
        there = _there(folder, check_files=False)
        order = [(prompt.index, j) for prompt in prompts for j in range(asked.images_per_prompt)]
        records.merge(folder / MANIFEST, [there[key].model_dump() for key in order])
    ranks.wait()


def _record(folder: Path, asked: Generation, *, drawn_now: bool) -> None:
    """Write what is asked; the program that is named is the last one that drew anything."""
    path = folder / GENERATION
    if path.is_file() and not drawn_now:
        asked = asked.model_copy(update={"provenance": Generation.load(path).provenance})
    asked.write(path)


def _there(folder: Path, *, check_files: bool = True) -> dict[Key, ImageRecord]:
    """The images that are recorded and, where checked, whose files are as they were written."""
    found = {}
    for line in records.read_all(folder / MANIFEST):
        image = ImageRecord.parse(line, folder / MANIFEST)
        found[image.key] = image
    return {key: image for key, image in found.items() if not check_files or _is_whole(folder, image)}


def _is_whole(folder: Path, image: ImageRecord) -> bool:
    path = folder / image.file
    return path.is_file() and sha256(path) == image.sha256


def _batches(prompts: Sequence[Prompt], images_per_prompt: int, size: int) -> Iterator[Batch]:
    """Image 0 of all prompts, then image 1 of all: more images of a prompt leave the first as they are."""
    for j in range(images_per_prompt):
        for start in range(0, len(prompts), size):
            yield j, prompts[start : start + size]


def _draw(
    folder: Path, asked: Generation, sampler: Sampler, batch: Batch, there: Mapping[Key, ImageRecord]
) -> Iterator[ImageRecord]:
    """Draw a batch, and write and record what is missing of it."""
    j, prompts = batch
    how = asked.drawing
    for prompt, image in zip(prompts, sampler.draw(prompts, j), strict=True):
        if (prompt.index, j) in there:
            continue
        file = f"{IMAGES}/{prompt.index}_{j}.png"
        with atomic.replacing(folder / file) as temporary:
            save_image(image, temporary)
        yield ImageRecord(
            prompt=prompt.text,
            index=prompt.index,
            j=j,
            seed=image_seed(how.seed, prompt.index, j),
            file=file,
            sha256=sha256(folder / file),
            model_digest=asked.model_digest,
            steps=how.num_steps,
            sigmas=how.sigmas,
            height=how.height,
            width=how.width,
            hybrid_steps=how.hybrid_steps,
        )
