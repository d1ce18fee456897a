"""Texts to token ids for open_clip models: its own byte pairs, a tokenizer of transformers, or a small vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError, in_short, listing
from flowrl.hub import BARE_HUB_ID, cached_snapshot

OWN_VOCABULARY = 49408
CONTEXT = 77

VOCABULARIES = (
    ("tokenizer.json",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
)
"""Any of these makes a tokenizer of transformers; what else it reads is in ``SETTINGS``."""
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")

KWARGS = {"clean", "strip_sep_token", "language"}
"""What a checkpoint may set of a tokenizer of transformers: open_clip hands on everything else to ``from_pretrained``,
and ``trust_remote_code`` would be among it."""
OWN_KWARGS = {"clean"}

Tokenizer = Callable[[Sequence[str]], Tensor]


def check_kwargs(text_cfg: Mapping[str, Any], where: object) -> None:
    """Raise UserError for ``tokenizer_kwargs`` that are not cleaning alone. ``where``: the file that sets them."""
    kwargs = text_cfg.get("tokenizer_kwargs") or {}
    allowed = KWARGS if text_cfg.get("hf_tokenizer_name") else OWN_KWARGS
    if not isinstance(kwargs, dict) or kwargs.keys() - allowed:
        keys = listing(kwargs.keys() - allowed) if isinstance(kwargs, dict) else repr(kwargs)
        raise UserError(
            f"{where}: text_cfg.tokenizer_kwargs sets {keys}; a checkpoint may set {listing(allowed)} alone "
            "and run no code; remove it"
        )


def needs_vocabulary(model_cfg: Mapping[str, Any]) -> bool:
    """Whether the text tower has another vocabulary than open_clip's, so that ``tokenizer.json`` must lie beside it."""
    text = model_cfg["text_cfg"]
    return text.get("vocab_size", OWN_VOCABULARY) != OWN_VOCABULARY and not text.get("hf_tokenizer_name")


def text_files(model_cfg: Mapping[str, Any], folder: Path | None, what: str) -> tuple[Path, ...]:
    """The files that the tokenizer reads: in ``folder``, beside the weights, or of the hub id that the model names.

    ``what`` begins the error. Raises UserError that names what is missing.
    """
    if needs_vocabulary(model_cfg):
        if folder is None or not (file := folder / "tokenizer.json").is_file():
            raise UserError(
                f"{what}: {folder} lacks tokenizer.json; the text tower has a vocabulary of its own; copy it there"
            )
        return (file,)
    hub_id = model_cfg["text_cfg"].get("hf_tokenizer_name")
    if not hub_id:
        return ()
    beside = () if folder is None else _tokenizer_in(folder)
    return beside or _tokenizer_in_cache(hub_id, what)


def _tokenizer_in(folder: Path) -> tuple[Path, ...]:
    """What there is of a tokenizer of transformers; nothing where it has no vocabulary."""
    found = [name for names in VOCABULARIES for name in names if all((folder / other).is_file() for other in names)]
    return tuple(folder / name for name in (*found, *SETTINGS) if (folder / name).is_file()) if found else ()


def _tokenizer_in_cache(hub_id: str, what: str) -> tuple[Path, ...]:
    if not BARE_HUB_ID.fullmatch(hub_id):
        raise UserError(f"{what}: text_cfg.hf_tokenizer_name {hub_id!r} is no hub id, and no tokenizer lies beside it")
    for names in VOCABULARIES:
        if files := _tokenizer_in(cached_snapshot(hub_id, names[0])):
            return files
    choices = listing(" with ".join(names) for names in VOCABULARIES)
    raise UserError(
        f"{what}: {hub_id}, its tokenizer, lacks all of {choices}; fetch them with\n"
        f'  hf download {hub_id} --include "*.json" --include "*.model" --include "*.txt"'
    )


def tokenizer(model_cfg: Mapping[str, Any], files: Sequence[Path]) -> Tokenizer:
    """Texts to ids [B, context], int64. What exceeds the context is cut; the last id stays the end of the text.

    ``files``: those of :func:`text_files`. No code of theirs is run. Raises UserError where they are no tokenizer.
    """
    text = model_cfg["text_cfg"]
    if needs_vocabulary(model_cfg):
        return small_vocabulary(files[0], text)
    import open_clip

    options = {"context_length": text.get("context_length", CONTEXT), **(text.get("tokenizer_kwargs") or {})}
    if not text.get("hf_tokenizer_name"):
        own = open_clip.SimpleTokenizer(**options)
        return lambda texts: own(list(texts))
    from open_clip.tokenizer import HFTokenizer

    folder = files[0].parent
    safe = {"trust_remote_code": False, "local_files_only": True}
    try:
        theirs = HFTokenizer(str(folder), tokenizer_mode=text.get("tokenizer_mode"), **options, **safe)
    except Exception as error:  # tokenizers, sentencepiece and transformers each have their own
        raise UserError(f"{folder} holds no tokenizer that runs without code of its own: {in_short(error)}") from error
    return lambda texts: theirs(list(texts))


def small_vocabulary(file: Path, text_cfg: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer file whose post-processor marks beginning and end. Padding is 0, as in open_clip's own."""
    from tokenizers import Tokenizer as FromFile

    encoder = FromFile.from_file(str(file))
    encoder.no_truncation()
    encoder.no_padding()
    context = text_cfg.get("context_length", CONTEXT)
    if encoder.get_vocab_size() != text_cfg["vocab_size"]:
        raise UserError(
            f"{file} has {encoder.get_vocab_size()} entries, the text tower beside it {text_cfg['vocab_size']}"
        )

    def encode(texts: Sequence[str]) -> Tensor:
        ids = torch.zeros(len(texts), context, dtype=torch.long)
        for row, found in zip(ids, encoder.encode_batch(list(texts)), strict=True):
            kept = found.ids if len(found.ids) <= context else [*found.ids[: context - 1], found.ids[-1]]
            row[: len(kept)] = torch.tensor(kept)
        return ids

    return encode
