"""The studio's door: who has the token of the printed address or the password gets a cookie, nobody else gets anything.

A token is made up for each start and too long to be guessed; a password may be short, so guesses are slowed down, for
each client and for all of them together. Whoever is in stays in meanwhile, and the token is never made to wait.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Literal

Verdict = Literal["in", "wrong", "later"]
_FREE = 3  # wrong guesses of one client before it is slowed down
_FIRST_SECONDS, _MOST_SECONDS = 0.5, 5.0  # between two guesses of one client then; doubles with each wrong one
_ALL_FREE, _ALL_SECONDS = 30, 1.0  # the same for everybody together, which does not grow
_PATIENCE_SECONDS = 15.0  # a guess whose turn comes later than that is refused
_MOST_CLIENTS = 10_000
_FORGET_SECONDS = 900.0  # after which a client's wrong guesses are forgotten


class _Pace:
    """The time at which the next guess may be checked."""

    def __init__(self, free: int, first: float, most: float) -> None:
        self._free, self._first, self._most = free, first, most
        self._wrong = 0.0
        self._next = 0.0
        self.last = 0.0

    def wait(self, now: float) -> float:
        """Return the seconds until a guess that comes now may be checked."""
        if now - self.last > _FORGET_SECONDS:
            self._wrong = 0.0
        return max(0.0, self._next - now)

    def take(self, at: float) -> None:
        """Count a guess as wrong until `forgive` says otherwise: many may come at once."""
        self.last = at
        self._wrong += 1
        over = self._wrong - self._free
        if over >= 0:
            self._next = at + min(self._most, self._first * 2 ** min(over, 10))

    def forgive(self) -> None:
        self._wrong = self._next = 0.0


class Door:
    """Lets in by token, password or the cookie that either has earned.

    Args:
        password: None if only the token opens.
        port: gives the cookie its name, so that two studios of one machine do not take each other's away.
        now, sleep: the time in seconds, and waiting for it to pass.
    """

    def __init__(
        self,
        password: str | None = None,
        *,
        port: int = 0,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self.asks_for_password = password is not None
        self.port = port
        self._password = password
        self._cookie = secrets.token_urlsafe(32)
        self._now = now
        self._sleep = sleep
        self._all = _Pace(_ALL_FREE, _ALL_SECONDS, _ALL_SECONDS)
        self._clients: OrderedDict[str, _Pace] = OrderedDict()

    @property
    def cookie_name(self) -> str:
        return f"thinktune-studio-{self.port}"

    def cookie(self, *, secure: bool) -> str:
        """Return the value of Set-Cookie for a client that is let in."""
        flags = "; HttpOnly; SameSite=Lax; Path=/" + ("; Secure" if secure else "")
        return f"{self.cookie_name}={self._cookie}{flags}"

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request brings the cookie, or the token as `Authorization: Bearer`."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() in ("bearer", "token") and self.is_token(given.strip()):
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            return False
        return morsel is not None and _equal(morsel.value, self._cookie)

    def is_token(self, given: str) -> bool:
        return _equal(given, self.token)

    async def guess(self, client: str, given: str) -> Verdict:
        """Check a typed token or password, when it is the client's turn."""
        if self.is_token(given):
            return "in"
        now = self._now()
        pace = self._pace(client)
        wait = max(pace.wait(now), self._all.wait(now))
        if wait > _PATIENCE_SECONDS:
            return "later"
        pace.take(now + wait)
        self._all.take(now + wait)
        if wait:
            await self._sleep(wait)
        if self._password is None or not _equal(given, self._password):
            return "wrong"
        pace.forgive()
        return "in"

    def _pace(self, client: str) -> _Pace:
        pace = self._clients.setdefault(client, _Pace(_FREE, _FIRST_SECONDS, _MOST_SECONDS))
        self._clients.move_to_end(client)
        if len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
        return pace


def _equal(given: str, right: str) -> bool:
    """Compare in constant time."""
    return secrets.compare_digest(given.encode("utf-8", "replace"), right.encode())
