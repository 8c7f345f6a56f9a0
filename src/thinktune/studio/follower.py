"""Components of a page that follow work (`following`)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from html import escape
from typing import Any

import gradio as gr

from thinktune.studio.events import QUIET

_MARK = re.compile(r'data-of="([^"]*)" data-version="([^"]*)" data-parts="([^"]*)"')


@dataclass(frozen=True)
class Mark:
    """What a page shows: the name and the version of a thing, and a digest of each output."""

    of: str = ""
    version: str = ""
    parts: tuple[str, ...] = ()

    @staticmethod
    def read(html: str | None) -> Mark:
        """Read the value of a follower's component."""
        found = _MARK.search(html or "")
        return Mark(found[1], found[2], tuple(found[3].split())) if found else Mark()

    def html(self, kind: str) -> str:
        """Return the value of a follower's component."""
        parts = " ".join(self.parts)
        return (
            f'<i data-follows="{kind}" data-of="{escape(self.of)}" data-version="{escape(self.version)}" '
            f'data-parts="{parts}"></i>'
        )


def digest(value: Any) -> str:
    """Return a short name of a value that differs where the value does."""
    text = json.dumps(value, default=lambda frame: frame.to_dict("list") if hasattr(frame, "to_dict") else str(frame))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


class Follower:
    """Components that let a page follow things of a kind, built within the running `gr.Blocks`, beside the outputs that
    are filled: they are followed while these can be seen.

    Args:
        alone: there is one thing of this kind, which has no name.
    """

    def __init__(self, kind: str, *, alone: bool = False) -> None:
        self.kind = kind
        self.mark = gr.HTML(Mark().html(kind) if alone else "", elem_id=f"{kind}-mark", elem_classes="mark")
        self._refresh = gr.Button("", elem_id=f"{kind}-refresh", elem_classes="mark")

    def follow(self, act: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Fill outputs when what is shown is of another version.

        Args:
            act: called with the inputs and the mark; returns a value for each output, and the new mark (`told`).
        """
        self._refresh.click(act, [*inputs, self.mark], [*outputs, self.mark], trigger_mode="multiple", **QUIET)

    def choose(self, name: Any) -> None:
        """Let the value of a component be the name of what is followed, from the moment that it is chosen."""
        script = f'(name) => {{ (window.followed ??= {{}})["{self.kind}"] = name ?? ""; }}'
        name.change(None, name, None, js=script, api_visibility="private")

    def told(self, values: Sequence[Any], of: str, version: str, shown: str | None = None) -> tuple[Any, ...]:
        """Return the values of the outputs and the mark; without the values that the page shows already."""
        before = Mark.read(shown)
        same = before.parts if before.of == of else ()
        nothing = digest(gr.skip())
        parts = [digest(value) for value in values]
        kept = [*same, *[""] * len(parts)]
        parts = [old if new == nothing else new for old, new in zip(kept, parts, strict=False)]
        fresh = [gr.skip() if new == old else value for value, old, new in zip(values, kept, parts, strict=False)]
        return (*fresh, Mark(of, version, tuple(part or "-" for part in parts)).html(self.kind))
