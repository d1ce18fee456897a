"""HTML from Python: every text is escaped unless it was made here, so nothing has to be remembered."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from flowrl.escape import one_line

_VOID = frozenset({"img", "input", "meta", "link", "br"})
_INLINE = re.compile(
    r"\\(?P<literal>[!-/:-@\[-`{-~])|(?P<amp>&amp;)"
    r"|`(?P<code>[^`]+)`|\*\*(?P<strong>[^*\\]+)\*\*|\*(?P<em>[^*\\]+)\*"
    r"|(?<!!)\[(?P<text>[^\[\]\\]+)\]\((?P<target>(?:https?://|#)[^\s()]+|[\w.-]+)\)"
)


class Html(str):
    """Markup that is safe to put into a page."""

    __slots__ = ()


Child = str | None | Iterable["Child"]
"""A text, markup, nothing, or several of those."""


def el(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """An element. Attributes lose trailing underscores, ``_`` becomes ``-``; True is an attribute without a value, and
    what is None or False is left out.

    >>> el("p", "1 < 2", class_="note", hidden=True)
    '<p class="note" hidden>1 &lt; 2</p>'
    """
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    return Html(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Children after each other."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(child, quote=False))
        elif child is not None:
            parts.append(join(*child))
    return Html("".join(parts))


def said(text: str) -> Html:
    """A text from elsewhere, kept from turning the direction of what is around it."""
    return el("bdi", one_line(text))


def inline(text: str) -> Html:
    """A paragraph of Markdown: code, strong, emphasis, links and what a backslash stands before; all else is text.

    >>> inline("**so** <b> `x`")
    '<strong>so</strong> &lt;b&gt; <code>x</code>'
    """
    text = one_line(text)
    parts: list[Child] = []
    end = 0
    for found in _INLINE.finditer(text):
        parts.append(text[end : found.start()])
        end = found.end()
        if found["target"]:
            parts.append(el("a", found["text"], href=found["target"]))
        elif found["literal"]:
            parts.append(found["literal"])
        elif found["amp"]:
            parts.append("&")
        else:
            parts.append(el(str(found.lastgroup), str(found[str(found.lastgroup)])))
    return join(parts, text[end:])


def _attribute(name: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(one_line(str(value)))}"'
