"""Prompt embeddings on disk: one safetensors file per prompt, named by what determines its content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from flowrl.errors import UserError

GB = 10**9


class EmbeddingCache:
    """name -> tensors, by key. Writes are atomic, reads are verified, the least recently used entries go first.

    Several processes may share the folder: an entry that another one evicts or rewrites is a miss or a hit, no error.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    @staticmethod
    def key(**parts: object) -> str:
        """The content hash of everything that determines an embedding.

        >>> EmbeddingCache.key(model="a", text="x") == EmbeddingCache.key(text="x", model="a")
        True
        """
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=20).hexdigest()

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry, or None where it is absent or its content is not what was written."""
        from safetensors import SafetensorError, safe_open

        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                expected = (file.metadata() or {}).get("checksum")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            os.utime(path)
        except (OSError, SafetensorError):
            return None
        return tensors if checksum(tensors) == expected else None

    def touch(self, key: str) -> bool:
        """Whether the entry exists; if so it counts as used now."""
        with suppress(OSError):
            os.utime(self.path(key))
            return True
        return False

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes an entry under a temporary name, then renames it."""
        from safetensors.torch import save

        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = save(held, metadata={"checksum": checksum(held)})
        path = self.path(key)
        temporary = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise UserError(
                f"cannot write the embedding cache in {self.folder}: {error}; set model.cache_dir"
            ) from error

    def reserve(self, num_bytes: int, in_use_bytes: int = 0) -> None:
        """Evicts the oldest entries until ``num_bytes`` fit below the limit.

        ``in_use_bytes``: what the same run already has here. Raises UserError where the run's embeddings exceed the
        limit or the disk.
        """
        if num_bytes + in_use_bytes > self.limit_bytes:
            raise UserError(
                f"the run's prompt embeddings take {readable(num_bytes + in_use_bytes)}, model.cache_limit is "
                f"{readable(self.limit_bytes)}; raise it, or use fewer prompts"
            )
        self.evict(self.limit_bytes - num_bytes)
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        if num_bytes > free:
            raise UserError(
                f"the run's prompt embeddings take {readable(num_bytes)}, {existing} has {readable(free)} free; "
                "set model.cache_dir to a larger disk"
            )

    def evict(self, limit_bytes: int) -> int:
        """Deletes the least recently used entries until at most ``limit_bytes`` are left; returns how many went."""
        entries = []
        for path in self.folder.glob("*/*.safetensors"):
            with suppress(OSError):  # another process evicted it
                stat = path.stat()
                entries.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in entries)
        evicted = 0
        for _, size, path in sorted(entries):
            if total <= limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
            evicted += 1
        return evicted


def readable(num_bytes: float) -> str:
    """A size for people, in decimal units.

    >>> readable(4_195_840)
    '4.2 MB'
    """
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB" if num_bytes < 1000 else f"{num_bytes:.0f} GB"


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and bytes."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        hasher.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
