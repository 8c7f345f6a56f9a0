"""What a page shows of work that goes on without it, kept up to date.

Gradio's timer cannot carry this. All its events are answered over one stream of a page, which the server closes
whenever it has nothing more to say: an event that arrives while the end of the stream is on its way is never answered,
and no later tick of its timer is sent, as it waits for that answer. Each tick costs the browser a new status of every
component besides, also where nothing has changed.

So the page's script (`follow_script`) asks by itself for the versions of what it shows, seldom where nothing moves, and
lets an event fill in what is of another version (`follower`). What is shown is read off the page: an answer that was
lost, or came after a newer one, is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinktune.errors import ThinktuneError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

ADDRESS = "/studio/versions"
_MOST = 20  # things that one page follows


@dataclass(frozen=True)
class Version:
    """The state of something that pages follow; `moves`: another one is to be expected soon."""

    name: str
    moves: bool


class Following:
    """All that pages follow, by kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, Callable[[str], Version | None]] = {}

    def add(self, kind: str, version: Callable[[str], Version | None]) -> None:
        """Let pages follow things of a kind.

        Args:
            version: returns the present version of one of them; None where there is none of that name.
        """
        self._kinds[kind] = version

    def answer(self, request: Request) -> Response:
        """Tell a page the versions of what it names, as KIND=NAME, and whether any of them moves."""
        from starlette.responses import JSONResponse

        versions, moves = {}, False
        for kind, name in request.query_params.multi_items()[:_MOST]:
            try:
                version = self._kinds[kind](name) if kind in self._kinds else None
            except ThinktuneError:  # it was taken away
                version = None
            if version is not None:
                versions[kind] = version.name
                moves = moves or version.moves
        return JSONResponse({"versions": versions, "moves": moves}, headers={"cache-control": "no-store"})
