"""What other tools write is read as they mean it; what cannot be read is said, and never scored as an empty answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thinktune.errors import DataError
from thinktune.evaluation.predictions import score_predictions
from thinktune.evaluation.result_reader import identity, read_result_file
from thinktune.inference.engines.base import Completion

DONE = "<think>so</think> <answer>7</answer>"


def sample(text: str, reason: str = "stop", error: str | None = None, *, name: str = "a", index: int = 0) -> Completion:
    return Completion(name, index, text, (), reason, error)


RIGHT = sample(DONE)


def write(folder: Path, *entries: Any) -> Path:
    """JSON lines of objects, or of texts as they are."""
    lines = (entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    (folder / "res.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder / "res.jsonl"


def batch_line(*choices: Any, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = {"status_code": status, "request_id": "r", "body": body or {"choices": list(choices)}}
    return {"id": "batch_1", "custom_id": "a", "response": answer, "error": None}


def choice(content: Any, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}


@pytest.mark.parametrize(
    "entry",
    [
        {"predict": DONE, "label": "7", "prompt": "What is 3 + 4?"},  # LLaMA-Factory
        {"generated_text": DONE},
        {"generated_text": [{"generated_text": DONE}]},  # a pipeline of transformers
        {"generated_text": [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": DONE}]},
        {"outputs": [{"index": 0, "text": DONE, "finish_reason": "stop"}], "prompt": "3 + 4?"},  # vLLM
        {"resps": [[DONE]], "filtered_resps": ["7"], "target": "7", "doc": {"answer": "7"}},  # lm-evaluation-harness
        {"model_output": DONE},
        {"completions": [DONE]},
        {"content": [{"type": "text", "text": DONE[:9]}, {"type": "text", "text": DONE[9:]}]},  # parts of one message
        {"candidates": [{"content": {"parts": [{"text": DONE[:9]}, {"text": DONE[9:]}]}, "finishReason": "STOP"}]},
        {"response": {"text": DONE}},
        {"choices": [{"text": DONE, "finish_reason": "stop", "logprobs": None}]},
    ],
)
def test_what_other_tools_call_their_predictions_is_known(entry: dict[str, Any], tmp_path: Path) -> None:
    (only,) = read_result_file(write(tmp_path, {"id": "a", **entry})).samples["a"]
    assert (only.text, only.error) == (DONE, None)


@pytest.mark.parametrize(
    ("line", "samples"),
    [
        (batch_line(choice(None, "length")), [sample("", "length")]),
        (batch_line(choice(None, "length", reasoning_content="3 and")), [sample("<think>3 and", "length")]),
        (batch_line(choice("<answer>7</answer>", reasoning_content="so")), [RIGHT]),
        (batch_line(choice("<answer>7</answer>", reasoning="so")), [RIGHT]),
        (batch_line(choice("7", reasoning_content="so")), [sample("<think>so</think> 7")]),
        (batch_line(choice(DONE, reasoning_content="so")), [RIGHT]),  # where a server leaves the thought in both
        (batch_line(choice(None, refusal="I would rather not.")), [sample("I would rather not.")]),
        (batch_line(choice(DONE), choice("no", "length")), [RIGHT, sample("no", "length", index=1)]),
        (batch_line(status=429, error={"message": "slow down"}), [sample("", "error", "slow down")]),
        (batch_line(status=503, message="overloaded"), [sample("", "error", "overloaded")]),
        (batch_line(status=422, detail="no model"), [sample("", "error", "no model")]),
        (batch_line(object="error", message="too long", code=400), [sample("", "error", "too long")]),
        (
            batch_line(choice(None, "content_filter")),
            [sample("", "error", "there is no text; the finish reason is content_filter")],
        ),
        (
            batch_line(
                status_text="ok",
                incomplete_details={"reason": "max_output_tokens"},
                output=[{"type": "reasoning", "summary": []}, {"type": "message", "content": []}],
                text={"format": {"type": "text"}},
            ),
            [sample("", "length")],
        ),
        (
            batch_line(output=[{"type": "message", "content": [{"type": "output_text", "text": DONE}]}], error=None),
            [RIGHT],
        ),
        (
            {
                "custom_id": "a",
                "result": {
                    "type": "succeeded",
                    "message": {
                        "content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "<answer>"}],
                        "stop_reason": "max_tokens",
                    },
                },
            },
            [sample("<think>so</think> <answer>", "length")],
        ),
        (
            {"custom_id": "a", "result": {"type": "errored", "error": {"type": "error", "error": {"message": "bad"}}}},
            [sample("", "error", "bad")],
        ),
        ({"custom_id": "a", "response": None, "error": {"code": "expired"}}, [sample("", "error", "expired")]),
    ],
)
def test_lines_of_batch_apis_keep_thoughts_ends_and_errors(
    line: dict[str, Any], samples: list[Completion], tmp_path: Path
) -> None:
    assert read_result_file(write(tmp_path, line)).samples == {"a": samples}


def test_a_sample_that_failed_or_was_cut_off_is_told_from_its_neighbours(tmp_path: Path) -> None:
    file = write(tmp_path, {"id": 1, "content": [DONE, "<think>", None], "finish_reason": ["stop", "length", "stop"]})
    found = read_result_file(file)
    assert found.samples == {
        "1": [
            sample(DONE, name="1"),
            sample("<think>", "length", name="1", index=1),
            sample("", "error", "the content is not a text", name="1", index=2),
        ]
    }
    assert found.remarks() == ["1 predictions cannot be read and are errors: 1"]


@pytest.mark.parametrize(
    "entry",
    [
        {"id": 1, "question": "3 + 4?", "answer": "7"},
        {"id": 1, "reply": DONE, "finish_reason": "length"},
        {"id": 1, "choices": ["six", "seven"]},  # the question's own
        {"id": 1, "choices": {"text": ["six", "seven"], "label": ["A", "B"]}},
        {"id": 1, "content": {"says": DONE}},
        {"id": 1, "content": True},
        '{"id": 1, "content": NaN}',
        {"id": 1, "content": []},
    ],
)
def test_a_file_in_which_nothing_can_be_read_is_refused_with_its_keys(entry: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prediction can be read; the keys seen are 'id', ") as caught:
        read_result_file(write(tmp_path, entry))
    assert "generated_text" in (caught.value.hint or "")


def test_what_cannot_be_read_beside_what_can_is_an_error_and_counted(tmp_path: Path) -> None:
    file = write(tmp_path, {"id": 1, "content": DONE}, {"id": 2, "reply": DONE}, {"id": 3, "error": "timeout"})
    found = read_result_file(file)
    assert [samples[0].error for samples in found.samples.values()] == [
        None,
        "has no content that can be read; its keys are reply",
        "timeout",
    ]
    assert found.remarks() == ["1 predictions cannot be read and are errors: 2"]


def test_of_two_keys_that_differ_the_one_that_was_not_read_is_named(tmp_path: Path) -> None:
    found = read_result_file(write(tmp_path, {"id": 1, "prediction": "7", "response": DONE}))
    assert found.samples == {"1": [sample("7", name="1")]}
    assert found.remarks() == ["predictions were read from prediction; response says something else and was not"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"id": 1, "content": "a"}', '{"id": 2, "cont'], "entry 2 is not an object with an id: it is not JSON"),
        (['{"id": 1, "content": "a", "n": ' + "9" * 5000 + "}"], "more digits than can be read"),
        (["[" * 100_000], "nested too deep"),
        (['{"predict": "a", "label": "b"}'] * 2, "its keys are 'predict', 'label'"),
        (['{"predict": "a", "label": "b"}'], "its keys are 'predict', 'label'"),
        (['{"id": true, "content": "a"}', '{"id": null, "content": "a"}'], "2 entries cannot be used"),
    ],
)
def test_entries_that_are_none_are_refused_all_at_once(lines: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_result_file(write(tmp_path, *lines))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ('{"id": 1, "content": "a"}'.encode("utf-16"), "is UTF-16 text"),
        (b'{"id": 1}\n{"id": 2, "content": "\xe9"}', r"is not UTF-8 text \(line 2\)"),
        (b"\x1f\x8b\x08\x00", "is gzip"),
    ],
)
def test_files_in_another_encoding_are_refused_with_its_name(raw: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "res").write_bytes(raw)
    with pytest.raises(DataError, match=said):
        read_result_file(tmp_path / "res")


def test_half_a_surrogate_pair_anywhere_ends_nothing(tmp_path: Path) -> None:
    gold = tmp_path / "gold"
    gold.write_text(
        '{"id": "a\\ud800", "type": "math", "reference": "7"}\n{"id": 2, "type": "math", "reference": "\\udfff"}\n'
    )
    lines = [
        '{"id": "a\\ud800", "content": "<think>\\ud83d</think> <answer>7</answer>"}',
        '{"id": 2, "error": "\\uDC00"}',
        '{"id": "b\\ud800", "content": "\\ud800"}',
    ]
    scores = score_predictions(write(tmp_path, *lines), gold, tmp_path / "out")
    assert scores.types["math"].outcomes == {"right": 1, "error": 1}
    assert scores.without_gold == ["b\ufffd"]
    assert (tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8").count("\n") == 3


def test_ids_lines_and_marks_of_other_systems_match(tmp_path: Path) -> None:
    (tmp_path / "gold").write_text('{"id": 1, "type": "math", "reference": 7}\n')
    (tmp_path / "res").write_bytes(b'\xef\xbb\xbf\r\n{"id": "1", "content": "<think>s</think> <answer>7</answer>"}\r\n')
    assert score_predictions(tmp_path / "res", tmp_path / "gold").types["math"].outcomes == {"right": 1}
    assert [identity(value) for value in (1, "1", 1.0, 1.5, True, None, [1], " ")] == ["1"] * 3 + [None] * 5


def test_ids_with_more_samples_than_the_others_of_their_type_are_said(tmp_path: Path) -> None:
    gold = "".join(f'{{"id": {n}, "type": "math", "reference": "7"}}\n' for n in range(3))
    (tmp_path / "gold").write_text(gold)
    file = write(tmp_path, *({"id": n, "content": DONE} for n in (0, 1, 2, 1)))
    assert score_predictions(file, tmp_path / "gold").remarks() == ["1 math items have not 1 samples as most have: 1"]
