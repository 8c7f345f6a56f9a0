"""The built-in problems and small questions: right, repeatable, and never the same in train and test."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any

import pytest

from thinktune.data.arithmetic import KINDS, LEVELS, Split, Work, problems
from thinktune.data.basics import basics
from thinktune.workflows.run import quickstart_config

EQUATION = re.compile(r"([\d\s*/+-]+)=\s*(\d+)")


def question_of(row: dict[str, Any]) -> str:
    return str(row["conversations"][0]["value"])


def reply_of(row: dict[str, Any]) -> str:
    return str(row["conversations"][1]["value"])


def numbers_of(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(sorted(map(int, re.findall(r"\d+", question_of(row)))))


def test_every_step_written_down_is_true_and_the_last_one_is_the_answer() -> None:
    for row in problems("train", 600, seed=1):
        steps = EQUATION.findall(reply_of(row))
        assert steps
        for left, right in steps:
            assert eval(left) == int(right), reply_of(row)
        answer = re.search(r"solution\|>\s+(\d+)\s+<", reply_of(row))
        assert answer
        assert answer[1] == steps[-1][1]


@pytest.mark.parametrize("seeds", [(0, 0), (1, 2)])
def test_no_test_problem_shares_its_numbers_with_a_training_problem(seeds: tuple[int, int]) -> None:
    train = {numbers_of(row) for row in problems("train", 3000, seeds[0])}
    test = {numbers_of(row) for row in problems("test", 500, seeds[1])}
    assert not train & test


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    assert list(problems("train", 50, 7)) == list(problems("train", 50, 7))
    assert list(problems("train", 50, 7)) != list(problems("train", 50, 8))


def test_a_larger_count_begins_with_the_rows_of_a_smaller_one() -> None:
    assert list(problems("test", 90, 3))[:40] == list(problems("test", 40, 3))


def test_kinds_and_levels_come_equally_often() -> None:
    rows = list(problems("train", 2 * len(KINDS) * len(LEVELS), 3))
    assert set(Counter((row["kind"], row["level"]) for row in rows).values()) == {2}
    assert {row["kind"] for row in rows} == set(KINDS)


def test_no_problem_comes_twice_while_its_kind_has_new_ones() -> None:
    questions = [question_of(row) for row in problems("train", 2000, 3407)]
    assert len(set(questions)) == len(questions)


def test_levels_grow_harder() -> None:
    rows = list(problems("train", 1500, 5))
    mean = {
        level: sum(max(numbers_of(row)) for row in rows if row["level"] == level)
        / sum(row["level"] == level for row in rows)
        for level in LEVELS
    }
    assert mean[1] < mean[2] < mean[3]


@pytest.mark.parametrize(
    ("operation", "a", "b", "result", "written"),
    [
        ("add", 47, 38, 85, "47 + 38: 47 + 30 = 77, 77 + 8 = 85."),
        ("add", 47, 30, 77, "47 + 30 = 77."),
        ("subtract", 85, 38, 47, "85 - 38: 85 - 30 = 55, 55 - 8 = 47."),
        ("multiply", 23, 4, 92, "23 * 4: 20 * 4 = 80, 3 * 4 = 12, 80 + 12 = 92."),
        ("multiply", 6, 7, 42, "6 * 7 = 42."),
        ("divide", 84, 6, 14, "84 / 6: 60 / 6 = 10, 24 / 6 = 4, 10 + 4 = 14."),
    ],
)
def test_work_is_written_part_by_part(operation: str, a: int, b: int, result: int, written: str) -> None:
    work = Work()
    assert getattr(work, operation)(a, b) == result
    assert work.steps == [written]


@pytest.mark.parametrize(
    ("generate", "split", "digest"),
    [
        (problems, "train", "7b98f38fa1a6b7a9"),
        (problems, "test", "6dfc62716eb64d62"),
        (basics, "train", "a0b834f3417d8c81"),
        (basics, "test", "86718fecc00addf3"),
    ],
)
def test_the_rows_of_a_name_and_a_seed_never_change(generate: Any, split: Split, digest: str) -> None:
    rows = json.dumps(list(generate(split, 200, 3407)), ensure_ascii=False)
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == digest, "runs of old configs would train on other rows"


def test_every_step_of_a_small_sum_is_true_and_the_last_one_is_the_answer() -> None:
    rows = [*basics("train", 800, 1), *basics("test", 300, 1)]
    for row in rows:
        if row["kind"] != "fact":
            steps = EQUATION.findall(reply_of(row))
            for left, right in steps:
                assert eval(left) == int(right), reply_of(row)
            assert f"solution|>\n\n{steps[-1][1]}\n" in reply_of(row)


def test_no_small_sum_of_the_test_split_was_trained_and_no_fact_is_asked() -> None:
    rows: dict[Split, list[Any]] = {"train": list(basics("train", 3000, 1)), "test": list(basics("test", 900, 1))}
    sums = {split: {(row["kind"], reply_of(row)) for row in found} for split, found in rows.items()}  # not its words
    assert not sums["train"] & sums["test"]
    assert "fact" not in {row["kind"] for row in rows["test"]}


def test_what_people_type_first_is_among_the_rows_of_the_quickstart() -> None:
    (share,) = [each.weight for each in quickstart_config([]).data.sources if each.source == "builtin:basics"]
    rows = list(basics("train", int(share), 3407))
    asked = {(row["kind"], numbers_of(row)) for row in rows}
    assert asked >= {("times", (a, b)) for a in range(2, 13) for b in range(a, 13)}
    told = " ".join(map(reply_of, rows))
    for words in ("7 * 8 = 56", "The capital of France is Paris", "A week has 7 days", "Hello!"):
        assert words in told
