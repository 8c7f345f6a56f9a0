"""Runs side by side: what is read from their folders, and which differences are called real."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from thinktune.cli import app
from thinktune.errors import DataError, RunFolderError
from thinktune.evaluation.ratings import Rating, Ratings
from thinktune.evaluation.significance import wilson
from thinktune.evaluation.suites import BenchmarkScores
from thinktune.files import write_json_lines
from thinktune.records import read_records
from thinktune.report.compare import Comparison, compare, sentences
from thinktune.report.first_screen import headline
from thinktune.report.translations import in_chinese
from thinktune.studio.study import study_of_scores
from thinktune.tags import INSTRUCTION

GOOD = "<think>so</think> <answer>{}</answer>"


def write_run(folder: Path, *, tuned: str, base: str | None = None, completion: str = GOOD, **settings: Any) -> Path:
    """A run folder as training and evaluation leave it; a letter of `tuned` is r for right, w for wrong."""
    folder.mkdir(parents=True)
    lora = {"r": 4, "alpha": 8, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": "m", "lora": lora, "output": str(folder)}))
    record = {
        "model": "m",
        "system": None,
        "seed": 1,
        "versions": {"torch": "2"},
        "hardware": {"cpu": "a CPU", "device": "cpu"},
        "dtype": "float32",
        "steps": 2,
        "epochs": 1.0,
        "trainable_parameters": 1234,
        "parameters": 5000,
        "tokens": 200,
        "trained_tokens": 100,
        "train_seconds": 90.0,
        "tokens_per_second": 2.2,
        "peak_memory_gib": 0.5,
        "final_loss": 1.25,
    }
    (folder / "run.json").write_text(json.dumps(record))
    steps = [{"step": step, "loss": 3.0 / step, "grad_norm": 1.0, "learning_rate": 1e-3} for step in (1, 2)]
    scored = {"step": 2, "eval_format_rate": 0.5, "eval_accuracy": 0.25, "eval_samples": 4}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*steps, scored]))
    for name, outcomes in (("tuned", tuned), ("base", base)):
        if outcomes is not None:
            write_scores(folder / "eval" / name, outcomes, completion)
    return folder


def write_scores(folder: Path, outcomes: str, completion: str = GOOD, **changes: Any) -> None:
    """`changes` of the lines' fields: a function of the row each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "source": "s",
            "row": row,
            "sample": 0,
            "prompt": f"What is {row}?",
            "completion": completion.format(row if letter == "r" else "no"),
            "reference": str(row),
            "outcome": "right" if letter == "r" else "wrong",
            "correct": letter == "r",
            "lenient": letter == "r",
            "format_problem": None,
            "error": None,
            "note": None,
            "tokens": 5,
        }
        | {name: change(row) for name, change in changes.items()}
        for row, letter in enumerate(outcomes, start=1)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rate = wilson(outcomes.count("r"), len(outcomes))
    summary: dict[str, Any] = {"n": len(lines), "told_format": folder.name == "base"}
    for name in ("format_rate", "accuracy", "accuracy_lenient"):
        summary |= {name: rate.value, f"{name}_interval": [rate.low, rate.high]}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_a_comparison_reads_cost_scores_settings_and_the_base_model(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "r=4", tuned="r" * 20 + "w" * 10, base="w" * 30),
        write_run(tmp_path / "r=8", tuned="r" * 21 + "w" * 9, base="w" * 30, r=8),
    ]
    comparison = compare(runs)
    assert [each.name for each in comparison.candidates] == ["base", "r=4", "r=8"]
    assert comparison.differing == {"lora.r": [4, 8]}
    real = {(each.first, each.second): each.real for each in comparison.pairs}
    assert real == {("base", "r=4"): True, ("base", "r=8"): True, ("r=4", "r=8"): False}
    said = list(sentences(comparison))
    assert said[0].startswith("r=8 is better than base by 70.0 points (95% interval ")
    assert said[2].startswith("r=8 is 3.3 points above r=4, which may be luck")
    assert "p adjusted for 3 comparisons" in said[3]


