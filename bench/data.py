"""Duplicates and contamination: the time and memory to find them, and the share of planted ones that is found.

    python bench/data.py                                              # 17,000 rows, 5,000 problems, all made up
    python bench/data.py --rows train.jsonl --problems test.jsonl     # plant in real ones instead

Rows have the format of Bespoke-Stratos-17k; their thoughts have 2,300 words in the median and 3,000 on average, about
52 million words in all. Each kind is planted `--planted` times. Rows that were dropped and not planted are counted,
too: of made-up rows there should be none, of real ones they are printed, to be judged.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from thinktune.config import Data, Format, Load
from thinktune.data import load_examples
from thinktune.data.cleaning import Cleaning
from thinktune.data.report import SourceReport

Row = dict[str, Any]
REPLY = (
    "<|begin_of_thought|>\n\n{}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n"
    "The answer is \\boxed{{{}}}.\n\n<|end_of_solution|>"
)
IN_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


class Writer:
    """Makes up text: 20,000 words, used as often as those of a language (Zipf), and numbers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        syllables = [first + second for first in "bdfgklmnprstvw" for second in ("a", "e", "i", "o", "u", "en", "ar")]
        self.words = ["".join(self.random.choices(syllables, k=self.random.randint(1, 4))) for _ in range(20_000)]
        self.weights = [1 / (rank + 3) for rank in range(len(self.words))]

    def text(self, words: int) -> str:
        drawn = self.random.choices(self.words, self.weights, k=words)
        for at in range(self.random.randrange(10), words, 10):
            drawn[at] = str(self.random.randint(2, 5000))
        ends = range(self.random.randint(8, 16), words, 12)
        for at in ends:
            drawn[at] += "."
        return " ".join(drawn)

    def row(self) -> Row:
        thought = self.text(max(60, int(self.random.lognormvariate(7.74, 0.72))))
        return stratos(self.text(self.random.randint(25, 120)), REPLY.format(thought, self.random.randint(1, 9999)))


def stratos(question: str, reply: str) -> Row:
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": reply}]
    return {"system": "Think first, then answer.", "conversations": turns}


def parts(row: Row) -> tuple[str, str]:
    question, reply = (turn["value"] for turn in row["conversations"])
    return question, reply


def change_word(row: Row, rng: random.Random) -> Row:
    """Put another word in the place of one, in question or thought."""
    question, reply = parts(row)
    begin, end = reply.index("\n\n") + 2, reply.index("<|end_of_thought|>")
    text = f"{question}\x00{reply[begin:end]}"
    words = [found.span() for found in re.finditer(r"[A-Za-z]{2,}", text)]
    first, last = rng.choice(words)
    question, thought = (text[:first] + "quite" + text[last:]).split("\x00")
    return stratos(question, reply[:begin] + thought + reply[end:])


def reorder(row: Row, rng: random.Random) -> Row:
    """Shuffle the sentences of the thought, and those of the question but for its last."""
    question, reply = parts(row)
    *sentences, last = re.split(r"(?<=[.?!])\s+", question)
    rng.shuffle(sentences)
    begin, end = reply.index("\n\n") + 2, reply.index("\n\n<|end_of_thought|>")
    thought = re.split(r"(?<=[.?!])\s+|\n+", reply[begin:end])
    rng.shuffle(thought)
    return stratos(" ".join([*sentences, last]), reply[:begin] + "\n".join(thought) + reply[end:])


def other_numbers(question: str, rng: random.Random) -> str:
    return re.sub(r"\d+(?:[.,]\d+)*", lambda found: str(rng.randint(2, 9999)), question)


def numbers_in_words(question: str, rng: random.Random) -> str:
    return re.sub(r"\d+(?:[.,]\d+)*", lambda found: rng.choice(IN_WORDS), question)


DUPLICATES: dict[str, Callable[[Row, random.Random], Row]] = {
    "exact": lambda row, rng: row,
    "one word changed": change_word,
    "reordered": reorder,
}
CONTAMINATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "verbatim": lambda question, rng: question,
    "verbatim, in a longer prompt": lambda question, rng: f"Read this, and then solve it. {question} Explain.",
    "other numbers": other_numbers,
    "numbers in words": numbers_in_words,
}


