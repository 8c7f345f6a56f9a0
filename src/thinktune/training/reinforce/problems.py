"""The problems of a reinforcement: prompts as tokens, with what their completions are scored by."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from thinktune import tags
from thinktune.config import Config
from thinktune.data import DataReport, Example, Prepared, Tokens
from thinktune.data.report import Lengths, SourceReport
from thinktune.errors import DataError
from thinktune.inference.problems import GoldItem, read_problems
from thinktune.models import Chat


@dataclass(frozen=True)
class PreparedProblems(Prepared):
    """The data of a reinforcement.

    Attributes:
        train: each problem's prompt as the context of a short reply, which the checks before a training read; it is
            never trained.
        problems: the same, with their gold records.
    """

    problems: Sequence[GoldItem] = ()

    @property
    def longest_prompt(self) -> int:
        return max(tokens.context for tokens in self.train)


def prepare_problems(config: Config, chat: Chat) -> PreparedProblems:
    """Read, draw and tokenise the problems that leave room for a completion within `data.max_length`.

    Raises:
        DataError: there are none; a longer one under `overlong: error`; further ones from reading.
        DownloadError, MissingExtra: see `data.sources.read_rows`.
    """
    read = read_problems(config.data, config.format, config.data_seed, load=config.load)
    found = list(_tokenised(read, config, chat))
    if not found:
        raise DataError(
            f"no problem leaves room for {config.rl.max_completion_length} tokens of completion within data.max_length",
            hint="a larger data.max_length, or a smaller rl.max_completion_length",
        )
    problems, tokens = [item for item, _ in found], [each for _, each in found]
    source = config.data.source if isinstance(config.data.source, str) else "several sources"
    report = DataReport(
        [SourceReport(source, read=len(read), usable=len(read), kept=len(found), dropped=_dropped(read, problems))],
        lengths=Lengths.of([each.context for each in tokens], 0),
        fingerprint=_fingerprint(problems, tokens),
    )
    packs = [[index] for index in range(len(tokens))]
    rows = [[each.example.row for each in tokens]]
    return PreparedProblems(tokens, packs, [], report, report.fingerprint, rows, problems)


def _tokenised(read: Sequence[GoldItem], config: Config, chat: Chat) -> Iterator[tuple[GoldItem, Tokens]]:
    reply = chat.replies_ids([tags.render("Let us see.", "7", config.format.template)])[0]
    for row, item in enumerate(read, start=1):
        prompt = chat.prompt_ids(item.messages)
        if len(prompt) + config.rl.max_completion_length <= config.data.max_length:
            example = Example(tuple(map(dict, item.messages)), "", "", row, item.id)
            yield item, Tokens(array("i", prompt + reply), len(prompt), example)
        elif config.data.overlong == "error":
            raise DataError(
                f"{item.id}: a prompt of {len(prompt):,} tokens leaves no room for a completion of "
                f"{config.rl.max_completion_length}: data.max_length is {config.data.max_length:,}",
                hint="raise data.max_length, or set data.overlong: drop",
            )


def _dropped(read: Sequence[GoldItem], kept: Sequence[GoldItem]) -> dict[str, list[int]]:
    left = {id(item) for item in kept}
    rows = [row for row, item in enumerate(read, start=1) if id(item) not in left]
    return {"prompt too long": rows} if rows else {}


def _fingerprint(problems: Sequence[GoldItem], tokens: Sequence[Tokens]) -> str:
    digest = hashlib.sha256()
    for item, each in zip(problems, tokens, strict=True):
        digest.update(each.ids[: each.context].tobytes())
        digest.update(json.dumps([item.type, dict(item.gold)], sort_keys=True, default=str).encode())
    return digest.hexdigest()
