"""Where a diffusers pipeline lives: an embedded world, a local folder, or a hub id in the local download cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from flowrl.errors import UserError, did_you_mean, listing
from flowrl.foreign_code import refuse_auto_map, refuse_foreign_components
from flowrl.hub import HUB_ID, cached_snapshot, in_worlds, read_json, siblings

COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))


def embedded_worlds() -> dict[str, Path]:
    """Name -> pipeline folder of every world that ships with the package."""
    return {name: index.parent for name, index in in_worlds("pipeline/model_index.json").items()}


def locate(source: str, components: Sequence[str] = COMPONENTS) -> Path:
    """The folder of a pipeline, every file of the given components in place.

    ``source``: the name of an embedded world, a folder, or a hub id whose files ``hf download`` has fetched; nothing is
    downloaded here. Raises UserError that names the source, the missing files and the command that fetches them, and
    where the pipeline names code of its own.
    """
    worlds = embedded_worlds()
    if source in worlds:
        return worlds[source]
    folder = Path(source).expanduser()
    if folder.is_dir():
        _require(folder, missing_files(folder, components), remedy="copy them there, or name another folder or hub id")
        return _without_code(folder, components)
    if HUB_ID.fullmatch(source):
        return _without_code(_locate_in_hub_cache(source, components), components)
    raise UserError(
        f"model.source {source!r} is neither an embedded world ({listing(worlds)}), nor a folder, nor a hub id "
        f"'owner/name'{did_you_mean(source, [*worlds, *siblings(folder)])}"
    )


def _locate_in_hub_cache(source: str, components: Sequence[str]) -> Path:
    folder = cached_snapshot(source, "model_index.json")
    everything = ["model_index.json", *(f"{component}/*" for component in components)]
    missing = missing_files(folder, components) if folder.is_dir() else everything
    patterns = " ".join(f'--include "{pattern}"' for pattern in everything)
    remedy = (
        f"fetch them with\n  hf download {source} {patterns}\n"
        f"and, if the model is gated, first accept its licence at https://huggingface.co/{source} and `hf auth login`"
    )
    _require(source, missing, remedy)
    return folder


def _without_code(folder: Path, components: Sequence[str]) -> Path:
    refuse_foreign_components(folder / "model_index.json")
    for component in components:
        for config in ("config.json", "tokenizer_config.json"):
            if (file := folder / component / config).is_file():
                refuse_auto_map(file)
    return folder


def _require(where: object, missing: Sequence[str], remedy: str) -> None:
    if missing:
        raise UserError(f"{where} is not a complete pipeline; missing: {', '.join(missing)}; {remedy}")


def missing_files(folder: Path, components: Iterable[str] = COMPONENTS) -> list[str]:
    """The files that the components need and the folder lacks, relative to it; all shards of sharded weights count."""
    missing = [] if (folder / "model_index.json").is_file() else ["model_index.json"]
    for component in components:
        if component.startswith("tokenizer"):
            found = any(all((folder / component / name).is_file() for name in names) for names in TOKENIZER_FILES)
            missing += [] if found else [f"{component}/{TOKENIZER_FILES[0][0]}"]
        elif component == "scheduler":
            missing += _absent(folder, ["scheduler/scheduler_config.json"])
        else:
            missing += _absent(folder, [f"{component}/config.json", *_weights(folder, component)])
    return missing


def _weights(folder: Path, component: str) -> list[str]:
    stem = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
    index = folder / component / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [f"{component}/{stem}.safetensors"]
    return [f"{component}/{name}" for name in sorted(set(read_json(index)["weight_map"].values()))]


def _absent(folder: Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def digest(folder: Path, components: Iterable[str] = COMPONENTS, block: int = 1 << 20) -> str:
    """A content hash of the components' files: name, size, and the first, middle and last block of each.

    Sampling keeps it instant for weights of tens of GB, whose every block changes when they are trained further.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for component in sorted(components):
        for path in sorted(p for p in (folder / component).rglob("*") if p.is_file()):
            size = path.stat().st_size
            hasher.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
            with path.open("rb") as file:
                for start in (0, max(0, size // 2 - block // 2), max(0, size - block)):
                    file.seek(start)
                    hasher.update(file.read(block))
    return hasher.hexdigest()
