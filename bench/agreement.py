"""Whether our scorer of mathematics agrees with lm-evaluation-harness's gsm8k on the same completions.

    python bench/agreement.py SAMPLES…

SAMPLES are JSON lines with `completion` and `reference` (and `finish_reason`), as `thinktune eval` writes them. The
harness's filter (flexible-extract) and metric are its own, read from its gsm8k task. Like it, our lenient view forgives
the format; our strict view is compared on the well-formed completions. Every completion that the two judge differently
is printed, with what each took for the answer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from thinktune.scoring import TASKS


def harness_judges(texts: list[str], references: list[str]) -> list[tuple[str, bool]]:
    """What the harness extracts from each text, and whether it takes it for right."""
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters import build_filter_ensemble

    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8"))
    (flexible,) = (each for each in task["filter_list"] if each["name"] == "flexible-extract")
    steps = [[step.pop("function"), step] for step in flexible["filter"]]
    instances: list[Any] = [
        Instance("generate_until", {}, ("", {}), 0, ("gsm8k", at, 1), [text]) for at, text in enumerate(texts)
    ]
    build_filter_ensemble(flexible["name"], steps).apply(instances)
    found = [str(each.filtered_resps[flexible["name"]]) for each in instances]
    (metric,) = task["metric_list"]
    settings = {name: metric[name] for name in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    return [
        (answer, bool(exact_match_hf_evaluate([answer], [f"#### {reference}"], **settings)["exact_match"]))
        for answer, reference in zip(found, references, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="+", type=Path)
    for file in parser.parse_args().samples:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        theirs = harness_judges([line["completion"] for line in lines], [line["reference"] for line in lines])
        ours = [
            TASKS["math"].score(line["completion"], {"reference": line["reference"]}, line.get("finish_reason", "stop"))
            for line in lines
        ]
        judged = list(zip(lines, ours, theirs, strict=True))
        formed = [each for each in judged if each[1].outcome in ("right", "wrong")]
        for name, field, compared in (("leniently", "lenient", judged), ("strictly", "correct", formed)):
            differing = [each for each in compared if bool(getattr(each[1], field)) != each[2][1]]
            right, by_harness = (
                sum(bool(getattr(each[1], field)) for each in compared),
                sum(t[1] for _, _, t in compared),
            )
            print(
                f"{file.name}, {name}: {len(compared) - len(differing)} of {len(compared)} judged alike; "
                f"right by ours {right}, by the harness {by_harness}"
            )
            for line, our, (extracted, is_right) in differing:
                print(
                    f"  row {line.get('row', '?')}, reference {line['reference']!r}: the harness takes {extracted!r}, "
                    f"{'right' if is_right else 'wrong'}; ours {our.outcome}, {our.extracted!r}; "
                    f"ends {line['completion'][-80:]!r}"
                )


if __name__ == "__main__":
    main()
