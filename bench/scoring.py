"""How long scoring takes, and whether hostile answers are held: one table.

    python bench/scoring.py                       # 1,000 pairs of mathematics, 200 hostile ones
    python bench/scoring.py --gold gold.jsonl     # and each reference of a gold file against itself and another's

Half of the 1,000 go to math-verify. Of the hostile ones every fifth is an answer that is right however it is wrapped.
Times are by the clock; a pair's time is that of the whole score, strict and lenient.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from thinktune.evaluation.predictions import read_gold
from thinktune.scoring import TASKS, Score

Pair = tuple[str, str, bool]
"""Reference, answer, and whether they are equal."""


def usual_pairs(count: int) -> Iterator[Pair]:
    """Numbers, fractions, expressions, intervals, sets and roots, right and wrong by turns."""
    makers: tuple[Callable[[int], tuple[str, str, str]], ...] = (
        lambda n: (str(1000 + n), f"${1000 + n:,}.00", str(1001 + n)),
        lambda n: (rf"\frac{{{n}}}{{{n + 1}}}", f"{n}/{n + 1}", f"{n}/{n + 2}"),
        lambda n: (f"{n}x+{n + 1}", f"{n + 1} + {n} x", f"{n}x+{n}"),
        lambda n: (f"({n}, {n + 5}]", rf"\left({n},{n + 5}\right]", f"[{n}, {n + 5})"),
        lambda n: (rf"\{{{n},{n + 2}\}}", rf"\{{{n + 2}, {n}\}}", rf"\{{{n},{n + 3}\}}"),
        lambda n: (rf"{n}\sqrt{{2}}", rf"\sqrt{{{2 * n * n}}}", rf"\sqrt{{{2 * n * n + 1}}}"),
        lambda n: (f"{n}%", f"{n}\\%", f"{n + 1}%"),
        lambda n: (f"(x+{n})^2", f"x^2+{2 * n}x+{n * n}", f"x^2+{n * n}"),
    )
    for at in range(count):
        reference, same, other = makers[at % len(makers)](2 + at // len(makers))
        yield (reference, same, True) if at // len(makers) % 2 else (reference, other, False)


def hostile_pairs(count: int) -> Iterator[Pair]:
    """Answers that hang parsers, fill memory or are no mathematics at all; every fifth is right."""
    makers: tuple[Callable[[int], str], ...] = (
        lambda n: "^{".join(["9"] * (4 + n % 8)) + "}" * (3 + n % 8),
        lambda n: "{" * (5 + n) + "7" + "}" * (5 + n),
        lambda n: r"\frac{" * (3 + n) + "1",
        lambda n: f"{10 + n}^{{{10 ** (6 + n % 4)}}}",
        lambda n: r"\sqrt{" * (2 + n) + "x" + "}" * (2 + n),
        lambda n: f"{10 ** (3 + n % 4)}!" * (1 + n % 3),
        lambda n: "(" + "+".join(f"x_{{{i}}}" for i in range(4 + n % 9)) + f")^{{{20 + n}}}",
        lambda n: rf"\sum_{{k=1}}^{{{10 ** (3 + n % 5)}}} \frac{{1}}{{k^{{{1 + n}}}}}",
        lambda n: rf"\int_0^{{{n + 1}}} x^{{x^{{x}}}} \sin(x^{{{n}}}) dx",
        lambda n: "9" * (100 + 20 * n),
        lambda n: "(((x^{x})^{33})^{3})" * (1 + n) + "^{" * n,
        lambda n: r"\left(" * (n + 1) + "x" + r"\right]" * n,
        lambda n: r"\begin{pmatrix}" + "&".join(["x^{99}"] * (5 + n)) + r"\end{matrix}",
        lambda n: "1" + "+1" * (100 + 10 * n),
        lambda n: rf"\prod_{{i=1}}^{{{10 ** (2 + n % 6)}}} (1+\frac{{x}}{{i}})",
        lambda n: "x=" * (n + 2) + "\x00\u202e" * n,
    )
    for at in range(count):
        if at % 5:
            number = at - at // 5 - 1
            yield ("x^2+1", makers[number % len(makers)](number // len(makers)), False)
        else:
            yield (f"x+{at}", rf"\boxed{{{at} + x}}", True)


def score(pairs: Sequence[Pair]) -> tuple[list[float], list[tuple[Pair, Score]], float]:
    """Seconds of each, those judged otherwise than they are, seconds of all together."""

    def one(pair: Pair) -> tuple[float, Score]:
        started = time.monotonic()
        reference, answer, _ = pair
        text = f"<think>so</think> <answer>{answer}</answer>"
        found = TASKS["math"].score(text, {"reference": reference}, "stop")
        return time.monotonic() - started, found

    started = time.monotonic()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = list(pool.map(one, pairs))
    seconds = time.monotonic() - started
    wrong = [(pair, result) for pair, (_, result) in zip(pairs, found, strict=True) if result.correct != pair[2]]
    return [each for each, _ in found], wrong, seconds


def score_gold(file: Path) -> None:
    """Each reference as a well-formed answer to its own item (all right), and to the next different one (none)."""
    records = list(read_gold(file).values())
    for kind in dict.fromkeys(record["type"] for record in records):
        items = [record for record in records if record["type"] == kind]
        shifted = [
            next((other for other in items[at + 1 :] + items[:at] if other["reference"] != each["reference"]), each)
            for at, each in enumerate(items)
        ]
        own, others = (count_right(items, answers) for answers in (items, shifted))
        print(f"{kind}: {own} of {len(items)} right with their own reference, {others} with another's", flush=True)


def count_right(items: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> int:
    def one(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> bool:
        item, answer = pair
        text = f"<think>so</think> <answer>{answer['reference']}</answer>"
        return bool(TASKS[item["type"]].score(text, item, "stop").correct)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return sum(pool.map(one, zip(items, answers, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gold", type=Path)
    arguments = parser.parse_args()
    for name, pairs in (("usual", list(usual_pairs(1000))), ("hostile", list(hostile_pairs(200)))):
        load = os.getloadavg()[0]
        each, wrong, seconds = score(pairs)
        print(
            f"{name}: {len(pairs)} pairs in {seconds:.1f} s, the slowest {max(each):.2f} s, {len(wrong)} misjudged; "
            f"load {load:.1f} to {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        for (reference, answer, _), result in wrong[:10]:
            print(f"  {reference!r} {answer[:60]!r}: {result.outcome}, {result.note}")
        for reason, count in Counter(result.note for _, result in wrong if result.note).most_common():
            print(f"  {count} x {reason}")
    if arguments.gold:
        score_gold(arguments.gold)


if __name__ == "__main__":
    main()
