"""People's ratings: two answers side by side, and the better one. Kept in SQLite, shared by several raters at once.

The page that asks people is the studio's; storage and statistics are here.
"""

from __future__ import annotations

import math
import sqlite3
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from thinktune.errors import DataError, UsageError
from thinktune.evaluation.problems import Problem, problem_of
from thinktune.evaluation.significance import Rate, wilson
from thinktune.records import read_records

Verdict = Literal["first", "second", "both good", "both bad"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ratings (
    rater TEXT NOT NULL,
    item TEXT NOT NULL,
    first TEXT NOT NULL,   -- the two models, in the order of the alphabet, whichever was shown on the left
    second TEXT NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('first', 'second', 'both good', 'both bad')),
    comment TEXT NOT NULL DEFAULT '',
    time TEXT NOT NULL,    -- ISO 8601, UTC
    display INTEGER,       -- how texts were shown, see DISPLAY; null: by a studio that did not say
    PRIMARY KEY (rater, item, first, second),
    CHECK (first < second)
) STRICT, WITHOUT ROWID;
"""
_VERSION = 2
DISPLAY = 2
"""Version of the studio's display of texts, kept with each rating. Before 2, and unsaid then, two prices in a text
became a formula, tags were cut out of answers, the text after a stray `<think>` was hidden, and a key that scrolls
elsewhere said "both bad": such ratings are counted, and named beside the conclusions."""
_WAIT_SECONDS = 10.0
_SWAPPED: dict[Verdict, Verdict] = {"first": "second", "second": "first"}


@dataclass(frozen=True)
class Rating:
    """One rater's verdict on the answers of two models to one item."""

    rater: str
    item: str
    first: str
    second: str
    verdict: Verdict
    comment: str = ""
    display: int | None = DISPLAY


class Ratings:
    """A file of ratings. Every call opens it anew, so that threads and processes may share an object or a file."""

    def __init__(self, file: Path) -> None:
        """Make the file if there is none.

        Raises:
            DataError: the file is no SQLite database, or of a later version.
        """
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._open() as database:
                database.execute("PRAGMA journal_mode = WAL")  # readers do not wait for writers
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version > _VERSION:
                    raise DataError(f"{file} was written by a later thinktune", hint="pip install --upgrade thinktune")
                database.executescript(_SCHEMA)
                if not any(column[1] == "display" for column in database.execute("PRAGMA table_info(ratings)")):
                    database.execute("ALTER TABLE ratings ADD COLUMN display INTEGER")
                database.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.DatabaseError as error:
            raise DataError(f"{file} is no file of ratings: {error}") from error

    def add(self, rating: Rating) -> None:
        """Store a rating; a rater's second one of the same item and models replaces the first.

        Raises:
            UsageError: an unknown verdict, a model against itself, or no rater.
        """
        if rating.verdict not in VERDICTS:
            raise UsageError(f"verdict {rating.verdict!r} is not one of {', '.join(VERDICTS)}")
        if rating.first == rating.second or not rating.rater.strip():
            raise UsageError("a rating needs a rater and two different models")
        rating = _ordered(rating)
        values = (rating.rater.strip(), rating.item, rating.first, rating.second, rating.verdict, rating.comment)
        now = datetime.now(UTC).isoformat(timespec="microseconds")  # so that the last one is known
        with self._open() as database:
            database.execute(
                "INSERT OR REPLACE INTO ratings (rater, item, first, second, verdict, comment, time, display)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, now, rating.display),
            )

    def take_back(self, rater: str) -> Rating | None:
        """Remove the last rating of a rater and return it; None if there is none."""
        with self._open() as database:
            rows = database.execute(
                "DELETE FROM ratings WHERE (rater, item, first, second) = (SELECT rater, item, first, second"
                " FROM ratings WHERE rater = ? ORDER BY time DESC LIMIT 1)"
                " RETURNING rater, item, first, second, verdict, comment, display",
                (rater.strip(),),
            ).fetchall()
        return Rating(*rows[0]) if rows else None

    def all(self) -> list[Rating]:
        """Return every rating, by time."""
        with self._open() as database:
            rows = database.execute(
                "SELECT rater, item, first, second, verdict, comment, display FROM ratings ORDER BY time, rater, item"
            )
            return [Rating(*row) for row in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self._file, timeout=_WAIT_SECONDS)
        try:
            with database:  # one transaction
                yield database
        finally:
            database.close()


Problems = Mapping[str, Problem]
"""The problem of each item; several items of one problem are several samples of it. An item without one is its own."""


