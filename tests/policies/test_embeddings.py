"""The embedding cache: hit, miss, corruption, eviction, and what the policy does with each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.errors import UserError
from flowrl.policies.embeddings import EmbeddingCache, checksum
from flowrl.policies.flux import Flux, FluxPolicy
from flowrl.types import Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("a cat", 0), Prompt("two red dogs", 1), Prompt("a cat", 2)]


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache", limit_bytes=10**6)


def entry(value: float, size: int = 64) -> dict[str, torch.Tensor]:
    return {"text": torch.full((size, 4), value), "pooled": torch.full((3,), value, dtype=torch.bfloat16)}


def test_what_is_put_comes_back(store: EmbeddingCache) -> None:
    key = store.key(text="a", tokens=3)
    assert store.get(key) is None
    assert key not in store
    store.put(key, entry(1.5))
    assert key in store
    found = store.get(key)
    assert found is not None
    assert checksum(found) == checksum(entry(1.5))
    assert [path.suffix for path in store.folder.rglob("*") if path.is_file()] == [".safetensors"]


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 2) | st.text(max_size=2), min_size=1))
def test_a_key_depends_on_every_part_and_not_on_their_order(parts: dict[str, int | str]) -> None:
    reordered = dict(reversed(parts.items()))
    assert EmbeddingCache.key(**parts) == EmbeddingCache.key(**reordered)
    name = next(iter(parts))
    assert EmbeddingCache.key(**parts) != EmbeddingCache.key(**{**parts, name: f"{parts[name]}x"})


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_entry_is_a_miss(store: EmbeddingCache, damage: str) -> None:
    key = store.key(text="a")
    store.put(key, entry(1.0))
    path = store.path(key)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    path.write_bytes({"truncate": content[: len(content) // 2], "flip": content, "empty": b""}[damage])
    assert store.get(key) is None


def test_the_least_recently_used_entries_are_evicted(store: EmbeddingCache) -> None:
    keys = [store.key(text=text) for text in "abcd"]
    for age, key in enumerate(keys):
        store.put(key, entry(1.0))
        os.utime(store.path(key), (1000 + age, 1000 + age))
    size = store.path(keys[0]).stat().st_size
    assert store.touch(keys[0])  # the oldest is used again
    assert store.evict(2 * size) == 2
    assert [key in store for key in keys] == [True, False, False, True]
    assert not store.touch(keys[1])


def test_room_is_made_before_writing_and_a_run_too_large_is_refused(tmp_path: Path) -> None:
    store = EmbeddingCache(tmp_path, limit_bytes=3000)
    store.put(store.key(text="a"), entry(1.0))
    store.reserve(2900)
    assert store.key(text="a") not in store
    with pytest.raises(UserError, match=r"model\.cache_limit is 3 kB"):
        store.reserve(2000, in_use_bytes=2000)
    with pytest.raises(UserError, match=r"[GM]B free; set model\.cache_dir"):
        EmbeddingCache(tmp_path, limit_bytes=10**18).reserve(10**17)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"set model\.cache_dir"):
        EmbeddingCache(tmp_path / "file", 100).put("key", entry(1.0))


def load(folder: Path, cache: str, **fields: object) -> FluxPolicy:
    return Flux.model_validate({"source": str(folder), "cache_dir": cache, **fields}).load(CPU)


def test_the_text_encoders_are_loaded_only_for_what_is_missing(
    folder: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import FluxPipeline

    said: list[str] = []
    first = load(folder, cache)
    first.cache_prompts(PROMPTS, say=said.append)
    expected = first.encode(PROMPTS)
    assert said[0].startswith("encoding 2 of 2 prompts: 3.2 kB in ")
    assert torch.equal(expected.tensors["text"][0], expected.tensors["text"][2])

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the text encoders were loaded")

    monkeypatch.setattr(FluxPipeline, "from_pretrained", refuse)
    second = load(folder, cache)
    second.cache_prompts(PROMPTS, say=said.append)
    assert len(said) == 1
    assert torch.equal(second.encode(PROMPTS).tensors["text"], expected.tensors["text"])
    with pytest.raises(AssertionError):
        second.encode([Prompt("new", 0)])
    with pytest.raises(AssertionError):
        load(folder, cache, text_tokens=8).encode(PROMPTS)  # other tokens, other embeddings


def test_a_damaged_embedding_is_recomputed(folder: Path, cache: str) -> None:
    policy = load(folder, cache)
    expected = policy.encode(PROMPTS).tensors["text"]
    for path in Path(cache).rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])
    assert torch.equal(policy.encode(PROMPTS).tensors["text"], expected)
    assert all(policy.cache.get(path.stem) for path in Path(cache).rglob("*.safetensors"))


def test_the_size_said_beforehand_is_the_size_on_disk(folder: Path, cache: str) -> None:
    policy = load(folder, cache)
    policy.cache_prompts(PROMPTS, say=lambda _: None)
    sizes = [path.stat().st_size for path in Path(cache).rglob("*.safetensors")]
    assert len(sizes) == 2
    assert all(0 < size - policy.shape.embedding_bytes(4) < 400 for size in sizes)  # the header


def test_prompts_that_are_cut_are_counted(folder: Path, cache: str, caplog: pytest.LogCaptureFixture) -> None:
    load(folder, cache).cache_prompts([*PROMPTS, Prompt("a very long prompt indeed", 3)], say=lambda _: None)
    assert caplog.messages == ["1 of 3 prompts are longer than 16 T5 tokens; their ends are cut"]
