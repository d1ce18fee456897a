"""Text from elsewhere (prompts, names, messages) in the formats that the program writes: it says what it says there,
and nothing of it is taken for the format's own marks. Of HTML, the standard library's ``html.escape`` does that."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

_BIDIRECTIONAL = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F])
"""Marks that turn the direction of all that follows; what is written right to left is so without them."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "-": r"-{}",
    "*": "{*}",
    "[": r"{[}",
    "]": r"{]}",
    "\u00a0": "~",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "²": r"\textsuperscript{2}",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "Γ": r"$\Gamma$",
    "Δ": r"$\Delta$",
    "Λ": r"$\Lambda$",
    "Σ": r"$\Sigma$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "δ": r"$\delta$",
    "ε": r"$\varepsilon$",
    "η": r"$\eta$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "ρ": r"$\rho$",
    "σ": r"$\sigma$",
}
_ACCENTED = re.compile("[À-ÖØ-öø-ÿ]")
_NOT_IN_TEX_FONTS = "ÐÞðþ"


def one_line(text: str) -> str:
    """``text`` without control characters and without marks that turn what follows; white space becomes one space.

    >>> one_line("two\\n\\tlines\\x00")
    'two lines'
    """
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    return re.sub(r"[ ]+", " ", visible.translate(_BIDIRECTIONAL)).strip()


def markdown(text: str) -> str:
    r"""``text`` in a line or in a cell of a table. An underscore within a word is left, as no reader takes it for more.

    >>> markdown("mix_grpo *is* <b> | $1")
    'mix_grpo \\*is\\* \\<b> \\| \\$1'
    """
    line = re.sub(r"([\\`*<|~$])", r"\\\1", one_line(text))
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line)
    line = re.sub(r"\](?=[(\[:])", r"\]", line)  # makes a link of what is in brackets
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
    line = re.sub(r"^([#+>=-])", r"\\\1", line)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)


def markdown_image(description: str, target: str) -> str:
    """An image; ``description`` may be any text, ``target`` a path.

    >>> markdown_image("before [left]", "a b.png")
    '![before (left)](a%20b.png)'
    """
    return f"![{markdown(description.translate({ord('['): '(', ord(']'): ')'}))}]({quote(target)})"


def markdown_code(text: str) -> str:
    r"""``text`` as code in a line or in a cell of a table.

    >>> markdown_code("a | b")
    '`a \\| b`'
    """
    line = one_line(text).replace("|", r"\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def latex(text: str) -> str:
    r"""``text`` in LaTeX; a character that its fonts lack is named by its code.

    >>> latex("50 % of Λ_1")
    '50 \\% of $\\Lambda$\\_1'
    """
    return "".join(_latex(c) for c in one_line(unicodedata.normalize("NFC", text)))


def _latex(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii() or (_ACCENTED.match(character) and character not in _NOT_IN_TEX_FONTS):
        return character
    return f"{{[}}U+{ord(character):04X}{{]}}"


def spreadsheet(text: str) -> str:
    """``text`` in a field of CSV: what a spreadsheet would take for a formula begins with an apostrophe.

    >>> spreadsheet("=1+1")
    "'=1+1"
    """
    line = one_line(text)
    return f"'{line}" if line[:1] in tuple("=+-@＝＋－＠") else line