def win_rate(ratings: Iterable[Rating], model: str, other: str, problems: Problems | None = None) -> Rate | None:
    """Estimate how often a model is preferred to another, ties counting half, with a 95% Wilson interval.

    Problems are the unit: several raters of one, and several samples of one, are averaged. None: never rated.
    """
    points = (
        (rating.item, points_of(rating if rating.first == model else _flipped(rating)))
        for rating in ratings
        if {rating.first, rating.second} == {model, other}
    )
    return _rate(points, problems)


def _rate(points: Iterable[tuple[str, float]], problems: Problems | None) -> Rate | None:
    """Average points by problem, then over problems; of the raters of one item first."""
    items: dict[str, list[float]] = defaultdict(list)
    for item, value in points:
        items[item].append(value)
    units: dict[Hashable, list[float]] = defaultdict(list)
    for item, values in items.items():
        units[(problems or {}).get(item, item)].append(fmean(values))
    return wilson(sum(map(fmean, units.values())), len(units)) if units else None


def bradley_terry(ratings: Sequence[Rating], *, rounds: int = 10_000, tolerance: float = 1e-10) -> dict[str, float]:
    """Estimate the strength of each model (Bradley and Terry 1952), as natural logarithms with mean 0, a tie being half
    a win.

    A model that is 1 above another is preferred with odds of e to 1. Half a tie between every two models keeps one that
    always wins finite. By Hunter's (2004) minorisation.
    """
    models = sorted({name for rating in ratings for name in (rating.first, rating.second)})
    if not models:
        return {}
    wins: dict[tuple[str, str], float] = defaultdict(float)
    for one, two in combinations(models, 2):
        wins[one, two] = wins[two, one] = 0.25
    for rating in ratings:
        wins[rating.first, rating.second] += points_of(rating)
        wins[rating.second, rating.first] += 1 - points_of(rating)
    strength = dict.fromkeys(models, 1.0)
    for _ in range(rounds):
        before = strength
        strength = {
            one: sum(wins[one, two] for two in models if two != one)
            / sum((wins[one, two] + wins[two, one]) / (before[one] + before[two]) for two in models if two != one)
            for one in models
        }
        mean = math.exp(fmean(map(math.log, strength.values())))
        strength = {name: value / mean for name, value in strength.items()}
        if all(abs(strength[name] - before[name]) <= tolerance * before[name] for name in models):
            break
    return {name: math.log(value) for name, value in strength.items()}


def agreement(ratings: Iterable[Rating]) -> float | None:
    """Compute Krippendorff's alpha (nominal, 2011) over all verdicts: 1 is full agreement, 0 that of chance.

    None: no item has two raters, or all verdicts ever given are the same.
    """
    units: dict[tuple[str, str, str], list[Verdict]] = defaultdict(list)
    for rating in map(_ordered, ratings):
        units[rating.item, rating.first, rating.second].append(rating.verdict)
    groups = [verdicts for verdicts in units.values() if len(verdicts) > 1]
    values = [verdict for group in groups for verdict in group]
    expected = sum(a != b for a, b in combinations(values, 2)) * 2 / max(1, len(values) - 1)
    if not expected:
        return None
    observed = sum(2 * sum(a != b for a, b in combinations(group, 2)) / (len(group) - 1) for group in groups)
    return 1 - observed / expected


def agreement_with_scores(
    ratings: Iterable[Rating], scores: Mapping[str, Mapping[str, float]], problems: Problems | None = None
) -> Rate | None:
    """Estimate how often people prefer the model that an automatic score has ahead, ties of theirs counting half, with
    a 95% Wilson interval. None: no item was rated whose two scores differ.

    Problems are the unit, as in `win_rate`; so several pairs of models on one problem are averaged too.

    Args:
        scores: by model and item, the higher the better.
    """
    points = []
    for rating in ratings:
        first, second = (scores.get(name, {}).get(rating.item) for name in (rating.first, rating.second))
        if first is not None and second is not None and first != second:
            share = points_of(rating)
            points.append((rating.item, share if first > second else 1 - share))
    return _rate(points, problems)