def test_p_values_are_adjusted_for_the_number_of_comparisons(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", tuned="r" * 9 + "w" * 21),
        write_run(tmp_path / "b", tuned="r" * 15 + "w" * 15),
        write_run(tmp_path / "c", tuned="r" * 15 + "w" * 15),
    ]
    pairs = compare(runs).pairs
    assert [pair.difference.p for pair in pairs] == [0.03125, 0.03125, 1.0]
    assert [pair.p for pair in pairs] == [0.09375, 0.09375, 1.0]
    assert not any(pair.real for pair in pairs)
    assert compare(runs[:2]).pairs[0].real


def test_what_would_settle_a_comparison_is_said(tmp_path: Path) -> None:
    comparison = compare([write_run(tmp_path / "run", tuned="r" * 12 + "w" * 18, base="r" * 8 + "w" * 22)])
    (pair,) = comparison.pairs
    assert (pair.verdict, pair.needed and pair.needed.problems) == ("not known", 23)
    assert list(sentences(comparison)) == [
        "run is 13.3 points above base, which may be luck: they cannot be told apart (95% interval -0.5 to 25.5; "
        "p = 0.125; 30 problems); 23 more problems would show a difference of 13.3 points"
    ]
    assert comparison.as_dict()["differences"][0]["verdict"] == "not known"
    (settled,) = compare([write_run(tmp_path / "other", tuned="r" * 30, base="w" * 30)]).pairs
    assert (settled.verdict, settled.needed) == ("better", None)


def test_what_would_settle_one_of_many_comparisons_counts_their_number(tmp_path: Path) -> None:
    # One of these alone would be real. Beside the others it is not, and a single problem more would not change that.
    runs = [write_run(tmp_path / name, tuned="r" * right + "w" * (60 - right)) for name, right in NEAR.items()]
    (alone,) = compare([runs[0], runs[-1]]).pairs
    assert alone.real
    (pair,) = (each for each in compare(runs).pairs if {each.first, each.second} == {"a", "d"})
    assert not pair.real
    assert pair.needed is not None
    assert pair.needed.problems is not None
    assert pair.needed.problems > 20


NEAR = {"a": 20, "b": 21, "c": 21, "d": 27}


def test_the_test_that_was_used_is_named_and_so_are_other_samplings_and_scorers(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, tuned="rrrw" * 5, base="w" * 20) for name in ("a", "b")]
    rewrite(runs[1], "rrrw" * 5, sample=lambda row: row % 2, prompt=lambda row: f"What is {(row + 1) // 2}?",
            reference=lambda row: str((row + 1) // 2))  # fmt: skip
    for run, changes in zip(runs, ({}, {"temperature": 0.8, "n": 2}), strict=True):
        file = run / "eval/tuned/summary.json"
        sampling = {"n": 1, "temperature": 0.0, "top_p": 1.0, "max_tokens": 64, "think_budget": None, **changes}
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"sampling": sampling, "scorer": f"math {len(changes)}"})
        )
    comparison = compare(runs)
    said = list(sentences(comparison))
    assert any("exact McNemar test or randomisation test, p adjusted" in each for each in said)
    assert [note for note in comparison.notes if "other s" in note] == [
        "a and b were asked with other settings: n 1 and 2, temperature 0.0 and 0.8",
        "a and b were scored by other scorers: math 0 and math 2",
    ]
    assert all(in_chinese(each) for each in said)


def test_a_model_whose_completions_failed_is_not_worse_for_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", tuned="r" * 20, base="w" * 20)
    write_scores(run / "eval/base", "w" * 20, error=lambda row: "the server is gone" if row > 1 else None)
    comparison = compare([run])
    assert [pair.difference.n for pair in comparison.pairs] == [1]
    assert comparison.pairs[0].verdict == "not known"
    assert comparison.notes[0] == "19 completions of base failed: they are left out of the comparisons"
    assert in_chinese(comparison.notes[0])


def test_problems_that_are_enough_for_the_smallest_difference_are_said_to_be(tmp_path: Path) -> None:
    said = list(sentences(compare([write_run(tmp_path / "a", tuned="r" + "w" * 999, base="w" * 1000)])))
    assert said[0].endswith(
        "; 1,000 problems); so many would have shown a difference of 1.0 points, four times in five"
    )
    assert "五次中有四次" in str(in_chinese(said[0]))


