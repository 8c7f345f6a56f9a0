"""Batch file in, result file out, nothing lost on the way."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from rich.console import Console
from typer.testing import CliRunner

from conftest import make_tiny_tokenizer
from scripted import GENERATION_PROMPT, ScriptedModel
from thinktune import tags
from thinktune.cli import app
from thinktune.config import Infer, Sampling
from thinktune.errors import BatchFileError, DeviceError, DiskFull, GenerationError, Interrupted, UsageError
from thinktune.inference.batch import Inferred, infer, infer_files
from thinktune.inference.batch_file import read_batch_file
from thinktune.inference.complete import complete
from thinktune.inference.engines import EngineSettings, Opened
from thinktune.inference.engines.base import Completion, Request
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.lazy import Candidate, EngineOnDemand
from thinktune.inference.engines.think_budget import ThinkBudgetEngine
from thinktune.inference.journal import Journal
from thinktune.inference.profiles import samplings
from thinktune.inference.shard import journal_of
from thinktune.models import Chat

SHORT = Sampling(max_tokens=100)
PROFILES = {
    "math": SHORT,
    "choice": SHORT,
    "code-generate": SHORT.model_copy(update={"n": 3, "temperature": 1.0}),
    "generic-generate": SHORT,
}


def line(number: int, kind: str = "math", prompt: str = "") -> str:
    return json.dumps({"id": f"i{number}", "type": kind, "prompt": prompt or f"q{number}."}, ensure_ascii=False) + "\n"


def answer_to(prompt: str) -> str:
    question = prompt.rsplit("user\n", 1)[-1].partition("<|im_end|>")[0]
    return f"<think>{question}</think> <answer>{question[:20]}</answer>"


class Workbench:
    """A scripted model, a batch file and a place for the result."""

    def __init__(self, folder: Path, reply: Callable[[str], str] = answer_to) -> None:
        self.asked: list[str] = []
        self.reply = reply
        self.file = folder / "A1.jsonl"
        self.out = folder / "out" / "res.json"
        self.said = io.StringIO()
        self._tokenizer = make_tiny_tokenizer()

    def infer(self, text: str | None = None, **settings: Any) -> Inferred:
        if text is not None:
            self.file.write_text(text, encoding="utf-8")
        skip_bad = settings.pop("skip_bad", False)
        model = ScriptedModel(self._tokenizer, self._reply)
        engine = TransformersEngine(model, self._tokenizer, [2], max_batch_tokens=settings.pop("batch_tokens", None))
        wanted = Infer(profiles=settings.pop("profiles", PROFILES), think_budget=settings.pop("think_budget", None))
        sampled = samplings(wanted, settings.pop("seed", 0))
        items = read_batch_file(self.file, samplings=sampled, skip_bad=skip_bad)
        console = Console(file=self.said, width=200)
        opened = Opened(engine, Chat(self._tokenizer), settings.pop("model", "m1"))
        return infer(opened, items, self.out, console=console, **settings)

    @property
    def results(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = json.loads(self.out.read_text(encoding="utf-8"))["result"]["results"]
        return results

    def _reply(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self.reply(prompt)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def test_results_come_in_input_order_lists_for_code_and_several_samples(bench: Workbench) -> None:
    text = (
        "\ufeff" + line(3, prompt="long " * 9) + "\n" + line(1, "code-generate") + line(2, "choice", "小明有三个苹果")
    )
    inferred = bench.infer(text)
    assert [result["id"] for result in bench.results] == ["i3", "i1", "i2"]
    assert bench.results[1]["content"] == [answer_to("user\nq1.<|im_end|>")] * 3
    assert bench.results[2]["content"] == answer_to("user\n小明有三个苹果<|im_end|>")
    assert "小明" in bench.out.read_text(encoding="utf-8")
    assert (inferred.items, inferred.failed, inferred.completions, inferred.well_formed) == (3, 0, 5, 5)
    bench.infer(line(1), profiles={"math": SHORT.model_copy(update={"n": 2, "temperature": 1.0})})
    assert len(bench.results[0]["content"]) == 2


def test_missing_tags_and_answers_cut_off_are_counted(bench: Workbench) -> None:
    replies = {"q1": "no tags", "q2": "<think>" + "on " * 90, "q3": "<think>a</think> 7", "q4": "word " * 600}
    bench.reply = lambda prompt: next((said for name, said in replies.items() if name in prompt), answer_to(prompt))
    profiles = {"math": SHORT, "generic-generate": Sampling(max_tokens=5000)}
    inferred = bench.infer(line(1) + line(2) + line(3) + line(4, "generic-generate") + line(5), profiles=profiles)
    assert inferred.well_formed == 1
    assert inferred.problems == {"no <think>": 1, "no <answer>": 1}
    assert (inferred.cut_off, inferred.clamped) == (2, 1)
    assert "1 of 5 completions well-formed; 1 no <think>" in bench.said.getvalue()


def test_every_fault_of_the_file_is_listed_with_its_line(bench: Workbench) -> None:
    bench.file.write_bytes(
        (line(1) + "{not json}\n\n" + line(1) + '{"type": "math", "prompt": "q"}\n').encode()
        + b'{"id": "x", "type": "maths", "prompt": "q"}\n{"id": "y", "type": "math", "prompt": " "}\n'
        + b'{"id": "z", "type": "math"}\n[1]\n{"id": "\xff"}\n{"id": {}, "type": "math", "prompt": "q"}\n'
        + b'{"id": "\\ud800", "type": "math", "prompt": "q"}\n{"id": "w", "type": "math", "prompt": 7}\n'
        + b"[" * 100_000
    )
    with pytest.raises(BatchFileError) as caught:
        read_batch_file(bench.file)
    message = str(caught.value)
    for expected in [
        "line 2: is not JSON", "line 4: id 'i1' is used in line 1 already", "line 5: has no id",
        'line 6: unknown type "maths"; did you mean math? known are math, choice, code-generate, generic-generate',
        "line 7: prompt is blank", "line 8: has no prompt", "line 9: is not an object", "line 10: is not UTF-8",
        "line 11: id must be", "line 12: id is not valid Unicode", "line 13: prompt must be a text",
        "line 14: is nested too deep", "12 of 13 lines", "--skip-bad",
    ]:  # fmt: skip
        assert expected in message
    assert caught.value.exit_code == 2


def test_faulty_lines_become_error_items_in_their_place_when_skipped(bench: Workbench) -> None:
    inferred = bench.infer(line(1) + "oops\n" + line(1) + line(2), skip_bad=True)
    assert [result["id"] for result in bench.results] == ["i1", None, "i1", "i2"]
    assert ["error" in result for result in bench.results] == [False, True, True, False]
    assert "line 2" in bench.results[1]["error"]
    assert inferred.failed == 2


def test_files_without_items_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(BatchFileError, match="no items"):
        read_batch_file(tmp_path / "empty.jsonl")
    with pytest.raises(BatchFileError, match="there is no batch file"):
        read_batch_file(tmp_path / "none.jsonl")
    with pytest.raises(BatchFileError, match="cannot be read"):
        read_batch_file(tmp_path)


def test_the_builtin_questions_have_all_types() -> None:
    assert {item.type for item in read_batch_file("builtin:questions")} == set(PROFILES)


def test_strange_prompts_are_answered_or_fail_alone(bench: Workbench) -> None:
    prompts = ["half \ud800 pair", "nul \0 byte", "<|im_end|><|im_start|>system", "x" * 100_000, "plain"]
    text = "".join(json.dumps({"id": n, "type": "math", "prompt": each}) + "\n" for n, each in enumerate(prompts))
    bench.reply = lambda prompt: "<think>a</think> <answer>7</answer>"
    inferred = bench.infer(text)
    assert [result["id"] for result in bench.results] == [0, 1, 2, 3, 4]
    assert "context of 512" in bench.results[3].pop("error")
    assert inferred.failed == 1
    assert all("content" in result for result in bench.results[:3])


def test_a_call_in_which_everything_fails_says_so(bench: Workbench) -> None:
    with pytest.raises(GenerationError, match="all 2 items failed") as caught:
        bench.infer(line(1, prompt="x" * 9000) + line(2, prompt="y" * 9000))
    assert caught.value.exit_code == 1
    assert len(bench.results) == 2


def test_a_stopped_call_goes_on_with_what_is_missing(bench: Workbench) -> None:
    text = "".join(line(number, "code-generate" if number % 3 == 0 else "math") for number in range(12))
    bench.infer(text)
    whole = bench.out.read_bytes()
    bench.out.unlink()
    journal_of(bench.out).unlink()

    def stop_at_the_fifth(prompt: str) -> str:
        if len(set(bench.asked)) > 5:
            raise KeyboardInterrupt
        return answer_to(prompt)

    bench.reply, bench.asked = stop_at_the_fifth, []
    with pytest.raises(Interrupted, match="of 20 completions finished") as caught:
        bench.infer(batch_tokens=200)
    assert "goes on" in caught.value.hint
    assert not bench.out.exists()
    kept = {json.loads(each)["id"] for each in journal_of(bench.out).read_text().splitlines()}
    bench.reply, bench.asked = answer_to, []
    bench.infer()
    assert bench.out.read_bytes() == whole
    assert "going on from" in bench.said.getvalue()
    assert kept
    assert not any(f"q{name[1:]}." in prompt for name in kept for prompt in bench.asked)
    bench.asked.clear()
    bench.infer()
    assert (bench.asked, bench.out.read_bytes()) == ([], whole)
    bench.infer(overwrite=True)
    assert len({*bench.asked}) == 12


def test_a_torn_last_line_costs_one_completion(bench: Workbench) -> None:
    bench.infer(line(1) + line(2) + line(3))
    file = journal_of(bench.out)
    file.write_bytes(file.read_bytes()[:-30])
    bench.asked.clear()
    bench.infer()
    assert len(set(bench.asked)) == 1
    lines = [json.loads(each) for each in file.read_text(encoding="utf-8").splitlines()]
    assert sorted(each["id"] for each in lines) == ["i1", "i2", "i3"]


def test_a_damaged_line_in_the_middle_costs_its_completion_only(bench: Workbench) -> None:
    bench.infer(line(1) + line(2))
    file = journal_of(bench.out)
    file.write_bytes(b"\x00\xffgarbage\n" + b'{"key": "k"}\n[]\n' + file.read_bytes())
    bench.asked.clear()
    bench.infer()
    assert bench.asked == []
    assert "3 lines of" in bench.said.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b'"stop"', b'"halt"'),
        lambda line: line.replace(b'"tokens": ', b'"tokens": 9'),
        lambda line: line.replace(b'"text": "', b'"text": "?'),
        lambda line: line.replace(b'"text": "', b'"text": null, "x": "'),
        lambda line: b"[" * 100_000 + b"\n",
        lambda line: line.replace(b'"crc": "', b'"crc": "0'),
        lambda line: bytes([line[0] ^ 1]) + line[1:],
    ],
)
def test_a_line_that_is_not_what_was_written_is_made_anew_and_said(
    bench: Workbench, damage: Callable[[bytes], bytes]
) -> None:
    bench.infer(line(1) + line(2))
    whole, file = bench.out.read_bytes(), journal_of(bench.out)
    first, rest = file.read_bytes().split(b"\n", 1)
    assert damage(first + b"\n") != first + b"\n"
    file.write_bytes(damage(first + b"\n") + rest)
    bench.asked.clear()
    bench.infer()
    assert len(set(bench.asked)) == 1
    assert bench.out.read_bytes() == whole
    assert "1 lines of" in bench.said.getvalue()


def test_a_journal_of_before_lines_had_checksums_is_gone_on_with(bench: Workbench) -> None:
    bench.infer(line(1) + line(2))
    whole, file = bench.out.read_bytes(), journal_of(bench.out)
    file.write_bytes(re.sub(rb', "crc": "[0-9a-f]{8}"', b"", file.read_bytes()))
    bench.asked.clear()
    bench.infer()
    assert (bench.asked, bench.out.read_bytes()) == ([], whole)


@pytest.mark.parametrize(
    ("change", "fresh"),
    [
        ({"model": "m2"}, 2),
        ({"profiles": {"math": SHORT.model_copy(update={"max_tokens": 101})}}, 2),
        ({"seed": 1}, 2),
        ({"text": line(1) + line(2, prompt="another one")}, 1),
    ],
)
def test_completions_of_other_settings_are_noticed_and_not_mixed_in(
    bench: Workbench, change: dict[str, Any], fresh: int
) -> None:
    bench.infer(line(1) + line(2))
    bench.asked.clear()
    bench.infer(**change)
    assert len(set(bench.asked)) == fresh
    assert f"{fresh} completions in" in bench.said.getvalue()
    bench.asked.clear()
    bench.infer(**change)
    assert bench.asked == []


def test_what_a_small_context_may_have_cut_is_made_anew_in_a_larger_one(bench: Workbench) -> None:
    tokenizer = make_tiny_tokenizer()
    model = ScriptedModel(tokenizer, lambda prompt: "word " * 20)
    long = Request("long", tokenizer("q" + GENERATION_PROMPT).input_ids, Sampling(max_tokens=80))
    requests = [long, replace(long, id="short", sampling=Sampling(max_tokens=3))]
    texts = []
    for context in (90, 300, None):
        engine = TransformersEngine(model, tokenizer, [2])
        engine.context_setting = context
        engine.context_length = min(context or 512, 40 if context == 90 else 512)
        console = Console(file=bench.said)
        texts.append(
            complete(engine, requests, journal_of(bench.out), model="m", console=console).completions["long", 0].text
        )
    small, large, unlimited = texts
    assert len(small) < len(large) == len(unlimited)
    records = [json.loads(each)["id"] for each in journal_of(bench.out).read_text().splitlines()]
    assert sorted(records) == ["long", "long", "short"]


def test_more_samples_are_added_to_those_there_are(bench: Workbench) -> None:
    profile = SHORT.model_copy(update={"temperature": 1.0})
    bench.infer(line(1), profiles={"math": profile})
    bench.infer(profiles={"math": profile.model_copy(update={"n": 3})})
    assert "1 of 3 completions are there already" in bench.said.getvalue()
    assert len(bench.results[0]["content"]) == 3


def test_failed_items_are_tried_again(bench: Workbench) -> None:
    def fail_on_two(prompt: str) -> str:
        if "q2." in prompt:
            raise ValueError("a bad day")
        return answer_to(prompt)

    bench.reply = fail_on_two
    assert bench.infer(line(1) + line(2) + line(3)).failed == 1
    assert "a bad day" in bench.results[1]["error"]
    bench.reply, bench.asked = answer_to, []
    assert bench.infer().failed == 0
    assert len(set(bench.asked)) == 1


def test_a_full_disk_ends_the_call_and_keeps_what_was_finished(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.write, []

    def write(descriptor: int, data: bytes) -> int:
        written.append(descriptor)
        if len(written) == 3:
            return real(descriptor, data[:10])
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr("thinktune.inference.journal.os.write", write)
    with pytest.raises(DiskFull, match="no space left") as caught:
        bench.infer("".join(map(line, range(8))))
    assert str(journal_of(bench.out)) in caught.value.message
    monkeypatch.undo()
    assert len(journal_of(bench.out).read_text().splitlines()) == 2
    assert not bench.out.exists()
    bench.infer()
    assert len(bench.results) == 8


def test_a_whole_call_on_a_model_folder_ends_at_once_the_second_time(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, out, said = tmp_path / "A1.jsonl", tmp_path / "res.json", io.StringIO()
    file.write_text(line(1) + line(2, "code-generate"))
    asked = {"math": Sampling(max_tokens=4), "code-generate": Sampling(max_tokens=4, n=3, temperature=1)}
    console = Console(file=said)
    (first,) = infer_files(tiny_model, {file: out}, samplings=asked, console=console)
    assert first.completions == 4
    assert "loading" in caplog.text
    caplog.clear()
    (again,) = infer_files(tiny_model, {file: out}, samplings=asked, console=console)
    assert again.completions == 4
    assert "loading" not in caplog.text
    assert "already" in said.getvalue()


def test_several_files_are_checked_first_and_share_one_loading_of_the_model(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files: dict[str | Path, Path] = {tmp_path / f"{name}.jsonl": tmp_path / f"{name}.json" for name in "ab"}
    console = Console(file=io.StringIO())
    asked = {"math": Sampling(max_tokens=4)}
    for at, file in enumerate(files):
        Path(file).write_text(line(at), encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(BatchFileError, match=r"bad\.jsonl"):
        infer_files(
            tiny_model, {**files, tmp_path / "bad.jsonl": tmp_path / "c.json"}, samplings=asked, console=console
        )
    assert "loading" not in caplog.text
    assert [each.items for each in infer_files(tiny_model, files, samplings=asked, console=console)] == [1, 1]
    assert caplog.text.count(" loading ") == 1
    assert all(out.exists() for out in files.values())


def test_an_engine_that_is_not_there_is_refused_before_the_model_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THINKTUNE_VLLM_PYTHON", "/no/such/python")
    (tmp_path / "A1.jsonl").write_text(line(1))
    with pytest.raises(UsageError, match="/no/such/python"):
        infer_files(
            "nowhere/at/all",
            {tmp_path / "A1.jsonl": tmp_path / "res.json"},
            EngineSettings("vllm"),
            samplings={"math": SHORT},
        )


def test_the_item_that_asks_for_what_an_engine_cannot_do_is_named(bench: Workbench) -> None:
    tokenizer = make_tiny_tokenizer()
    engine = TransformersEngine(ScriptedModel(tokenizer, answer_to), tokenizer, [2])
    requests = [Request("i1", [1], SHORT), Request("i2", [1], SHORT.changed(think_budget=3))]
    with pytest.raises(UsageError, match=r"i2: .* cannot honour sampling\.think_budget"):
        complete(engine, requests, journal_of(bench.out), model="m", console=Console(file=bench.said))


def test_errors_are_retried_alone(bench: Workbench) -> None:
    def fail_on_two(prompt: str) -> str:
        if "q2." in prompt:
            raise ValueError("a bad day")
        return answer_to(prompt)

    bench.reply = fail_on_two
    bench.infer(line(1) + line(2))
    bench.reply, bench.asked = answer_to, []
    inferred = bench.infer(line(1) + line(2) + line(3), retry_errors=True)
    assert {prompt for prompt in bench.asked if "q2." in prompt} == set(bench.asked)
    assert inferred.failed == 1
    assert "not answered yet" in bench.results[2]["error"]
    assert bench.infer().failed == 0


def test_two_processes_cannot_write_one_journal(bench: Workbench) -> None:
    bench.infer(line(1))
    with Journal(journal_of(bench.out)), pytest.raises(UsageError, match="another process is writing"):
        bench.infer()
    bench.infer()


def test_a_journal_that_is_begun_anew_stays_with_the_call_that_reads_it(bench: Workbench) -> None:
    tokenizer = make_tiny_tokenizer()
    engine = TransformersEngine(ScriptedModel(tokenizer, answer_to), tokenizer, [2])
    ids = tokenizer("q" + GENERATION_PROMPT).input_ids
    console = Console(file=bench.said)
    done = complete(engine, [Request("i1", ids, SHORT)], journal_of(bench.out), model="m", console=console)
    with Journal(journal_of(bench.out), overwrite=True) as journal:
        assert not journal.offsets
        assert done.completions["i1", 0].request_id == "i1"


def test_the_speed_is_that_of_writing_without_the_time_to_load_the_model(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, clock = make_tiny_tokenizer(), [0.0]
    monkeypatch.setattr("thinktune.inference.complete.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def load() -> TransformersEngine:
        clock[0] += 10_000
        return TransformersEngine(ScriptedModel(tokenizer, reply), tokenizer, [2])

    def reply(prompt: str) -> str:
        clock[0] += 1
        return answer_to(prompt)

    engine = ThinkBudgetEngine(EngineOnDemand(Candidate(load)), Chat(tokenizer))
    request = Request("i1", tokenizer("q" + GENERATION_PROMPT).input_ids, SHORT)
    done = complete(engine, [request], journal_of(bench.out), model="m", console=Console(file=bench.said))
    assert 0 < done.seconds < 10_000


def test_a_budget_makes_every_completion_well_formed_and_goes_on_exactly(bench: Workbench) -> None:
    bench.reply = lambda prompt: "so and so " * 30
    text = "".join(line(number, "code-generate" if number % 2 else "math") for number in range(6))
    inferred = bench.infer(text, think_budget=40)
    assert (inferred.well_formed, inferred.completions, inferred.closed) == (12, 12, 12)
    assert "12 answers closed at their limit" in bench.said.getvalue()
    assert inferred.clamped == 0
    whole = bench.out.read_bytes()
    file = journal_of(bench.out)
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:5]))
    bench.infer(think_budget=40)
    assert bench.out.read_bytes() == whole
    assert bench.infer(think_budget=41).well_formed == 12
    assert "made anew" in bench.said.getvalue()


def test_results_in_openais_format_say_the_same(bench: Workbench) -> None:
    bench.infer(line(1, "code-generate") + "oops\n", skip_bad=True, form="openai", name="tiny")
    first, second = (json.loads(each) for each in bench.out.read_text(encoding="utf-8").splitlines())
    assert first["custom_id"] == "i1"
    assert first["error"] is None
    body = first["response"]["body"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["choices"][0]["message"] == {"role": "assistant", "content": answer_to("user\nq1.<|im_end|>")}
    assert (body["model"], body["choices"][0]["finish_reason"]) == ("tiny", "stop")
    assert body["usage"]["total_tokens"] > body["usage"]["completion_tokens"] > 0
    assert second["custom_id"] is second["response"] is None
    assert "line 2" in second["error"]["message"]


def test_the_commands_options_go_over_the_configs(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "A1.jsonl").write_text(line(1))
    (tmp_path / "c.yaml").write_text("infer: {think_budget: 2, profiles: {math: {max_tokens: 9}}}")
    call = ["infer", str(tiny_model), str(tmp_path / "A1.jsonl"), "-o", str(tmp_path / "out"), "--format", "openai"]
    done = CliRunner().invoke(app, [*call, "--config", str(tmp_path / "c.yaml"), "--think-budget", "4"])
    assert done.exit_code == 0, done.stderr
    (choice,) = json.loads((tmp_path / "out").read_text(encoding="utf-8"))["response"]["body"]["choices"]
    assert tags.parse(choice["message"]["content"]).well_formed
    (record,) = map(json.loads, journal_of(tmp_path / "out").read_text(encoding="utf-8").splitlines())
    assert record["tokens"] <= 9
    with pytest.raises(UsageError, match="exclude each other"):
        CliRunner().invoke(app, [*call, "--retry-errors", "--overwrite"], catch_exceptions=False)


def test_the_configs_seed_is_the_commands_too(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "A1.jsonl").write_text(line(1))
    (tmp_path / "c.yaml").write_text("seed: 5\ninfer: {profiles: {math: {max_tokens: 9, temperature: 2}}}")

    def drawn(name: str, *options: str) -> str:
        out = tmp_path / name
        call = [
            "infer",
            str(tiny_model),
            str(tmp_path / "A1.jsonl"),
            "-o",
            str(out),
            "--config",
            str(tmp_path / "c.yaml"),
        ]
        assert CliRunner().invoke(app, [*call, *options]).exit_code == 0
        (record,) = map(json.loads, journal_of(out).read_text(encoding="utf-8").splitlines())
        return str(record["text"])

    assert drawn("config") == drawn("five", "--seed", "5") != drawn("six", "--seed", "6")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["infer", "serve"])
def test_the_configs_way_of_loading_is_the_commands_too(tiny_model: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "A1.jsonl").write_text(line(1))
    (tmp_path / "c.yaml").write_text("load: {device: 'cuda:99'}")
    files = [str(tmp_path / "A1.jsonl"), "-o", str(tmp_path / "out")] if verb == "infer" else []
    done = CliRunner().invoke(app, [verb, str(tiny_model), *files, "--config", str(tmp_path / "c.yaml")])
    assert isinstance(done.exception, DeviceError)
    assert "cuda:99" in done.exception.message


@pytest.mark.slow
def test_a_killed_process_loses_nothing_it_had_finished(tiny_model: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "A1.jsonl", tmp_path / "res.json"
    file.write_text("".join(line(number) for number in range(200)))
    command = [sys.executable, "-c", KILLED, str(tiny_model), str(file), str(out)]
    process = subprocess.Popen(command)
    kept = 0
    while kept < 20:
        assert process.poll() is None
        time.sleep(0.02)
        kept = journal_of(out).read_bytes().count(b"\n") if journal_of(out).exists() else 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    subprocess.run(command, check=True)
    resumed = json.loads(out.read_text())["result"]["results"]
    ids = [json.loads(each)["id"] for each in journal_of(out).read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 200
    subprocess.run([*command[:-1], str(tmp_path / "other.json")], check=True)
    assert json.loads((tmp_path / "other.json").read_text())["result"]["results"] == resumed


KILLED = """
import sys
from pathlib import Path
import torch
from thinktune.config import Sampling
from thinktune.inference.batch import infer_files
from thinktune.inference.engines import EngineSettings
torch.set_num_threads(1)
samplings = {"math": Sampling(max_tokens=60, temperature=1.0, stop=(), seed=0)}
infer_files(sys.argv[1], {sys.argv[2]: Path(sys.argv[3])}, EngineSettings(batch_tokens=2000), samplings=samplings)
"""


def test_a_completion_comes_back_from_json_without_its_token_ids() -> None:
    ids: Any = numpy.array([5, 6])  # as an engine of one's own may give them
    made = Completion("a", 1, "text \u2028", ids, "length")
    kept = made.as_dict()
    assert kept == {
        "id": "a", "index": 1, "text": "text \u2028", "finish_reason": "length", "error": None, "tokens": 2
    }  # fmt: skip
    assert Completion.from_dict(kept) == replace(made, token_ids=())
    for fault in ({"finish_reason": "tired"}, {"tokens": "2"}, {"of_a_later_version": 1}):
        with pytest.raises((TypeError, ValueError)):
            Completion.from_dict(kept | fault)


def test_what_the_disk_refused_behind_our_back_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()

    def refuse_once(descriptor: int) -> None:
        if not told.is_set():  # as the system does
            told.set()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("thinktune.inference.journal.os.fsync", refuse_once)
    journal = Journal(tmp_path / "j.jsonl")
    journal.add("key", Completion("a", 0, "text", (1,)))
    assert told.wait(5)
    with pytest.raises(DiskFull, match=r"j\.jsonl"):
        journal.close()


def test_progress_is_told_now_and_then_where_there_is_no_terminal(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinktune.inference.complete._TELL_SECONDS", 0.0)
    bench.infer("".join(map(line, range(4))))
    assert re.search(r"^2 of 4 completions, [\d,]+ tokens/s, 0:00:00 left$", bench.said.getvalue(), re.MULTILINE)


def test_a_journal_keeps_the_date_that_its_template_reads_off_the_clock(bench: Workbench) -> None:
    tokenizer = bench._tokenizer
    plain = tokenizer.chat_template
    tokenizer.chat_template = plain.replace("a tiny model.", "asked {{ strftime_now('%X') }}.")
    bench.infer(line(1) + line(2))
    before = bench.results
    time.sleep(1.1)
    bench.infer()
    assert "all 2 completions are in" in bench.said.getvalue()
    assert bench.results == before
    bench.infer(overwrite=True)
    asked = {prompt.partition("asked ")[2][:8] for prompt in bench.asked}
    assert len(asked) == 2
    assert journal_of(bench.out).with_name("res.journal.jsonl.date").exists()
