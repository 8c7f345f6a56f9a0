"""Whether suites judge published solutions of GSM8K as their publishers did.

    git clone https://github.com/openai/grade-school-math
    python bench/verdicts.py grade-school-math/grade_school_math/data/example_model_solutions.jsonl

The file has, for each problem of the test set, a solution of four models with its verdict. One line is printed a model,
and then every solution that the two judge differently.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from thinktune.evaluation.significance import wilson
from thinktune.evaluation.suites.results import published_sample
from thinktune.scoring import TASKS

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def judge(solution: str, reference: str) -> dict[str, Any]:
    """Score a solution as a suite does."""
    score = TASKS["math"].score(solution, {"reference": reference}, "stop")
    return published_sample({"type": "math", "completion": solution, "finish_reason": "stop", **vars(score)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("solutions", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().solutions.read_text(encoding="utf-8").splitlines()]
    differing = []
    for model in MODELS:
        theirs = [row[model]["is_correct"] for row in rows]
        ours = [judge(row[model]["solution"], row["ground_truth"].rpartition("A: ")[2].strip()) for row in rows]
        other = [(row, line) for row, line, right in zip(rows, ours, theirs, strict=True) if line["correct"] != right]
        differing += [(model, row["question"][:60], line["extracted"], line["correct"]) for row, line in other]
        published, found = (wilson(sum(each), len(rows)) for each in (theirs, [line["correct"] for line in ours]))
        print(f"{model}: published {published}, ours {found}, {len(rows) - len(other)} of {len(rows)} judged alike")
    for each in differing:
        print(*each, sep=" | ")


if __name__ == "__main__":
    main()
