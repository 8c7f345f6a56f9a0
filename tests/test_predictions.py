"""Result files made anywhere are scored against gold; what does not match is counted and listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from thinktune import cli
from thinktune.errors import DataError, MissingExtra, UsageError
from thinktune.evaluation.evaluate import evaluate_items
from thinktune.evaluation.metrics import _vote
from thinktune.evaluation.predictions import (
    read_gold,
    score_predictions,
)
from thinktune.evaluation.result_reader import read_result_file
from thinktune.inference.engines.base import Completion
from thinktune.scoring import TASKS, text_scorer
from thinktune.scoring.text_scorer import similarity

GOLD: list[dict[str, Any]] = [
    {"id": "m1", "type": "math", "reference": "1/2"},
    {"id": "m2", "type": "math", "reference": "7"},
    {"id": "m3", "type": "math", "reference": "8"},
    {"id": "m4", "type": "math", "reference": "9"},
    {"id": "c1", "type": "choice", "reference": "B"},
    {"id": "p1", "type": "code-generate", "reference": "", "test": "assert f(1) == 2", "entry_point": "f"},
    {"id": "g1", "type": "generic-generate", "reference": "今天天气很好，我们去公园。"},
]


def written(answer: str) -> str:
    return f"<think>a</think> <answer>{answer}</answer>"


CONTENTS: dict[str, Any] = {
    "m1": written("0.5"),
    "m2": written("6"),
    "c1": written("答案是B"),
    "p1": [written("def f(x): return x + 1"), written("def f(x): return x"), written("f = None")],
    "g1": written("今天天气很好，我们去公园。"),
    "x1": written("1"),
}


def write_gold(folder: Path) -> Path:
    file = folder / "gold.jsonl"
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in GOLD), encoding="utf-8")
    return file


def write_results(folder: Path) -> Path:
    results = [{"id": name, "content": content} for name, content in CONTENTS.items()]
    results += [{"id": "m3", "error": "out of memory"}]
    (folder / "res.json").write_text(json.dumps({"result": {"results": results}}), encoding="utf-8")
    return folder / "res.json"


def test_a_result_file_is_scored_by_type_and_mismatched_ids_are_listed(tmp_path: Path) -> None:
    scores = score_predictions(write_results(tmp_path), write_gold(tmp_path), tmp_path / "eval")
    mathematics, choice, code, text = scores.types.values()
    assert mathematics.outcomes == {"error": 2, "right": 1, "wrong": 1}
    assert mathematics.strict is not None
    assert mathematics.completed is not None
    assert (mathematics.n, mathematics.strict.value, mathematics.completed.value) == (4, 0.25, 0.5)
    assert choice.strict is not None
    assert choice.strict.value == 1
    assert code.measures == pytest.approx({"pass@1": 1 / 3, "pass@2": 2 / 3, "pass@3": 1.0})
    assert text.strict is None
    assert text.measures == pytest.approx({"bleu": 100, "chrf": 100})
    assert (scores.without_prediction, scores.without_gold) == (["m4"], ["x1"])
    assert scores.remarks() == [
        "1 gold items have no prediction and count as wrong: m4",
        "1 predictions have no gold and are not scored: x1",
    ]
    assert scores.table().row_count == 5 + 4 + 5  # rates, outcomes, pass@1 to 3, bleu and chrf


def test_what_was_scored_is_written_a_line_a_sample(tmp_path: Path) -> None:
    score_predictions(write_results(tmp_path), write_gold(tmp_path), tmp_path / "eval")
    lines = [json.loads(line) for line in (tmp_path / "eval/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["m1", "m2", "m3", "m4", "c1", "p1", "p1", "p1", "g1"]
    assert (lines[2]["outcome"], lines[2]["note"]) == ("error", "out of memory")
    assert (lines[3]["outcome"], lines[3]["note"]) == ("error", "no prediction for this id")
    summary = json.loads((tmp_path / "eval/summary.json").read_text(encoding="utf-8"))
    assert summary["without_gold"] == ["x1"]
    again = score_predictions(tmp_path / "eval/predictions.jsonl", write_gold(tmp_path))
    assert again.types["code-generate"].measures == summary["types"]["code-generate"]["measures"]


@pytest.mark.parametrize("form", ["result", "results", "list", "mapping", "lines"])
def test_predictions_may_come_in_any_usual_form(form: str, tmp_path: Path) -> None:
    entries = [{"id": 1, "content": "a"}, {"id": "2", "content": ["b", "c"]}]
    values: dict[str, Any] = {
        "result": {"result": {"results": entries}},
        "results": {"results": entries},
        "list": entries,
        "mapping": {"1": "a", "2": ["b", "c"]},
    }
    text = (
        json.dumps(values[form])
        if form in values
        else '{"id": 1, "completion": "a"}\n{"id": "2", "text": "b"}\n{"id": "2", "text": "c"}\n'
    )
    (tmp_path / "res").write_text("\ufeff" + text, encoding="utf-8")
    read = read_result_file(tmp_path / "res").samples
    assert {name: [sample.text for sample in samples] for name, samples in read.items()} == {
        "1": ["a"],
        "2": ["b", "c"],
    }


def test_samples_of_one_problem_vote(tmp_path: Path) -> None:
    gold, predictions = tmp_path / "gold", tmp_path / "predictions"
    gold.write_text('{"id": 1, "type": "math", "reference": "0.5"}\n{"id": 2, "type": "choice", "reference": "A"}\n')
    gold.write_text(gold.read_text() + '{"id": 3, "type": "choice", "reference": "A"}\n')
    samples = {"1": ["1/2", "3", r"\frac{1}{2}"], "2": ["A", "(B)", "B."]}  # nothing for the third
    contents = {name: list(map(written, answers)) for name, answers in samples.items()}
    predictions.write_text(json.dumps([{"id": name, "content": texts} for name, texts in contents.items()]))
    scores = score_predictions(predictions, gold)
    assert scores.types["math"].measures == pytest.approx(
        {"pass@1": 2 / 3, "pass@2": 1, "pass@3": 1, "maj@3": 1, "tied@3": 0}
    )
    assert scores.types["choice"].measures["maj@3"] == 0


def test_a_prediction_cut_off_by_length_says_so(tmp_path: Path) -> None:
    (tmp_path / "gold").write_text('{"id": 1, "type": "math", "reference": "5"}\n')
    (tmp_path / "res").write_text('{"id": 1, "content": "<think>5", "finish_reason": "length"}\n')
    scores = score_predictions(tmp_path / "res", tmp_path / "gold").types["math"]
    assert (scores.outcomes, scores.completed) == ({"cut off": 1}, None)


@pytest.mark.parametrize(
    ("gold", "predictions", "said"),
    [
        ("", "[]", "gold is empty"),
        ('{"id": 1, "type": "math", "reference": "5"}', "", "res is empty"),
        ('{"id": 1, "type": "math", "reference": "5"}', "[]", "no predictions"),
        ('{"id": 1, "type": "math", "reference": "5"}', "[5]", "entry 1 is not an object with an id"),
        ('{"id": 1, "type": "math", "reference": "5"}', "not JSON", "entry 1"),
        ('{"id": 1, "type": "math", "reference": "5"}', '{"2": "a"}', "share no id"),
        ("[1]\n{", '{"2": "a"}', "line 2: is not a JSON object"),
        ('{"type": "math", "reference": "5"}', '{"2": "a"}', "line 1: has no id"),
        ('{"id": 1, "type": "maths", "reference": "5"}', '{"2": "a"}', "type 'maths' is not one of math, choice"),
        ('{"id": 1, "type": "math"}', '{"2": "a"}', "has no reference"),
        ('{"id": 1, "type": "math", "reference": "5"}\n' * 2, '{"2": "a"}', "line 2: id '1' is there already"),
    ],
)
def test_files_that_cannot_be_used_are_refused_with_the_reason(
    gold: str, predictions: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "gold").write_text(gold)
    (tmp_path / "res").write_text(predictions)
    with pytest.raises(DataError) as caught:
        score_predictions(tmp_path / "res", tmp_path / "gold")
    assert said in str(caught.value)


def test_the_command_line_scores_a_result_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["score", str(write_results(tmp_path)), str(write_gold(tmp_path)), "--json"]
    monkeypatch.setattr("sys.argv", ["thinktune", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert not ended.value.code
    assert json.loads(out)["types"]["math"]["outcomes"]["right"] == 1
    assert "1 gold items have no prediction and count as wrong: m4" in err
    assert (tmp_path / "runs/scores/res/samples.jsonl").is_file()


def test_the_old_spelling_scores_the_same_and_says_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results, gold = str(write_results(tmp_path)), str(write_gold(tmp_path))
    old = CliRunner().invoke(cli.app, ["eval", "--predictions", results, "--gold", gold, "--json"])
    new = CliRunner().invoke(cli.app, ["score", results, gold, "--json"])
    assert json.loads(old.stdout) == json.loads(new.stdout)
    assert f"eval --predictions is deprecated; write: thinktune score {results} {gold}\n" in old.stderr
    assert "deprecated" not in new.stderr
    with pytest.raises(UsageError, match="thinktune score PREDICTIONS GOLD"):
        CliRunner().invoke(cli.app, ["eval", "--predictions", results], catch_exceptions=False)


def test_a_batch_file_is_answered_and_scored_in_one_call(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    types = {record["id"]: record["type"] for record in GOLD}
    lines = [{"id": name, "type": kind, "prompt": "What is 1 + 1?"} for name, kind in types.items() if name != "m4"]
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    arguments = ["eval", str(tiny_model), str(tmp_path / "batch.jsonl"), "--gold", str(write_gold(tmp_path))]
    monkeypatch.setattr("sys.argv", ["thinktune", *arguments, "-o", str(out), "--max-tokens", "3", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    scores = json.loads(capsys.readouterr().out)
    assert scores["without_prediction"] == ["m4"]
    assert scores["types"]["math"]["outcomes"] == {"cut off": 3, "error": 1}
    assert scores["types"]["code-generate"]["completions"] == 3  # sampled as its type is
    answers = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in answers] == ["m1", "m2", "m3", "c1", "p1", "p1", "p1", "g1"]
    assert {line["finish_reason"] for line in answers} == {"length"}
    journal = (out / "predictions.journal.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        cli.main()
    assert (out / "predictions.journal.jsonl").read_bytes() == journal  # asked once


def test_a_gold_file_that_cannot_be_used_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "gold").write_text("[1]")
    with pytest.raises(DataError, match="line 1: is not a JSON object"):
        evaluate_items(tmp_path / "no model", tmp_path / "no file", tmp_path / "gold", tmp_path)


def test_chinese_is_tokenised_as_chinese() -> None:
    near, far = similarity(["我们去公园玩"], ["我们去公园吧"]), similarity(["完全不同"], ["我们去公园吧"])
    assert 50 < near["bleu"] < 100
    assert far["bleu"] < near["bleu"]
    assert similarity(["the cat sat on the mat"], ["the cat sat on the mat"])["bleu"] == pytest.approx(100)


def test_without_sacrebleu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    text_scorer.scorer_name.cache_clear()
    with pytest.raises(MissingExtra, match=r"thinktune\[eval\]"):
        text_scorer.score(written("a"), {"reference": "a"}, "stop")


def test_strange_types_of_gold_are_faults_of_their_lines(tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"id": 1, "type": ["math"], "reference": "4"}\n')
    with pytest.raises(DataError, match=r"line 1: type \['math'\] is not one of"):
        read_gold(gold)


def test_results_in_openais_form_are_scored_as_those_in_ours(tmp_path: Path) -> None:
    def openai(name: str, **reasons: str) -> dict[str, Any]:
        choices = [
            {"index": at, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
            for at, (text, reason) in enumerate(reasons.items())
        ]
        response = {"status_code": 200, "body": {"choices": choices}}
        return {"id": f"batch_req_{name}", "custom_id": name, "response": response, "error": None}

    file = tmp_path / "res.jsonl"
    failed = {"custom_id": "m4", "response": None, "error": {"code": "generation_failed", "message": "no room"}}
    refused = {"custom_id": "m5", "response": {"status_code": 400, "body": {"error": {}}}, "error": None}
    lines = [openai("m1", a="stop", b="length"), failed, refused]
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert read_result_file(file).samples == {
        "m1": [Completion("m1", 0, "a"), Completion("m1", 1, "b", finish_reason="length")],
        "m4": [Completion("m4", 0, "", (), "error", "no room")],
        "m5": [Completion("m5", 0, "", (), "error", "status 400")],
    }
    file.write_text(json.dumps(openai("m1", alone="stop")))
    assert read_result_file(file).samples == {"m1": [Completion("m1", 0, "alone")]}


def test_items_of_a_type_that_has_no_prediction_at_all_are_wrong_and_not_unknown(tmp_path: Path) -> None:
    (tmp_path / "res.jsonl").write_text(json.dumps({"id": "m1", "content": CONTENTS["m1"]}))
    scores = score_predictions(tmp_path / "res.jsonl", write_gold(tmp_path)).types
    strict = {kind: each.strict and each.strict.value for kind, each in scores.items()}
    assert strict == {"math": 0.25, "choice": 0.0, "code-generate": 0.0, "generic-generate": None}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("null", "reference is null"), ('""', "the reference is blank"), ('" \\n"', "the reference is blank"),
        ("{}", "the reference is an object"), ('{"value": 5}', "the reference is an object"),
        ("[]", "an empty list"), ('["2", "3"]', "a list of 2"), ("[null]", "reference is null"),
        ('[["2"]]', "list of 1"),
        ("true", "the reference is true"), ("NaN", "no finite number"), ("-Infinity", "no finite number"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["math", "choice", "generic-generate"])
def test_a_reference_that_is_no_text_is_refused_by_its_line(
    kind: str, reference: str, said: str, tmp_path: Path
) -> None:
    line = f'{{"id": 2, "type": "{kind}", "reference": {reference}}}'
    (tmp_path / "gold").write_text('{"id": 1, "type": "math", "reference": "1"}\n' + line)
    with pytest.raises(DataError, match=f"1 lines cannot be used:\nline 2: .*{said}"):
        read_gold(tmp_path / "gold")


def test_all_faulty_lines_of_gold_are_listed(tmp_path: Path) -> None:
    (tmp_path / "gold").write_text('{"id": 1, "type": "choice", "reference": 1}\n' * 30 + '{"id": true, "n": 1}\n')
    with pytest.raises(DataError) as caught:
        read_gold(tmp_path / "gold")
    assert str(caught.value).count("\nline ") == 31
    assert "line 31: the id True is neither a text nor a whole number" in str(caught.value)


def test_numbers_and_lists_of_one_are_references(tmp_path: Path) -> None:
    values = {"1": "5", "2": "-0.5", "3": "1e3", "4": '["7"]', "5": "[7]", "7": "1e22", "8": "1e-7"}
    answers = dict(zip(values, ["5", "-1/2", "1000", "7", "7", "10^{22}", "10^{-7}"], strict=True))
    gold = "".join(f'{{"id": {name}, "type": "math", "reference": {value}}}\n' for name, value in values.items())
    (tmp_path / "gold").write_text(gold + '{"id": 6, "type": "math", "reference": null, "answer": "8"}\n')
    contents = {name: written(answer) for name, answer in (answers | {"6": "8"}).items()}
    (tmp_path / "res").write_text(json.dumps(contents))
    assert score_predictions(tmp_path / "res", tmp_path / "gold").types["math"].outcomes == {"right": 8}


@pytest.mark.parametrize(
    ("kind", "reference", "answers", "won"),
    [
        ("math", "1/2", ["1/2", "0.5", "50%", "3", "3"], 1),
        ("math", "18", ["20", "20", "18", "$18", "18 dollars"], 1),
        ("math", "18", ["20", "20.0", "40/2", "18", "18"], 0),  # the wrong ones are one answer too
        ("math", "18", ["20", "18", "20", "18.0"], 0),  # a tie: the answer given first
        ("math", "18", ["18", "20", "20", "18.0"], 1),
        ("math", "18", ["20", "21", "22", "18", "18"], 1),
        ("math", "x+1", ["1+x", "x + 1", "x+2", "2+x", "x"], 1),
        ("math", "(0,5]", ["(0, 5]", r"0 < x \le 5", "(0,5)", "(0,5)", "9"], 1),
        ("choice", "B", ["(B)", "b", "The answer is B", "C", "C"], 1),
        ("choice", "B", ["B", "B", "C", "(C)", "option C"], 0),
        ("choice", "AC", ["A and C", "C, A", "A", "(A)", "C"], 1),
    ],
)  # fmt: skip
def test_equal_answers_vote_together(kind: str, reference: str, answers: list[str], won: int, tmp_path: Path) -> None:
    (tmp_path / "gold").write_text(json.dumps({"id": 1, "type": kind, "reference": reference}))
    (tmp_path / "res").write_text(json.dumps([{"id": 1, "content": list(map(written, answers))}]))
    measures = score_predictions(tmp_path / "res", tmp_path / "gold").types[kind].measures
    assert measures[f"maj@{len(answers)}"] == won


@pytest.mark.parametrize(
    ("answers", "tied"),
    [(["20", "18", "20.0", "$18"], 1), (["18", "20", "21"], 1), (["18", "20", "18"], 0), (["20", "20", "18"], 0)],
)
def test_a_vote_that_ties_with_the_right_answer_is_told(answers: list[str], tied: int, tmp_path: Path) -> None:
    (tmp_path / "gold").write_text('{"id": 1, "type": "math", "reference": "18"}')
    (tmp_path / "res").write_text(json.dumps([{"id": 1, "content": list(map(written, answers))}]))
    measures = score_predictions(tmp_path / "res", tmp_path / "gold").types["math"].measures
    assert measures[f"tied@{len(answers)}"] == tied


@pytest.mark.slow
def test_a_vote_on_many_answers_that_are_hard_to_compare_ends_soon() -> None:
    answers = [f"9^{{9^{{9^{{{n}}}}}}}" for n in range(2, 40)] + ["18"]
    line = {"id": 1, "type": "math", "error": None}
    group = [line | {"extracted": each, "correct": each == "18"} for each in answers]
    keys = TASKS["math"].vote_keys
    assert keys is not None
    assert _vote(group, keys) == (False, True)  # a tie, and none of the others is taken to be equal