def plant(rows: list[Row], problems: list[Row], count: int, rng: random.Random) -> list[tuple[str, Row]]:
    """Return rows with the kind of each, "" for those that were there: what is planted lies behind its original."""
    planted = [("", row) for row in rows]
    originals = rng.sample(rows, min(len(rows), count * len(DUPLICATES)))
    for at, row in enumerate(originals):
        kind = list(DUPLICATES)[at % len(DUPLICATES)]
        planted.append((kind, DUPLICATES[kind](row, rng)))
    for at, problem in enumerate(rng.choices(problems, k=count * len(CONTAMINATIONS))):
        kind = list(CONTAMINATIONS)[at % len(CONTAMINATIONS)]
        reply = parts(rng.choice(rows))[1]
        planted.append((kind, stratos(CONTAMINATIONS[kind](parts(problem)[0], rng), f"{reply} ")))
    return planted


def make(folder: Path, arguments: argparse.Namespace) -> None:
    """Write rows.jsonl, problems.jsonl and kinds.json."""
    rng = random.Random(arguments.seed)
    rows = list(read(arguments.rows)) if arguments.rows else []
    problems = list(read(arguments.problems)) if arguments.problems else []
    if not rows:
        writer = Writer(arguments.seed)
        planted = arguments.planted * (len(DUPLICATES) + len(CONTAMINATIONS))
        rows = [writer.row() for _ in range(arguments.count - planted)]
        problems = [stratos(writer.text(writer.random.randint(20, 90)), REPLY.format("so", 1)) for _ in range(5000)]
    planted_rows = plant(rows, problems, arguments.planted, rng)
    for name, records in (("rows", [row for _, row in planted_rows]), ("problems", problems)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "kinds.json").write_text(json.dumps([kind for kind, _ in planted_rows]))


def read(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def measure(folder: Path) -> tuple[SourceReport, dict[str, float]]:
    """Return the report, and seconds of processor time; nearly all of it is of one thread."""
    data = Data(source=str(folder / "rows.jsonl"), deduplicate=True, decontaminate=[str(folder / "problems.jsonl")])
    started = time.process_time()
    plain = data.model_copy(update={"deduplicate": False, "decontaminate": []})
    examples, _ = load_examples(plain, Format(), 1, load=Load())
    examples.sort(key=lambda example: example.row)
    read_at = time.process_time()
    report = SourceReport(str(data.source))
    cleaning = Cleaning(data, 1, Load())
    indexed_at = time.process_time()
    cleaning.drop_known(examples, report)
    done = time.process_time()
    return report, {
        "seconds: read": read_at - started,
        "index the problems": indexed_at - read_at,
        "search": done - indexed_at,
        "GiB at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="rows of Stratos' format to plant in")
    parser.add_argument("--problems", type=Path, help="evaluation data, of the same format")
    parser.add_argument("--count", type=int, default=17_000, help="made-up rows, planted ones included")
    parser.add_argument("--planted", type=int, default=200, help="rows of each kind")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if (arguments.rows is None) != (arguments.problems is None):
        parser.error("--rows and --problems go together")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        maker = get_context("spawn").Process(target=make, args=(folder, arguments))  # its memory is not measured
        maker.start()
        maker.join()
        kinds: list[str] = json.loads((folder / "kinds.json").read_text())
        report, figures = measure(folder)
        size = (folder / "rows.jsonl").stat().st_size
    print(f"{len(kinds):,} rows, {size / 2**20:,.0f} MiB")
    for name, value in figures.items():
        print(f"  {name:24}{value:8.2f}")
    found = Counter(kinds[row - 1] for rows in report.dropped.values() for row in rows)
    for kind, planted in Counter(kinds).items():
        if kind:
            print(f"  {kind:32}{found[kind]:6} of {planted} found")
    print(f"  {'dropped, and not planted':32}{found['']:6}")
    if arguments.rows:
        for row, problem, words, numbers in report.problems:
            if not kinds[row - 1]:
                print(f"    row {row} has problem {problem.rpartition(':')[2]}: {words} words, numbers {numbers}")
        for row, other in report.repeats:
            if not kinds[row - 1]:
                print(f"    row {row} repeats row {other.rpartition(':')[2]}")


if __name__ == "__main__":
    main()
