"""Ratings are kept for several raters at once, and say no more than they can."""

from __future__ import annotations

import json
import math
import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from thinktune.errors import DataError, UsageError
from thinktune.evaluation.ratings import (
    DISPLAY,
    Rating,
    Ratings,
    agreement,
    agreement_with_scores,
    bradley_terry,
    conclude,
    win_rate,
)
from thinktune.evaluation.significance import wilson


def test_ratings_come_back_as_they_were_given_whichever_side_was_shown_first(tmp_path: Path) -> None:
    ratings = Ratings(tmp_path / "new/ratings.sqlite")
    ratings.add(Rating("ann", "q1", "tuned", "base", "first", "clearer"))
    ratings.add(Rating("bob", "q1", "base", "tuned", "both bad"))
    assert set(Ratings(tmp_path / "new/ratings.sqlite").all()) == {
        Rating("ann", "q1", "base", "tuned", "second", "clearer"),
        Rating("bob", "q1", "base", "tuned", "both bad"),
    }


def test_a_second_thought_replaces_the_first(tmp_path: Path) -> None:
    ratings = Ratings(tmp_path / "r")
    ratings.add(Rating("ann", "q1", "a", "b", "first"))
    ratings.add(Rating(" ann ", "q1", "b", "a", "first"))
    assert [rating.verdict for rating in ratings.all()] == ["second"]


def test_several_raters_write_at_once(tmp_path: Path) -> None:
    ratings = Ratings(tmp_path / "r")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ratings.add(Rating(f"rater {n % 8}", f"q{n // 8}", "a", "b", "first")), range(80)))
    assert len(ratings.all()) == 80
    with sqlite3.connect(tmp_path / "r") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    "wrong", [{"verdict": "better"}, {"second": "a"}, {"rater": " "}], ids=["verdict", "same model", "no rater"]
)
def test_a_rating_that_says_nothing_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    values = {"rater": "ann", "item": "q", "first": "a", "second": "b", "verdict": "first"} | wrong
    with pytest.raises(UsageError):
        Ratings(tmp_path / "r").add(Rating(**values))


