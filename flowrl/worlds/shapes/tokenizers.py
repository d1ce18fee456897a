"""Word-level CLIP and T5 tokenizers over a small vocabulary; both are the stock classes that FluxPipeline loads.

Every word of the vocabulary is one token in both. Text outside it is spelled letter by letter, never dropped.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

SYMBOLS = string.ascii_letters + string.digits + string.punctuation
BOS, EOS, END = "<|startoftext|>", "<|endoftext|>", "</w>"


def t5_tokenizer(words: Sequence[str], max_length: int) -> Any:
    """A ``T5Tokenizer`` whose pieces are the words, as they stand at the start of a word, and single characters.

    >>> tokenizer = t5_tokenizer(["a", "red", "circle"], 32)
    >>> tokenizer.convert_ids_to_tokens(tokenizer('a red circle, "A"').input_ids)
    ['▁a', '▁red', '▁circle', ',', '▁"', 'A', '"', '</s>']
    """
    from transformers import T5Tokenizer

    pieces = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -4.0}
    pieces |= {f"▁{symbol}": -3.0 for symbol in SYMBOLS} | dict.fromkeys(SYMBOLS, -3.0)
    pieces |= {f"▁{word}": -1.0 for word in words}
    return T5Tokenizer(vocab=list(pieces.items()), extra_ids=0, model_max_length=max_length)


def clip_tokenizer(words: Sequence[str], max_length: int) -> Any:
    """A ``CLIPTokenizer`` (lower case) whose byte-pair merges build each of the words."""
    from transformers import CLIPTokenizer

    merges = _merges(sorted({word.lower() for word in words}))
    characters = sorted(set(SYMBOLS.lower()))
    tokens = [BOS, EOS, *characters, *(character + END for character in characters), *map("".join, merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges learnt until each word is one token; replaying them, as encoding does, joins it again.

    >>> _merges(["an", "ant"])
    [('a', 'n'), ('a', 'n</w>'), ('an', 't</w>')]
    """
    split = [[*word[:-1], word[-1] + END] for word in words]
    merges = []
    while pairs := Counter(pair for parts in split for pair in pairwise(parts)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_join(parts, best) for parts in split]
    return merges


def _join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
