"""What people said of runs in the studio, in sentences for `compare` and the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from thinktune.ratings import Rating, Ratings, win_rate


def rated_pairs(runs: Mapping[str, Path], bases: Mapping[str, str]) -> Iterator[str]:
    """A sentence for every two candidates that people have compared in the studio.

    Args:
        runs: run folders by the candidate's name. Ratings lie beside them, in studio/studies.
        bases: base model references by the candidate's name.

    Raises:
        DataError: a file of ratings cannot be read.
    """
    names = {each: name for name, path in runs.items() for each in (path.name, str(path.resolve()))}
    for name, reference in bases.items():
        names |= dict.fromkeys([reference, *(f"base of {path.name}" for path in runs.values())], name)
    folders = {parent / "studio" / "studies" for path in runs.values() for parent in path.resolve().parents[:2]}
    files = sorted(file for folder in folders for file in folder.glob("*/ratings.sqlite"))
    ratings = list(_named((rating for file in files for rating in _all(file)), names))
    for one, two in combinations([*bases, *runs], 2):
        if rate := win_rate(ratings, two, one):
            raters = {rating.rater for rating in ratings if {rating.first, rating.second} == {one, two}}
            yield f"people preferred {two} to {one} in {rate} of what they rated; raters: {len(raters)}"


def _all(file: Path) -> list[Rating]:
    """Items of two studies are never the same item."""
    return [replace(rating, item=f"{file.parent.name}: {rating.item}") for rating in Ratings(file).all()]


def _named(ratings: Iterable[Rating], names: Mapping[str, str]) -> Iterator[Rating]:
    """Ratings of these candidates, under their names."""
    for rating in ratings:
        first, second = (names.get(_key(model)) for model in (rating.first, rating.second))
        if first is not None and second is not None and first != second:
            yield replace(rating, first=first, second=second)


def _key(model: str) -> str:
    """A model as the studio names it: a run by its path, or by its folder's name."""
    return str(Path(model).resolve()) if "/" in model and Path(model).is_dir() else model