def test_another_file_is_not_taken_for_ratings(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("not a database, but long enough to be looked at " * 10)
    with pytest.raises(DataError, match="no file of ratings"):
        Ratings(tmp_path / "r")
    with sqlite3.connect(tmp_path / "later") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(DataError, match="later thinktune"):
        Ratings(tmp_path / "later")


def test_the_win_rate_counts_items_and_halves_ties() -> None:
    ratings = [
        Rating("ann", "1", "base", "tuned", "second"),
        Rating("bob", "1", "tuned", "base", "first"),
        Rating("ann", "2", "base", "tuned", "both good"),
        Rating("ann", "3", "base", "tuned", "first"),
        Rating("ann", "4", "base", "other", "first"),
    ]
    rate = win_rate(ratings, "tuned", "base")
    assert rate is not None
    assert rate.value == 0.5
    assert 0.1 < rate.low < 0.5 < rate.high < 0.9
    assert win_rate(ratings, "tuned", "other") is None


def test_bradley_terry_finds_the_strengths_that_ratings_were_drawn_from() -> None:
    true, generator, ratings = {"a": 0.8, "b": 0.0, "c": -0.8}, random.Random(0), []
    for n in range(6000):
        one, two = generator.sample(sorted(true), 2)
        first_wins = generator.random() < 1 / (1 + math.exp(true[two] - true[one]))
        ratings.append(Rating("ann", str(n), one, two, "first" if first_wins else "second"))
    assert bradley_terry(ratings) == pytest.approx(true, abs=0.1)
    always = bradley_terry([Rating("ann", "1", "a", "b", "first")] * 10)
    assert math.isfinite(always["a"])
    # Of two models the likelihood is greatest at the odds of the wins: 10.25 to 0.25.
    assert always["a"] - always["b"] == pytest.approx(math.log(10.25 / 0.25))
    assert bradley_terry([]) == {}


def test_agreement_is_krippendorffs_alpha() -> None:
    # Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", example B: nominal data, two observers.
    ratings = [
        Rating(rater, str(at), "x", "y", value)  # type: ignore[arg-type]
        for rater, values in (("Ben", "aabbdcccedda"), ("Gerry", "babbbccceddd"))
        for at, value in enumerate(values)
    ]
    assert agreement(ratings) == pytest.approx(0.692, abs=5e-4)
    assert agreement([rating for rating in ratings if rating.rater == "Ben"]) is None
    assert agreement([Rating(r, i, "x", "y", v) for r in "ab" for i, v in (("1", "first"), ("2", "second"))]) == 1  # type: ignore[arg-type]


RATED = [
    Rating("ann", "1", "base", "tuned", "second"),
    Rating("bob", "1", "tuned", "base", "first"),
    Rating("ann", "2", "base", "tuned", "first"),
    Rating("ann", "3", "base", "tuned", "both good"),
    Rating("ann", "4", "base", "tuned", "second"),
    Rating("ann", "5", "base", "other", "second"),
]


def test_people_agree_with_the_score_where_they_prefer_what_it_has_ahead() -> None:
    scores = {"base": {"1": 0, "2": 0, "3": 0, "4": 1}, "tuned": {"1": 1, "2": 1, "3": 1, "4": 1, "5": 1}}
    # Item 1 agrees (twice, which counts once), 2 does not, 3 is a tie; 4 is one for the score; 5 has no two scores.
    assert agreement_with_scores(RATED, scores) == wilson(1.5, 3)
    assert agreement_with_scores(RATED, {"base": {"1": 0}}) is None


def test_raters_samples_and_pairs_of_one_problem_are_not_further_problems() -> None:
    items = [f"q{n}:{sample}" for n in range(3) for sample in "01"]
    ratings = [Rating(rater, item, "a", "b", "first") for rater in "xy" for item in items]
    ratings += [Rating("x", "q0:0", "a", "c", "first"), Rating("x", "q0:0", "b", "c", "both bad")]
    problems = {item: ("math", item.partition(":")[0], "") for item in items}
    scores = {model: dict.fromkeys(problems, score) for model, score in (("a", 2), ("b", 1), ("c", 0))}
    found = conclude(ratings, scores, problems)
    assert found.win_rates["a", "b"] == wilson(0, 3)
    # Of the first problem: sample 0 agrees in 3 of 4 ratings and is tied in one, sample 1 agrees.
    assert found.with_scores == wilson((3.5 / 4 + 1) / 2 + 2, 3)
    assert agreement_with_scores(ratings, scores) == wilson(3.5 / 4 + 5, 6)


def test_conclusions_hold_every_measure_and_say_it_in_words() -> None:
    found = conclude(RATED, {"base": {"1": 0}, "tuned": {"1": 1}})
    assert (found.ratings, found.raters, found.items) == (6, 2, 5)
    assert found.win_rates == {("base", "other"): wilson(1, 1), ("base", "tuned"): wilson(2.5, 4)}
    assert found.strengths == bradley_terry(RATED)
    assert found.with_scores == wilson(1, 1)
    words = list(found.sentences())
    assert words[0] == "6 ratings of 5 items by 2 raters"
    assert words[2] == f"tuned is preferred to base: {wilson(2.5, 4)}, which may be luck"
    assert words[3].startswith("Bradley-Terry: other +")
    assert json.loads(json.dumps(found.as_dict()))["win_rates"][1]["value"] == 0.625


def test_a_model_that_loses_is_named_second() -> None:
    lost = [Rating("ann", str(n), "base", "tuned", "first") for n in range(20)]
    (_, words) = conclude(lost).sentences()
    assert words == f"base is preferred to tuned: {wilson(20, 20)}"
    ties = [Rating("ann", str(n), "base", "tuned", "both bad") for n in range(4)]
    assert list(conclude(ties).sentences())[1].startswith("base and tuned are preferred equally often: 50.0%")
    assert conclude([]).win_rates == {}


def test_ratings_of_a_time_when_texts_were_not_shown_as_written_are_counted_and_named(tmp_path: Path) -> None:
    file = tmp_path / "ratings.sqlite"
    with closing(sqlite3.connect(file)) as database, database:  # as the version before wrote it
        database.execute(
            "CREATE TABLE ratings (rater TEXT NOT NULL, item TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL,"
            " verdict TEXT NOT NULL, comment TEXT NOT NULL DEFAULT '', time TEXT NOT NULL,"
            " PRIMARY KEY (rater, item, first, second)) STRICT, WITHOUT ROWID"
        )
        database.execute(
            "INSERT INTO ratings VALUES ('ann', '1', 'a', 'b', 'both bad', '', '2026-01-01T00:00:00+00:00')"
        )
        database.execute("PRAGMA user_version = 1")
    ratings = Ratings(file)
    ratings.add(Rating("bob", "1", "b", "a", "first"))
    assert [each.display for each in ratings.all()] == [None, DISPLAY]
    found = conclude(ratings.all())
    assert found.old_display == 1
    assert "1 of them are worth less" in " ".join(found.sentences())
    assert "worth less" not in " ".join(conclude(ratings.all()[1:]).sentences())
    ratings.add(Rating("ann", "1", "a", "b", "second"))  # rated anew, as it is shown now
    assert conclude(Ratings(file).all()).old_display == 0


def test_a_rater_takes_back_the_last_rating_and_nobody_elses(tmp_path: Path) -> None:
    ratings = Ratings(tmp_path / "ratings.sqlite")
    for item in ("3", "1", "2"):
        ratings.add(Rating("ann", item, "a", "b", "first"))
        ratings.add(Rating("bob", item, "a", "b", "second"))
    taken = [ratings.take_back("ann") for _ in range(4)]
    assert [each and each.item for each in taken] == ["2", "1", "3", None]
    assert {each.rater for each in ratings.all()} == {"bob"}