def test_the_first_sentence_has_the_shares_of_the_problems_that_both_were_given(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", tuned="r" * 20 + "w" * 80, base="w" * 10 + "r" * 10)
    said = headline(compare([run], ["tuned"]))
    assert said["en"].startswith("Better: tuned has 100.0% of 20 problems right, base 50.0% (+50.0 points")
    assert said["zh"].startswith("更好：20 道题中，tuned 答对 100.0%，base 答对 50.0%")
    others = rewrite(write_run(tmp_path / "b", tuned="r", base="rw"), "r", prompt=lambda row: "Another?")
    assert headline(compare([others], ["tuned"]))["en"] == (
        "tuned has 100.0% of 1 problems right, base 50.0% of 2: not compared."
    )
    shutil.rmtree(run / "eval" / "tuned")
    assert headline(compare([run], ["tuned"]))["en"] == "Trained; not scored yet."


def test_benchmarks_are_better_worse_or_not_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "mine", tuned="r")
    shutil.rmtree(run / "eval")
    for folder, outcomes in ((tmp_path / "runs" / "m", "rrrw" * 10), (run, "rrww" * 10)):
        write_benchmark(folder / "suites", "first", outcomes)
        write_benchmark(folder / "suites", "second", outcomes[::-1] if folder == run else "w" * 40)
        write_benchmark(folder / "suites", "third", "rw", max_tokens=64 if folder == run else 32)
    write_benchmark(run / "suites", "fourth", "r")
    comparison = compare([run])
    assert [each.name for each in comparison.candidates] == ["base", "mine"]
    assert comparison.notes == []
    benchmarks = comparison.benchmarks
    assert benchmarks.rows() == [
        ("FIRST", ["75.0% (60–86)", "50.0% (35–65), worse"]),
        ("SECOND", ["0.0% (0–9)", "50.0% (35–65), better"]),
        ("THIRD", ["50.0% (9–91)", "50.0% (9–91), not known"]),
        ("FOURTH", ["not run", "100.0% (21–100)"]),
    ]
    assert benchmarks.verdicts("mine") == {"worse": 1, "better": 1, "not known": 1}
    said = list(sentences(comparison))
    assert said[0].startswith("FIRST: mine is worse than base by 25.0 points")
    assert said[-1] == "THIRD: base and mine were asked with other settings: max_tokens 32 and 64"
    result = CliRunner().invoke(app, ["compare", str(run), "-o", str(tmp_path / "out")], catch_exceptions=False)
    assert "benchmarks, with 95% intervals" in result.stdout
    assert "THIRD" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_model_that_was_only_scored_is_compared_by_its_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", tuned="r" * 8, base="w" * 8)
    write_benchmark(run / "suites", "first", "r" * 40)
    write_benchmark(tmp_path / "teacher" / "suites", "first", "w" * 40)
    comparison = compare([run, tmp_path / "teacher"])
    assert [each.name for each in comparison.candidates] == ["base", "teacher", "mine"]
    assert comparison.benchmarks.rows() == [("FIRST", ["not run", "0.0% (0–9)", "100.0% (91–100), better"])]


def write_benchmark(suites: Path, name: str, outcomes: str, **sampling: Any) -> None:
    """Write scores on a benchmark; a letter is r for right, w for wrong."""
    write_scores(suites / name, outcomes)
    rate = wilson(outcomes.count("r"), len(outcomes))
    summary = BenchmarkScores(
        benchmark=name, title=name.upper(), model="m", fingerprint="f", problems=len(outcomes), of=len(outcomes), n=1,
        accuracy=rate, measures={}, cut_off=0.0, well_formed=1.0, mean_tokens=5.0, tokens_per_second=None, seconds=0.0,
        sampling={"n": 1, **sampling}, changed=[], asked="alone", scorer="s",
    )  # fmt: skip
    (suites / name / "summary.json").write_text(json.dumps(summary.as_dict()))


