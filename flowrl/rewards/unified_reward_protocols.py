"""The four published ways of asking UnifiedReward about one picture: what is asked, and how the answer is read.

The wording here is this project's own, in the structure and with the output format that the parsers want. The
published wording is read as text out of a checkout of the official repository, which is never run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from flowrl.errors import UserError, did_you_mean

ProtocolName = Literal["final_score_v1", "final_score_v1_5", "acs_v1_5", "acs_v2"]
Axis = Literal["alignment", "coherence", "style"]

_CAPTION = "Text Caption: ["
"""What stands before the caption in the official questions."""


class Wording(NamedTuple):
    """A question around its caption.

    >>> Wording("Caption: [", "]").about("a red circle")
    'Caption: [a red circle]'
    """

    before: str
    after: str

    def about(self, caption: str) -> str:
        """The question about a picture of this caption."""
        return f"{self.before}{caption}{self.after}"


class Protocol(NamedTuple):
    """``patterns``: part -> the expression whose first match holds its number. ``official``: the file of the official
    repository, relative to its root, that holds the wording."""

    wording: Wording
    patterns: Mapping[str, re.Pattern[str]]
    official: str

    def read(self, text: str) -> dict[str, float]:
        """The numbers of an answer, by part; a part that is not there is left out, never a 0."""
        found = {part: pattern.search(text) for part, pattern in self.patterns.items()}
        return {part: float(match.group(1)) for part, match in found.items() if match}


_FROM_CAPTION = "An image was generated from a caption. Look at the image and judge it against the caption"
_TWO_CRITERIA = f"""{_FROM_CAPTION} by two criteria:
1. Faithfulness: does it show what the caption names, with the attributes, numbers and relations that the caption gives?
2. Quality: is it sharp, rich in detail, natural in its colours, and pleasing to look at?
"""
_FINAL = "'Final Score:' and a number from 1 (worst) to 5 (best)."
_ELEMENTS = f"""First go through the elements of the caption, one per line, in the form 'element (type): value', where \
value is 1 if the image shows the element and 0 if it does not. Then write {_FINAL}"""
_THREE_AXES = """from 1 (worst) to 5 (best):
- Alignment Score: does the image contain what the caption says?
- Coherence Score: is it free of glitches, distorted objects and other things that cannot be?
- Style Score: is it beautiful, whether or not it fits the caption?
"""
_THREE_LINES = """Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z
"""
_WORD_SCORES = 'Word-wise Scores: [["word1", score1], ..., ["wordN", scoreN], ["[No_mistakes]", scoreM]]'
_WORD_BY_WORD = f"""{_FROM_CAPTION} in two steps.

1. Give every word of the caption a number that is the higher the worse the image shows that word. Close the list with \
the token [No_mistakes], whose number is the higher the surer you are that nothing is missing or wrong.

2. Rate the image {_THREE_AXES}
Answer in exactly this form:

{_WORD_SCORES}

{_THREE_LINES}"""
_AXES_ALONE = f"""{_FROM_CAPTION}. Rate it {_THREE_AXES}
Answer in exactly this form:

{_THREE_LINES}"""


def _own(task: str) -> Wording:
    return Wording(f"{task}\n\nCaption: [", "]")


_OF_AXES = {axis: re.compile(rf"{axis.capitalize()} Score \(1-5\):\s*([0-5](?:\.\d+)?)") for axis in get_args(Axis)}
PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    "final_score_v1": Protocol(
        _own(_TWO_CRITERIA + _ELEMENTS),
        {"final": re.compile(r"Final Score:\s*([0-5](?:\.\d+)?)")},
        "inference_qwen/image_generation/qwen_point_score_image_generation.py",
    ),
    "final_score_v1_5": Protocol(
        _own(f"{_TWO_CRITERIA}Write {_FINAL}"),
        {"final": re.compile(r"Final Score:\s*([1-5](?:\.\d+)?)")},
        "sglang_llava/sglang_inference.py",
    ),
    "acs_v1_5": Protocol(
        _own(_WORD_BY_WORD),
        _OF_AXES,
        "inference_qwen/image_generation/qwen_point_score_ACS_image_generation.py",
    ),
    "acs_v2": Protocol(
        _own(_AXES_ALONE),
        _OF_AXES,
        "inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py",
    ),
}


def official_wording(checkout: Path, protocol: ProtocolName) -> Wording:
    """The published question, byte for byte, out of the source text of the official repository.

    It is the f-string of the protocol's file that holds "Text Caption: [" and, as its only value, the caption. Raises
    UserError where the file is not there or does not hold exactly one such text.
    """
    path = checkout.expanduser() / PROTOCOLS[protocol].official
    what = f"reward unified_reward: official_from {checkout}"
    if not path.is_file():
        near = [str(other.relative_to(checkout.expanduser())) for other in checkout.expanduser().rglob(path.name)]
        raise UserError(
            f"{what}: no {PROTOCOLS[protocol].official}, which holds the wording of {protocol}; name a checkout of the "
            f"UnifiedReward repository{did_you_mean(PROTOCOLS[protocol].official, near)}"
        )
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{what}: {path} is not Python in UTF-8: {error}") from error
    found = {wording for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) and (wording := _wording_in(node))}
    if len(found) != 1:
        raise UserError(f"{what}: {path} holds {len(found)} texts with '{_CAPTION}' and a caption; expected one")
    return found.pop()


def _wording_in(node: ast.JoinedStr) -> Wording | None:
    """The question that an f-string spells, where it has one value and that is a caption."""
    texts, values = ["", ""], 0
    for part in node.values:
        if isinstance(part, ast.Constant):
            texts[min(values, 1)] += str(part.value)
        else:
            values += 1
    return Wording(*texts) if values == 1 and texts[0].endswith(_CAPTION) else None
