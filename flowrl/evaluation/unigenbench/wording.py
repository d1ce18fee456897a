"""How a judge is asked: wording of our own, or the official one read out of a checkout of the benchmark as text."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from flowrl.errors import UserError, did_you_mean, listing
from flowrl.evaluation.unigenbench.benchmark import BenchPrompt
from flowrl.evaluation.unigenbench.dimensions import Language, by_name

OFFICIAL_FILE = "eval_common.py"
FIELDS = ("prompt", "testpoint", "explanation", "test_explanation")
"""What the official template leaves open."""

_EN = """\
You see one picture. It was generated from a prompt:

Prompt: "{prompt}"

Decide for each of these {count} testpoints whether the picture fulfils it:

{testpoints}

What the names of the testpoints mean:

{meanings}

Rules:
- Look first, then decide. Count only what can be seen in the picture; what cannot be made out is not fulfilled.
- A testpoint is fulfilled (1) where everything that its description asks for is there, and otherwise not (0).
- Each testpoint is decided by itself: a flaw that concerns another one does not count.

Answer with these two lists of {count} entries each, in the order of the testpoints, and with nothing else. In the \
first, each entry says in one sentence what you see of the testpoint, in double quotes, without a double quote or a \
line break inside. In the second, each entry is 1 or 0.

<analysis>["...", "..."]</analysis>
<score>[..., ...]</score>
"""

_ZH = """\
你会看到一张根据提示词生成的图片：

提示词：「{prompt}」

请逐一判断这张图片是否满足以下 {count} 个考点：

{testpoints}

各类考点的含义：

{meanings}

规则：
- 先观察，再判断。只依据图片中看得见的内容；无法辨认的视为不满足。
- 考点描述所要求的内容全部出现记为 1，否则记为 0。
- 每个考点单独判断：与其他考点有关的缺陷不计入本考点。

只回答以下两个列表，每个列表各有 {count} 项，顺序与考点一致。第一个列表的每一项用一句话说明所看到的与该考点有关的内容，\
用双引号括起，内部不得出现双引号或换行；第二个列表的每一项为 1 或 0。

<analysis>["...", "..."]</analysis>
<score>[..., ...]</score>
"""


@dataclass(frozen=True)
class Wording:
    """What a judge is asked about a prompt's picture, as one user message. ``identity`` says whose words they are."""

    identity: Mapping[str, str]
    render: Callable[[BenchPrompt], str]


def own_wording(language: Language) -> Wording:
    """The words that flowrl brings, which ask for the same answer as the official ones."""
    template = _EN if language == "en" else _ZH
    known = by_name(language)
    meanings = {name: dimension.meaning(language) for name, dimension in known.items()}

    def render(prompt: BenchPrompt) -> str:
        points = zip(prompt.names, prompt.descriptions, strict=True)
        return template.format(
            prompt=prompt.text,
            count=len(prompt.names),
            testpoints="\n".join(f"{place}. {name}: {words}" for place, (name, words) in enumerate(points, start=1)),
            meanings="\n".join(f"- {name}: {meanings[name]}" for name in dict.fromkeys(prompt.names)),
        )

    return Wording({"name": "flowrl", "language": language, "sha256": _digest([template, meanings])}, render)


def official_wording(checkout: Path, language: Language) -> Wording:
    """The benchmark's own words, from ``eval_common.py`` in a checkout of it (or that file itself).

    The file is parsed, never run: the entry of ``LANG_CONFIGS`` for the language, whose values are literals or names
    of the module's literals, gives the template, what each testpoint means and the two headers. The template is filled
    as its authors do: its indentation stays, the testpoints are the ``repr`` of a list, and each header is followed by
    a line per testpoint between corner brackets. Raises UserError where the file or something in it is not as expected.
    """
    path = _find(checkout)
    source = path.read_text(encoding="utf-8")
    config = _config(source, language, path)
    template = _template(config, path)
    meanings: Mapping[str, str] = config["explanation_dict"]

    def render(prompt: BenchPrompt) -> str:
        missing = [name for name in prompt.names if name not in meanings]
        if missing:
            raise UserError(f"{path} does not say what {missing[0]!r} means{did_you_mean(missing[0], meanings)}")
        return template.format(
            prompt=prompt.text,
            testpoint=list(prompt.names),
            explanation=_block(config["checkpoint_header"], [(name, meanings[name]) for name in prompt.names]),
            test_explanation=_block(
                config["checkpoint_desc_header"], list(zip(prompt.names, prompt.descriptions, strict=True))
            ),
        )

    return Wording({"name": "official", "language": language, "sha256": _digest(config)}, render)


def _block(header: str, lines: list[tuple[str, str]]) -> str:
    return f"{header}:「" + "".join(f"\n{name}: {words}" for name, words in lines) + "\n」"


def _find(checkout: Path) -> Path:
    if checkout.is_file():
        return checkout
    found = sorted(checkout.rglob(OFFICIAL_FILE)) if checkout.is_dir() else []
    if len(found) == 1:
        return found[0]
    what = f"holds {len(found)} of them" if checkout.is_dir() else "does not exist"
    raise UserError(f"--official-from: needs a checkout of UniGenBench with one {OFFICIAL_FILE}; {checkout} {what}")


def _config(source: str, language: Language, path: Path) -> dict[str, Any]:
    """The module's settings of a language, every name in them replaced by the literal that it stands for."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"--official-from: {path} is not Python: {error}") from error
    assigned = {
        target.id: node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    entry = _entry(_entry_of(assigned, "LANG_CONFIGS", path), language, path)
    config = {}
    for key in ("system_prompt_template", "explanation_dict", "checkpoint_header", "checkpoint_desc_header"):
        node = _entry(entry, key, path)
        node = assigned.get(node.id, node) if isinstance(node, ast.Name) else node
        try:
            config[key] = ast.literal_eval(node)
        except (ValueError, TypeError):
            raise UserError(f"--official-from: {path}: {key} of {language} is not a literal") from None
        expected = dict if key == "explanation_dict" else str
        if not isinstance(config[key], expected):
            raise UserError(f"--official-from: {path}: {key} of {language} is no {expected.__name__}")
    return config


def _entry_of(assigned: Mapping[str, ast.expr], name: str, path: Path) -> ast.expr:
    if name not in assigned:
        raise UserError(
            f"--official-from: {path} assigns no {name}; the wording is read from {OFFICIAL_FILE} as it is since the "
            "benchmark's scripts share one"
        )
    return assigned[name]


def _entry(node: ast.expr, key: str, path: Path) -> ast.expr:
    entries: dict[object, ast.expr] = {}
    if isinstance(node, ast.Dict):
        entries = {k.value: v for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)}
    if key not in entries:
        raise UserError(f"--official-from: {path}: LANG_CONFIGS has no {key!r} ({listing(entries)})")
    return entries[key]


def _template(config: Mapping[str, Any], path: Path) -> str:
    """The template, once it is sure that filling it in puts in the four texts and does nothing else."""
    template: str = config["system_prompt_template"]
    try:
        fields = [
            (name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None
        ]
    except ValueError as error:
        raise UserError(f"--official-from: {path}: the template cannot be filled in: {error}") from None
    strange = [name for name, spec, conversion in fields if name not in FIELDS or spec or conversion]
    missing = set(FIELDS) - {name for name, _, _ in fields}
    if strange or missing:
        found = listing(strange or missing)
        verb = "has fields that nothing is known of" if strange else "lacks fields"
        raise UserError(f"--official-from: {path}: the template {verb}: {found} (known: {listing(FIELDS)})")
    return template


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