def test_runs_scored_on_other_problems_are_compared_on_those_they_share(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", tuned="r" * 30), write_run(tmp_path / "b", tuned="r" * 20)]
    comparison = compare(runs)
    assert comparison.pairs[0].difference.n == 20
    assert comparison.notes == ["a and b are compared on the 20 problems that both were given"]


def test_a_run_that_was_not_scored_is_shown_and_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", tuned="r")
    shutil.rmtree(run / "eval")
    comparison = compare([run, write_run(tmp_path / "b", tuned="rw")])
    assert comparison.notes == ["a was not scored"]
    assert comparison.pairs == []


def test_a_folder_that_is_no_whole_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run folder"):
        compare([tmp_path])
    run = write_run(tmp_path / "a", tuned="r")
    (run / "run.json").unlink()
    with pytest.raises(RunFolderError, match="not trained to its end"):
        compare([run])


def test_runs_of_the_same_name_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / parent / "r=4", tuned="r") for parent in ("one", "two")]
    assert [each.name for each in compare(runs).candidates] == ["one/r=4", "two/r=4"]


def test_peoples_ratings_stand_beside_the_scores(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs/a", tuned="r" * 6, base="w" * 6)
    kept = Ratings(tmp_path / "ratings.sqlite")
    for row in range(1, 7):
        kept.add(Rating("ann", f"s:{row}", "m", str(run), "second"))
    kept.add(Rating("ann", "s:1", "m", "another", "first"))
    comparison = compare([run], ratings=tmp_path / "ratings.sqlite")
    assert comparison.judged is not None
    assert comparison.judged.win_rates == {("a", "base"): wilson(0, 6)}
    assert comparison.judged.with_scores == wilson(6, 6)
    said = list(sentences(comparison))
    assert f"a is preferred to base: {wilson(6, 6)}" in said
    assert said[-1] == "1 of 7 ratings are of other models"
    result = CliRunner().invoke(app, ["report", str(run), "--ratings", str(tmp_path / "ratings.sqlite")])
    assert result.exit_code == 0
    assert "tuned is preferred to base: 100.0%" in (run / "report.html").read_text(encoding="utf-8")
    with pytest.raises(DataError, match="no file of ratings"):
        compare([run], ratings=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_the_studios_ratings_of_several_samples_count_problems_and_are_set_beside_the_scores(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", tuned="r" * 6, base="w" * 6)
    samples: dict[str, Any] = {
        "sample": lambda n: n % 2,
        "row": lambda n: (n + 1) // 2,
        "prompt": lambda n: f"What is {(n + 1) // 2}?",
    }
    write_scores(run / "eval/tuned", "r" * 6, **samples)
    write_scores(run / "eval/base", "w" * 6, **samples)
    study = study_of_scores(tmp_path / "studio/studies/s", [run], seed=1)
    for rater in ("ann", "bob"):
        for question in study.questions:
            study.ratings.add(Rating(rater, question.id, "a", "base of a", "first"))
    for judged in (compare([run]).judged, compare([run], ratings=study.folder / "ratings.sqlite").judged):
        assert judged is not None
        assert (judged.ratings, judged.items) == (12, 6)
        assert judged.win_rates == {("a", "base"): wilson(0, 3)}
        assert judged.with_scores == wilson(3, 3)
    assert study.results()["wins"] == [("a", "base of a", wilson(3, 3))]


def test_the_verb_prints_a_table_or_json_and_writes_a_page_and_a_plot(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name, tuned="r" * 9 + "w", base="w" * 10)) for name in ("a", "b")]
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["compare", *runs, "--out", str(out)])
    assert result.exit_code == 0
    assert "1,234" in result.stdout
    assert "90.0% (60–98)" in result.stdout
    assert (out / "report.html").exists()
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    printed = json.loads(CliRunner().invoke(app, ["compare", *runs, "--out", str(out), "--json"]).stdout)
    assert printed == json.loads((out / "comparison.json").read_text())
    assert [each["real"] for each in printed["differences"]] == [True, True, False]


def test_a_completion_may_hold_line_separators_of_unicode(tmp_path: Path) -> None:
    lines = [{"completion": "one\u2028two\u0085three\u2029four\rfive"}, {"completion": "next"}]
    write_json_lines(tmp_path / "samples.jsonl", lines)
    assert read_records(tmp_path / "samples.jsonl", dict[str, Any]) == lines


def rewrite(run: Path, outcomes: str, **changes: Any) -> Path:
    write_scores(run / "eval/tuned", outcomes, **changes)
    return run


