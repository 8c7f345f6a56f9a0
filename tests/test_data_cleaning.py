"""Rows that are kept out of a training: filtered, repeated, or known from the evaluation data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import Write
from thinktune.config import Config, Format, Load, parse_config
from thinktune.data import Example, Prepared, load_examples, prepare
from thinktune.data.decontamination import ProblemIndex
from thinktune.data.duplicates import Duplicates
from thinktune.data.words import hash_words, ngrams, without_numbers
from thinktune.errors import ConfigError, DataError, UsageError
from thinktune.models.chat import Chat
from thinktune.report.data_preview import show

QUESTION = (
    "Anna sells 12 baskets of apples at the market on Monday. On Tuesday she sells twice as many as on Monday. "
    "Each basket holds 30 apples. How many apples does she sell on both days together?"
)
THINK = (
    "On Monday she sells 12 baskets. On Tuesday she sells 2 * 12 = 24 of them. Together these are 12 + 24 = 36. "
    "Each holds 30 apples, so that she sells 36 * 30 = 1080 apples in all."
)


@pytest.fixture(scope="module")
def chat() -> Chat:
    from conftest import make_tiny_tokenizer

    return Chat(make_tiny_tokenizer())


def example(question: str = QUESTION, think: str = THINK, answer: str = "1080", row: int = 1) -> Example:
    return Example(({"role": "user", "content": question},), think, answer, row, "rows.jsonl")


def row(question: str = QUESTION, think: str = THINK, answer: Any = "1080", **columns: Any) -> dict[str, Any]:
    return {"prompt": question, "completion": f"<think>{think}</think> <answer>{answer}</answer>", **columns}


def config_of(source: Any, **data: Any) -> Config:
    return parse_config({"data": {"source": source, **data}})


def rows_of(prepared: Prepared) -> list[int]:
    return sorted(tokens.example.row for tokens in prepared.train)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (example(), "exact"),
        (example(QUESTION.replace(" ", "\n")), "exact"),
        (example(QUESTION.replace("market", "shop")), "near"),
        (example(think=THINK.replace("Together", "Both")), "near"),
        (example(" ".join(reversed(QUESTION.split(". "))), ". ".join(reversed(THINK.split(". ")))), "near"),
        (example(QUESTION.replace("12", "13")), None),  # another problem, however alike
        (example(answer="1081"), None),  # they contradict each other
        (example("How many legs have 12 cows and 30 hens?", "12 * 4 = 48, 30 * 2 = 60.", "1080"), None),
    ],
)
def test_an_example_repeats_an_earlier_one_if_its_words_do_and_its_numbers_are_the_same(
    other: Example, found: str | None
) -> None:
    duplicates = Duplicates()
    assert duplicates.find_or_add(example()) is None
    repeated = duplicates.find_or_add(other)
    assert (repeated and (repeated[0].row, "exact" if repeated[1] else "near")) == (found and (1, found))


def test_of_prompts_the_replies_are_not_compared() -> None:
    duplicates = Duplicates(prompts=True)
    assert duplicates.find_or_add(example()) is None
    assert duplicates.find_or_add(example(think="Guess.", answer="7")) == (example(), True)
    assert duplicates.find_or_add(example(QUESTION.replace("market", "shop"), "Guess.", "7")) == (example(), False)


def test_texts_of_signs_alone_are_compared_as_they_are() -> None:
    duplicates = Duplicates()
    assert duplicates.find_or_add(example("∑?", "∫!", "∞")) is None
    assert duplicates.find_or_add(example("∏?", "∫!", "∞")) is None
    assert duplicates.find_or_add(example("∑?", "∫!", "∞")) is not None


PROBLEMS = [
    ("test:1", QUESTION),
    ("test:2", "What is 47 + 38?"),
    ("test:3", "小明有三个苹果，又从市场买了十二个苹果，然后给了小红五个，现在他一共还有多少个苹果？"),
    *(
        (f"test:{number}", f"The answer {text} can be written as m over n where m and n are relatively prime numbers")
        for number, text in enumerate(("of the first", "that Bob has", "to it all"), start=4)
    ),
]
BOILERPLATE = (
    "Here the answer can be written as m over n where m and n are relatively prime numbers, as always in these."
)


@pytest.mark.parametrize(
    ("trained", "found"),
    [
        (example(), "test:1"),
        (example(f"Read well. {QUESTION} Explain."), "test:1"),
        (example("Do it again.", think=f"I remember: {QUESTION.upper()}"), "test:1"),
        (example(QUESTION.replace("12", "7").replace("30", "1,250.5")), "test:1"),
        (example(QUESTION.replace("12", "twelve").replace("30", "twenty five")), "test:1"),
        (example(QUESTION.partition(" On Tuesday")[0] + " Then she goes home."), None),
        (example("what is  47 + 38?"), "test:2"),
        (example("What is 47 - 38?"), None),
        (example(PROBLEMS[2][1].replace("十二", "９")), "test:3"),
        (example(BOILERPLATE), None),
        (example("How many legs have 12 cows and 30 hens?", "12 * 4 = 48."), None),
    ],
)
def test_an_example_holds_a_problem_if_it_has_enough_of_its_words_in_a_row(trained: Example, found: str | None) -> None:
    match = ProblemIndex(PROBLEMS).find(trained)
    assert (match and match.problem) == found


@pytest.mark.parametrize(
    ("question", "same"),
    [
        ("Add 5 to 7, halve it, take 3 off, and add 10 to it.", True),
        ("Add 6 to 9, halve it, take 4 off, and add 12 to it.", False),
    ],
)
def test_other_numbers_are_told_from_the_problem_s_own(question: str, same: bool) -> None:
    problems = ProblemIndex([("test:1", "Add 5 to 7, halve it, take 3 off, and add 10 to it."), ("test:2", "Why?")])
    match = problems.find(example(f"Please: {question}"))
    assert match is not None
    assert (match.problem, match.numbers) == ("test:1", same)


def test_a_run_of_words_has_one_hash_wherever_it_stands() -> None:
    words = hash_words("Twenty five apples, 1,250.00 x² and 小明, naïve Émile")
    assert len(words) == 12
    assert len(without_numbers(words)) == 9
    assert ngrams(words, 3)[4] == ngrams(words[4:7], 3)[0]
    assert len(ngrams(words, 13)) == 0


def test_what_is_dropped_is_counted_with_its_reason_and_names_what_it_repeats(write: Write, chat: Chat) -> None:
    other = [row(f"What is {n} times {n + 9}?", f"It is {n * (n + 9)}.", n * (n + 9)) for n in range(2, 6)]
    rows = [row(), *other, row(), row(QUESTION.replace("market", "shop")), row(PROBLEMS[2][1], "十加四是十四", 10)]
    problems = write([{"id": 1, "type": "math", "prompt": PROBLEMS[2][1]}, {"id": 2}], "problems.jsonl")
    prepared = prepare(config_of(write(rows), deduplicate=True, decontaminate=[problems]), chat)
    source = prepared.report.sources[0]
    assert source.dropped == {"exact duplicate": [6], "near duplicate": [7], "in the evaluation data": [8]}
    assert [(at, earlier.rpartition("/")[2]) for at, earlier in source.repeats] == [
        (6, "rows.jsonl:1"),
        (7, "rows.jsonl:1"),
    ]
    assert source.problems == [(8, f"{problems}:1", 0, True)]
    assert rows_of(prepared) == prepared.rows[0] == [1, 2, 3, 4, 5]
    assert source.read == source.kept + source.dropped_count


def test_a_row_is_kept_once_in_a_mixture(write: Write, chat: Chat) -> None:
    first, second = write([row(), row("1 + 1?", "2.", 2)], "a.jsonl"), write([row(), row("2 + 2?", "4.", 4)], "b.jsonl")
    report = prepare(config_of([{"source": first}, {"source": second}], deduplicate=True), chat).report
    assert [source.dropped for source in report.sources] == [{}, {"exact duplicate": [1]}]


def test_long_and_short_examples_of_one_file_are_two_sources(write: Write, chat: Chat) -> None:
    source = write([row(f"What is {n}?", "so " * n, n) for n in range(1, 41)])
    parts = [
        {"source": source, "weight": 4, "filter": {"max_tokens": 100}},
        {"source": source, "weight": 1, "filter": {"min_tokens": 101, "shortest": 3}},
    ]
    prepared = prepare(config_of(parts, sample=10, deduplicate=True), chat)
    short, long = prepared.report.sources
    assert (short.kept, long.kept) == (8, 2)
    assert short.lengths is not None
    assert long.lengths is not None
    assert short.lengths.longest <= 100 < long.lengths.shortest
    assert short.lengths.total + long.lengths.total == sum(map(len, prepared.train))
    above = short.dropped["more tokens than wanted"]
    assert set(long.dropped["fewer tokens than wanted"]) == set(range(1, 41)) - set(above)
    assert long.dropped["not among the shortest"] == above[3:]
    assert set(prepared.rows[1]) < set(above[:3])


def test_an_answer_is_right_by_the_scorer_against_the_gold_column(write: Write, chat: Chat) -> None:
    rows = [
        row(answer="1,080", reference="1080"),
        row(answer="0.5", reference=r"\frac{1}{2}"),
        row(answer="7", reference="8"),
        row(answer="7"),
        row(answer="B", reference="B", type="choice"),
    ]
    report = prepare(config_of(write(rows), filter={"right": True}), chat).report
    assert report.sources[0].dropped == {
        "answer differs from the gold answer": [3],
        "no gold answer to compare with": [4],
    }
    assert report.sources[0].unused == {}
    named = [row(answer="7", truth=7), row(answer="8", truth=7)]
    assert rows_of(prepare(config_of(write(named), filter={"right": "truth"}), chat)) == [1]


def test_the_reply_is_not_its_own_gold_answer(write: Write) -> None:
    rows = [
        {"question": "1 + 1?", "answer": "so\n#### 2"},
        {"question": "1 + 2?", "answer": "so\n#### 3", "reference": 3},
    ]
    data = config_of(write(rows), filter={"right": True}).data
    _, report = load_examples(data, Format(), 1, load=Load())
    assert report.dropped == {"no gold answer to compare with": 1}


def test_a_function_of_the_users_decides(
    write: Write, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "choosing.py").write_text(
        "from thinktune.data import RowFault\n"
        "def keep(row):\n"
        "    if row['level'] == 3: raise RowFault('too hard')\n"
        "    return row['level'] == 2 if row['level'] else None\n"
    )
    monkeypatch.chdir(tmp_path)
    source = write([row(level=level) for level in (1, 2, 3)])
    wanted = {"function": "choosing:keep"}
    report = prepare(config_of(source, filter=wanted), chat).report
    assert report.sources[0].dropped == {"refused by choosing:keep": [1], "too hard": [3]}
    with pytest.raises(ConfigError, match="returned None"):
        prepare(config_of(write([row(level=0)]), filter=wanted), chat)
    with pytest.raises(ConfigError, match=r"fails on row 1 of .*KeyError"):
        prepare(config_of(write([row()]), filter=wanted), chat)


def test_evaluation_data_without_a_question_is_refused_before_a_row_is_read(write: Write) -> None:
    problems = write([{"id": 1, "answer": "7"}], "problems.jsonl")
    with pytest.raises(DataError, match=r"no row of .*problems\.jsonl has a question"):
        load_examples(config_of(write([row()]), decontaminate=[problems]).data, Format(), 1, load=Load())


def test_what_is_written_is_trained_like_what_it_came_from(write: Write, chat: Chat, tmp_path: Path) -> None:
    rows = [row(f"What is {n} plus 1?", f"It is {n + 1}.", n + 1, reference=n + 1, note="ä") for n in range(8)]
    source = write([*rows, rows[3], row(answer="", reference=1)])
    config = config_of(source, deduplicate=True, filter={"right": True})
    out = tmp_path / "kept.jsonl"
    show(config, chat, Console(quiet=True), out=out)
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == rows
    again = prepare(config_of(str(out)), chat)
    assert sorted(tokens.input_ids for tokens in again.train) == sorted(
        tokens.input_ids for tokens in prepare(config, chat).train
    )
    card = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| 1 | exact duplicate | data.deduplicate |" in card
    assert "8 rows, as they were" in card
    for file, overwrite in ((out, False), (Path(source), True), (tmp_path / "kept.csv", False)):
        with pytest.raises(UsageError, match=r"--out|is there already"):
            show(config, chat, Console(quiet=True), out=file, overwrite=overwrite)
