"""Pairs of answers from people's ratings, for `method: dpo`: `thinktune pairs STUDY -o pairs.jsonl`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from thinktune.errors import DataError
from thinktune.evaluation.ratings import DISPLAY, Ratings, points_of
from thinktune.files import write_json_lines
from thinktune.records import read_records


@dataclass(frozen=True)
class RatedPairs:
    """The outcome.

    Attributes:
        pairs: number written.
        undecided: answers that as many raters prefer as not, or that are the same.
        old: ratings left out, as their texts were not shown as written (see `ratings.DISPLAY`).
        unknown: ratings of answers that the study does not have.
    """

    pairs: int
    undecided: int
    old: int
    unknown: int

    def __str__(self) -> str:
        parts = [f"{self.pairs} pairs"]
        parts += [f"{self.undecided} without a preference"] if self.undecided else []
        parts += [f"{self.old} ratings left out: their texts were not shown as written"] if self.old else []
        parts += [f"{self.unknown} ratings of answers that are not there"] if self.unknown else []
        return "; ".join(parts)


def write_rated_pairs(study: Path, out: Path) -> RatedPairs:
    """Write a pair for every two answers of which most raters prefer one.

    Args:
        study: a folder of the studio's, with answers.jsonl and ratings.sqlite.

    Raises:
        DataError: it is none, or nobody prefers anything.
        RunFolderError: the answers cannot be read.
    """
    if not (study / "answers.jsonl").is_file() or not (study / "ratings.sqlite").is_file():
        raise DataError(f"{study} is no study of the studio", hint="they are in runs/studio/studies")
    answers = {line["id"]: line for line in read_records(study / "answers.jsonl", dict[str, Any])}
    ratings = Ratings(study / "ratings.sqlite").all()
    shown = [each for each in ratings if each.display == DISPLAY]
    votes: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for each in shown:
        votes[each.item, each.first, each.second].append(points_of(each))
    known = {key: given for key, given in votes.items() if _has(answers.get(key[0]), *key[1:])}
    rows = [row for key, given in known.items() if (row := _row(study.name, answers[key[0]], *key, given))]
    unknown = sum(len(given) for key, given in votes.items() if key not in known)
    found = RatedPairs(len(rows), len(known) - len(rows), len(ratings) - len(shown), unknown)
    if not rows:
        raise DataError(f"{study}: no answer is preferred to another: {found}")
    write_json_lines(out, rows)
    return found


def _has(question: dict[str, Any] | None, first: str, second: str) -> bool:
    return question is not None and {first, second} <= question["answers"].keys()


def _row(
    study: str, question: dict[str, Any], item: str, first: str, second: str, given: list[float]
) -> dict[str, Any] | None:
    """Make a pair; None: neither answer is preferred, or both are the same."""
    share = fmean(given)
    better, worse = (first, second) if share > 0.5 else (second, first)
    chosen, rejected = question["answers"][better], question["answers"][worse]
    if share == 0.5 or chosen == rejected:
        return None
    about: dict[str, Any] = {"study": study, "item": item, "chosen": better, "rejected": worse}
    about |= {"raters": len(given), "preferred": max(share, 1 - share)}
    return {"prompt": question["prompt"], "chosen": chosen, "rejected": rejected, "provenance": about}