@dataclass
class Judgements:
    """Ratings, and a study's knowledge of their items: `scores` by model and item, and the problems."""

    ratings: list[Rating] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)

    def add_study(self, file: Path, prefix: str = "") -> None:
        """Read a file of ratings, and the answers.jsonl beside it if it is a study's.

        Args:
            prefix: put before the name of each item.

        Raises:
            DataError: the file of ratings cannot be read.
            RunFolderError: the answers cannot be read.
        """
        self.ratings += [replace(rating, item=prefix + rating.item) for rating in Ratings(file).all()]
        if not file.with_name("study.json").is_file():
            return
        for line in read_records(file.with_name("answers.jsonl"), dict[str, Any]):
            item = f"{prefix}{line['id']}"
            self.problems[item] = problem_of({"prompt": line["prompt"]})
            for model, correct in line["correct"].items():
                if correct is not None:
                    self.scores.setdefault(model, {})[item] = correct


def studio_ratings(runs: Iterable[Path]) -> Judgements:
    """Read all ratings of the studies that the studio keeps beside these run folders, in studio/studies.

    Raises:
        DataError, RunFolderError: see `Judgements.add_study`.
    """
    folders = {parent / "studio" / "studies" for run in runs for parent in run.resolve().parents[:2]}
    found = Judgements()
    for file in sorted(file for folder in folders for file in folder.glob("*/ratings.sqlite")):
        found.add_study(file, f"{file.parent.name}: ")  # items of two studies are never the same item
    return found


@dataclass(frozen=True)
class Conclusions:
    """The statistics of ratings.

    Attributes:
        win_rates: for each two models that were rated, in the order of the alphabet, how often the second is preferred.
        strengths: see `bradley_terry`.
        agreement: see `agreement`; with_scores: see `agreement_with_scores`.
        old_display: ratings of texts that were not shown as they were written, see `DISPLAY`.
    """

    ratings: int
    raters: int
    items: int
    win_rates: dict[tuple[str, str], Rate]
    strengths: dict[str, float]
    agreement: float | None
    with_scores: Rate | None
    old_display: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        rates = [{"first": first, "second": second, **asdict(rate)} for (first, second), rate in self.win_rates.items()]
        return {**asdict(self), "win_rates": rates}

    def sentences(self) -> Iterator[str]:
        """Put the same in words."""
        yield f"{self.ratings} ratings of {self.items} items by {self.raters} rater{'s' if self.raters > 1 else ''}"
        if self.old_display:
            yield (
                f"{self.old_display} of them are worth less: they were made while the studio did not show texts as "
                "they were written (prices as formulas, tags cut out)"
            )
        for (first, second), rate in self.win_rates.items():
            if rate.value == 0.5:
                yield f"{first} and {second} are preferred equally often: {rate}, and cannot be told apart"
                continue
            better, worse, rate = (first, second, rate.opposite) if rate.value < 0.5 else (second, first, rate)
            yield f"{better} is preferred to {worse}: {rate}{'' if rate.low > 0.5 else ', which may be luck'}"
        if len(self.strengths) > 2:
            ranked = sorted(self.strengths.items(), key=lambda each: -each[1])
            yield "Bradley-Terry: " + ", ".join(f"{name} {value:+.2f}" for name, value in ranked)
        if self.agreement is not None:
            yield f"agreement between raters: Krippendorff's alpha {self.agreement:.2f}"
        if self.with_scores is not None:
            yield f"people prefer the answer with the better automatic score: {self.with_scores}"


def conclude(
    ratings: Sequence[Rating],
    scores: Mapping[str, Mapping[str, float]] | None = None,
    problems: Problems | None = None,
) -> Conclusions:
    """Compute the statistics of ratings, and of their agreement with scores by model and item if there are some."""
    ordered = [_ordered(rating) for rating in ratings]
    pairs = sorted({(rating.first, rating.second) for rating in ordered})
    rates = {(first, second): win_rate(ordered, second, first, problems) for first, second in pairs}
    return Conclusions(
        ratings=len(ordered),
        raters=len({rating.rater for rating in ordered}),
        items=len({rating.item for rating in ordered}),
        win_rates={pair: rate for pair, rate in rates.items() if rate is not None},
        strengths=bradley_terry(ordered),
        agreement=agreement(ordered),
        with_scores=agreement_with_scores(ordered, scores or {}, problems),
        old_display=sum(rating.display is None for rating in ordered),
    )


def points_of(rating: Rating) -> float:
    """Return the points of the first model in a rating."""
    return {"first": 1.0, "second": 0.0}.get(rating.verdict, 0.5)


def _ordered(rating: Rating) -> Rating:
    return rating if rating.first < rating.second else _flipped(rating)


def _flipped(rating: Rating) -> Rating:
    verdict = _SWAPPED.get(rating.verdict, rating.verdict)
    return Rating(rating.rater, rating.item, rating.second, rating.first, verdict, rating.comment, rating.display)
