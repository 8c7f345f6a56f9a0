"""Texts of people and models as HTML for the page, which is made here: no part of a text becomes an element of it.

The result is a block of HTML in one line, which Gradio's own Markdown passes through (and sanitises once more); the
page typesets the formulas that `formulas.py` has marked. A closed set of elements comes out, with `class`, `href` to
the web, `title`, `target` and `rel` as their only attributes: no style, no image, no form, for any text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune import tags
from thinktune.studio.formulas import PRIVATE, add_formulas
from thinktune.studio.translations import Words

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from markdown_it.utils import OptionsDict

_WEB = re.compile(r"(https?://|mailto:)", re.IGNORECASE)
_LONGEST = 200_000  # characters that are looked at as Markdown; longer texts are shown as they are
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"\s*<answer>(.*?)</answer>\s*\Z", re.DOTALL)


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # at the first answer: the page comes up sooner

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 100}).enable(
        ["table", "strikethrough"]
    )
    # An image would be fetched from somewhere, and tell who reads; `&lt;` is shown as it is written.
    parser.disable(["image", "entity", "html_block", "html_inline"])
    parser.validateLink = lambda url: bool(_WEB.match(url.strip()))  # type: ignore[method-assign]
    parser.add_render_rule("link_open", _open_link)
    parser.add_render_rule("fence", _fence)
    add_formulas(parser)
    return parser


def _open_link(renderer: Any, tokens: list[Token], at: int, options: OptionsDict, env: Any) -> str:
    address = escape(str(tokens[at].attrs["href"]))
    return f'<a href="{address}" title="{address}" target="_blank" rel="noopener noreferrer nofollow">'


def _fence(renderer: Any, tokens: list[Token], at: int, options: OptionsDict, env: Any) -> str:
    return f"<pre><code>{escape(tokens[at].content)}</code></pre>\n"


def rendered(text: str, *, source: bool = True) -> str:
    """Render Markdown as HTML for the page.

    Args:
        source: keep the text itself beside it, for the copy button.
    """
    return _render(text, source) if text.strip() else ""


@lru_cache(maxsize=512)  # while an answer grows, everything above it is told again
def _render(text: str, source: bool) -> str:
    clean = PRIVATE.sub("\ufffd", text)
    html = _parser().render(clean) if len(clean) <= _LONGEST else f"<p>{escape(clean)}</p>"
    kept = f'<span class="source">{escape(clean)}</span>' if source else ""
    return _in_one_line(f'<div class="written">{html}{kept}</div>')


def plain(text: str, kind: str = "said", *, source: bool = False) -> str:
    """Render a text in which nothing is Markdown.

    Args:
        kind: its class on the page.
        source: it is a message, whose copy button is to take it.
    """
    kept = f'<span class="source">{_safe(text)}</span>' if source else ""
    return _in_one_line(f'<div class="{kind}">{_safe(text)}{kept}</div>') if text.strip() else ""


def _safe(text: str) -> str:
    return escape(PRIVATE.sub("\ufffd", text))


def _in_one_line(html: str) -> str:
    """Join HTML into one line: an empty one would end the block; and Gradio has a mark of its own for formulas."""
    return html.replace("\r", "&#13;").replace("\n", "&#10;").replace("%%%LATEX", "&#37;%%LATEX")


def messages(question: str, answer: dict[str, Any] | None, words: Words) -> Iterator[dict[str, Any]]:
    """Return one turn: the question, in which nothing is Markdown, and as much of the answer as there is."""
    yield {"role": "user", "content": plain(question, source=True)}
    if answer is None:
        return
    yield from reply(answer, words)
    if answer["error"]:
        yield {"role": "assistant", "content": plain(words.problem(str(answer["error"])), "remark")}
    if facts := _facts(answer, words):
        yield {"role": "assistant", "content": facts}


def reply(answer: dict[str, Any], words: Words, *, fold_open: bool = True) -> Iterator[dict[str, Any]]:
    """Render a model's text: the thought as a folded message, the rest as Markdown.

    Args:
        fold_open: fold a thought that is never closed, too; else it is shown as it stands.
    """
    running = answer["state"] == "running"
    done = answer["state"] in ("done", "error")
    thought, said = split_reply(answer["text"], running=running, whole=done)
    if thought is not None and not (said or fold_open or running) and "</think>" not in answer["text"]:
        thought, said = None, answer["text"]
    if thought:
        goes_on = running and "</think>" not in answer["text"]
        facts = {"tokens": answer["think_tokens"], "seconds": answer["think_seconds"]}
        title = words("thinking" if goes_on else "thought", **facts)
        status = "pending" if goes_on else "done"
        content = rendered(thought, source=not goes_on)
        yield {"role": "assistant", "content": content, "metadata": {"title": title, "status": status}}
    if said:
        yield {"role": "assistant", "content": rendered(said, source=not running)}


def split_reply(text: str, *, running: bool = False, whole: bool = True) -> tuple[str | None, str]:
    """Split a completion into the thought that it begins with, or None, and the text after it.

    Tags are taken away only where they are the frame of the completion: `<think>…</think>` at its beginning and
    `<answer>…</answer>` around all the rest, each once. Elsewhere they are words like others. A completion in progress
    is read as the beginning of one in this form.

    Args:
        running: more is to come.
        whole: the model has ended it; else a possible beginning of a tag at its end is left out.

    >>> split_reply("<think>a</think> <answer>4</answer>")
    ('a', '4')
    >>> split_reply("I close with </think> here.")
    (None, 'I close with </think> here.')
    """
    if not whole:
        text = without_half_tag(text)
    begun = text.lstrip()
    if running and begun and "<think>".startswith(begun):
        return None, ""
    thought: str | None = None
    rest = text
    if match := _THOUGHT.match(text):
        if text.count("<think>") == text.count("</think>") == 1:
            thought, rest = match[1].strip(), text[match.end() :]
    elif begun.startswith("<think>") and text.count("<think>") == 1:
        return begun.removeprefix("<think>").strip(), ""
    inner = _ANSWER.match(rest)
    if inner and rest.count("<answer>") == rest.count("</answer>") == 1:
        rest = inner[1]
    elif not (running is False and whole) and rest.lstrip().startswith("<answer>") and "</answer>" not in rest:
        rest = rest.lstrip().removeprefix("<answer>")  # it is being written, or was cut off
    return thought, rest.strip()


def without_half_tag(text: str) -> str:
    """Take away a possible beginning of a tag at the end of a text that was cut off."""
    start = text.rfind("<")
    half = start >= 0 and any(tag.startswith(text[start:]) and tag != text[start:] for tag in tags.TAGS)
    return text[:start] if half else text


def _facts(answer: dict[str, Any], words: Words) -> str:
    """Render what is known of an answer: its model, speed and thought, and how it ended."""
    chips = [("model", Path(answer["model"]).name or answer["model"])] if answer["model"] else []
    if answer["tokens"] and answer["seconds"]:
        chips.append(("", words("speed", tokens=answer["tokens"], speed=answer["tokens"] / answer["seconds"])))
    if answer["text"].lstrip().startswith("<think>") and "</think>" in answer["text"]:
        chips.append(("", words("thought_for", seconds=answer["think_seconds"])))
    chips += [(kind, words(text, **values)) for kind, text, values in _badges(answer, words)]
    shown = "".join(f'<span class="chip {kind}">{_safe(text)}</span>' for kind, text in chips)
    return _in_one_line(f'<div class="facts">{shown}</div>') if chips else ""


def _badges(answer: dict[str, Any], words: Words) -> Iterator[tuple[str, str, dict[str, str]]]:
    if answer["state"] == "stopped":
        yield "bad", "cut", {}
    if answer["state"] == "done":
        problem = tags.parse(answer["text"]).problem
        yield ("warn", "malformed", {"problem": words.fault(problem)}) if problem else ("good", "well_formed", {})
    if answer["verdict"] in ("right", "wrong"):
        yield ("good", "is_right", {}) if answer["verdict"] == "right" else ("bad", "is_wrong", {})
