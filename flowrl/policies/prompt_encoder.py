"""Embeddings of prompts, from the cache where it has them; the text encoders are loaded for what it lacks alone."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.policies.embeddings import EmbeddingCache, readable
from flowrl.policies.pipeline_folder import digest
from flowrl.policies.quiet import quietly
from flowrl.types import Cond

if TYPE_CHECKING:
    from flowrl.policies.diffusers_policy import DiffusersConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptEncoder:
    """The text encoders of the pipeline in ``folder`` behind a cache. ``num_tokens``: of T5; ``entry_bytes``: what one
    prompt's embedding takes; ``dtype``: of the encoders and of what they answer."""

    config: DiffusersConfig
    folder: Path
    num_tokens: int
    entry_bytes: int
    dtype: torch.dtype
    device: torch.device
    cache: EmbeddingCache

    def encode(self, texts: Sequence[str]) -> Cond:
        """``text`` [P, tokens, d] and ``pooled`` [P, d'] of the texts, on the device."""
        entries = {text: self.cache.get(self._key(text)) for text in texts}
        missing = [text for text, entry in entries.items() if entry is None]
        if missing:
            missing += [t for t in self.config.always_encoded if t not in missing and self._key(t) not in self.cache]
            self.cache.reserve(len(missing) * self.entry_bytes)
            entries |= dict(self._encode_and_store(missing))
        rows = [entry for text in texts if (entry := entries[text]) is not None]
        return Cond({name: torch.stack([row[name] for row in rows]).to(self.device) for name in ("text", "pooled")})

    def fill_cache(self, texts: Sequence[str], say: Callable[[str], None]) -> None:
        """Encodes what the cache lacks of the texts, after saying how large that is.

        The text encoders leave the device afterwards.
        """
        texts = list(dict.fromkeys([*self.config.always_encoded, *texts]))
        missing = [text for text in texts if not self.cache.touch(self._key(text))]
        if not missing:
            return
        size = len(missing) * self.entry_bytes
        say(f"encoding {len(missing)} of {len(texts)} prompts: {readable(size)} in {self.cache.folder}")
        self.cache.reserve(size, in_use_bytes=(len(texts) - len(missing)) * self.entry_bytes)
        for _ in self._encode_and_store(missing):
            pass  # kept on disk alone: a run's embeddings may exceed the memory

    def _encode_and_store(self, texts: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One prompt at a time, so that an embedding never depends on which others were missing with it."""
        num_cut = 0
        with quietly():
            pipe = self.config.pipeline_class.from_pretrained(
                self.folder, transformer=None, vae=None, torch_dtype=self.dtype, local_files_only=True
            ).to(self.device)
        t5_tokenizer = getattr(pipe, self.config.t5_tokenizer)
        for text in texts:
            with quietly(), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                num_cut += len(t5_tokenizer(text).input_ids) > self.num_tokens
                embeds, pooled = self.config.encode_text(pipe, text, self.num_tokens)
            entry = {"text": embeds[0].cpu(), "pooled": pooled[0].cpu()}
            self.cache.put(self._key(text), entry)
            yield text, entry
        if num_cut:
            log.warning(
                "%d of %d prompts are longer than %d T5 tokens; their ends are cut",
                num_cut,
                len(texts),
                self.num_tokens,
            )
        del pipe, t5_tokenizer
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _key(self, text: str) -> str:
        return EmbeddingCache.key(model=self._text_digest, dtype=str(self.dtype), tokens=self.num_tokens, text=text)

    @cached_property
    def _text_digest(self) -> str:
        return digest(self.folder, self.config.text_components)