def shared(comparison: Comparison) -> int:
    (pair,) = comparison.pairs
    return pair.difference.n


def test_problems_are_paired_by_what_they_ask_and_not_by_where_they_stand(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", tuned="rrrwww")
    moved = write_run(tmp_path / "b", tuned="r")
    rewrite(
        moved,
        "wwwrrr",  # the same problems the other way round: each comes out as before
        source=lambda row: "elsewhere.jsonl",
        prompt=lambda row: f"What is {7 - row}?\n\n{INSTRUCTION}",
        reference=lambda row: str(7 - row),
    )
    comparison = compare([first, moved])
    assert (shared(comparison), comparison.pairs[0].difference.gained, comparison.pairs[0].difference.lost) == (6, 0, 0)
    assert comparison.notes == []
    page = CliRunner().invoke(app, ["compare", str(first), str(moved), "--out", str(tmp_path / "out")])
    assert page.exit_code == 0
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "not asked" not in html
    assert "s, row 1 / elsewhere.jsonl, row 6" in html


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"prompt": lambda row: f"How much is {row}?"}, 0),
        ({"prompt": lambda row: f"What is {row + 10 * (row > 4)}?"}, 4),
        ({"reference": lambda row: str(row + 10 * (row > 4))}, 4),
        ({"type": lambda row: "math" if row <= 4 else "choice"}, 4),
        ({"row": lambda row: row + 1}, 6),
        ({"prompt": lambda row: f"  What is {row}?\n"}, 6),
    ],
)
def test_problems_of_equal_places_that_differ_are_not_paired_and_said(
    changes: dict[str, Any], left: int, tmp_path: Path
) -> None:
    runs = [write_run(tmp_path / "a", tuned="r" * 6), rewrite(write_run(tmp_path / "b", tuned="w"), "w" * 6, **changes)]
    comparison = compare(runs)
    said = " ".join(comparison.notes)
    assert ("other questions or references" in said) == (left < 6)
    assert ("nothing to compare" in said) == (left == 0)
    assert [pair.difference.n for pair in comparison.pairs] == ([left] if left else [])


def test_a_problem_that_is_given_again_counts_once(tmp_path: Path) -> None:
    twice = {"prompt": lambda row: f"What is {(row + 1) // 2}?", "reference": lambda row: str((row + 1) // 2)}
    scored = {"a": "rrrrww", "b": "rwwwww"}
    runs = [rewrite(write_run(tmp_path / name, tuned="r"), outcomes, **twice) for name, outcomes in scored.items()]
    comparison = compare(runs)
    assert shared(comparison) == 3
    assert comparison.pairs[0].difference.value == pytest.approx(-0.5)
    assert comparison.notes[0] == "a was given 3 problems again: each problem counts once, with its mean"


def test_samples_of_a_result_file_are_paired_by_their_ids(tmp_path: Path) -> None:
    runs = []
    for name, scored in (("a", "rrw"), ("b", "wwwr")):
        run = write_run(tmp_path / name, tuned="r")
        lines = [
            {"id": str(n), "type": "math", "sample": 0, "completion": "x", "reference": "1", "outcome": "right",
             "correct": each == "r", "error": None}
            for n, each in enumerate(scored)
        ]  # fmt: skip
        write_json_lines(run / "eval/tuned/samples.jsonl", lines)
        (run / "eval/tuned/summary.json").write_text('{"types": {}}')
        runs.append(str(run))
    result = CliRunner().invoke(app, ["compare", *runs, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert "a and b are compared on the 3 problems that both were given" in result.stdout


def test_a_run_without_scores_has_no_zeros_anywhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", tuned="r")
    shutil.rmtree(run / "eval")
    out = tmp_path / "out"
    arguments = ["compare", str(run), str(write_run(tmp_path / "b", tuned="rw")), "--out", str(out)]
    result = CliRunner().invoke(app, arguments, terminal_width=200)
    assert result.exit_code == 0
    assert " 0.0%" not in result.stdout
    assert "not scored" in result.stdout
    html = (out / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<td>[^/]*right<.*</td><td>not scored</td><td>1</td>", html)
    assert "<td>0</td>" not in html
    assert json.loads((out / "comparison.json").read_text())["candidates"][0]["scores"] is None
