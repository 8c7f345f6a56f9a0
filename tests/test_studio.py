"""The studio without a browser: what it keeps, what it refuses, and what it makes of a model's words."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import string
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import gradio as gr
import httpx
import pytest
import torch

from test_compare import write_run
from test_engine_shared import make_adapter
from thinktune.config import Infer, Method, Sampling
from thinktune.config.shipped import shipped_configs
from thinktune.errors import BatchFileError, ConfigError, RunFolderError, UsageError
from thinktune.evaluation.ratings import Rating
from thinktune.evaluation.significance import wilson
from thinktune.inference.batch import infer_files
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.inference.profiles import samplings
from thinktune.report.compare import compare, sentences
from thinktune.run_folder import RunFolder
from thinktune.studio import app, run_view
from thinktune.studio.answer_table import OUTCOMES, AnswerTable, filtered, read_texts
from thinktune.studio.answers import read_answers
from thinktune.studio.app import MOST_SESSIONS, USER, Server, open_page, serve
from thinktune.studio.batch_jobs import Jobs, check, faults
from thinktune.studio.conversations import listed, titles, turns_of, with_conversation
from thinktune.studio.guard import MOST_UPLOADED, Guard
from thinktune.studio.known_answers import KnownAnswers, sum_of
from thinktune.studio.look import css
from thinktune.studio.markdown import messages
from thinktune.studio.model_pool import Pool
from thinktune.studio.progress import Phase, Progress, read_progress
from thinktune.studio.state import Studio
from thinktune.studio.study import Study, names, new_folder, study_of_models, study_of_rows, study_of_scores, throw_away
from thinktune.studio.tabs.chat import ChatTab
from thinktune.studio.tabs.rate import RateTab
from thinktune.studio.training_jobs import Run, Trainings
from thinktune.studio.translations import TEXTS, Words
from thinktune.studio.waiting_questions import WaitingQuestions
from thinktune.training.reinforce.rollouts import Drawn, Group, Rollout, RolloutJournal

WORDS = Words(None)
QUICKSTART = next(file for file in shipped_configs() if file.stem == "quickstart")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def runs(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder of runs, one of them with an adapter."""
    folder = tmp_path / "runs"
    adapter = make_adapter(tiny_model, folder / "tuned" / "adapter", 1)
    (adapter / "thinktune.json").write_text(json.dumps({"base_model": str(tiny_model), "system": None}))
    for file in tiny_model.glob("*token*"):
        shutil.copy(file, adapter)
    shutil.copy(tiny_model / "chat_template.jinja", adapter)
    (folder / "tuned" / "config.yaml").write_text("model: x\n")
    return folder


@pytest.fixture
def pool(runs: Path, tiny_model: Path) -> Iterator[Pool]:
    pool = Pool([str(tiny_model)], runs)
    yield pool
    pool.close()


def batch_file(folder: Path, count: int, max_tokens: int = 8) -> Path:
    file = folder / "A1.jsonl"
    lines = [
        {"id": f"q{n}", "type": "math", "prompt": f"{n} + {n}?", "sampling": {"max_tokens": max_tokens + n}}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def signed_in(server: Server) -> httpx.Client:
    """A client that has opened the printed address."""
    cookies = httpx.get(server.address).cookies
    return httpx.Client(base_url=server.address.partition("?")[0], cookies=cookies, timeout=60)


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# texts and what is shown of a completion


def test_every_text_has_the_same_blanks_in_both_languages() -> None:
    for key, (english, chinese) in TEXTS.items():
        blanks = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, chinese)]
        assert blanks[0] == blanks[1], key


def test_every_text_is_used_and_every_text_that_is_asked_for_is_there() -> None:
    folder = Path(__file__).parents[1] / "src/thinktune/studio"
    source = "".join(file.read_text() for file in folder.rglob("*.py") if file.name != "translations.py")
    computed = {
        f"state_{state}"
        for state in ("running", "done", "stopped", "failed", "trained", "training", "unfinished", "sweep")
    } | {f"phase_{phase}" for phase in get_args(Phase)}
    computed |= {f"method_{name}" for name in get_args(Method)}
    computed |= {f"collect_{state}" for state in ("running", "done", "stopped", "failed")}
    computed |= {f"rate_{key}" for key in ("accuracy", "accuracy_lenient", "format_rate")}
    computed |= {"side_base", "side_tuned"} | {f"outcome_{each}" for each in OUTCOMES}
    assert [key for key in TEXTS if not re.search(rf"[\"']{key}[\"']", source) and key not in computed] == []


def test_the_language_is_the_browsers() -> None:
    request = SimpleNamespace(headers={"accept-language": "zh-CN,zh;q=0.9,en;q=0.8"})
    assert Words(request)("stop") == "停止"  # type: ignore[arg-type]
    assert WORDS("stop") == "Stop"


@pytest.mark.parametrize("language", ["en", "zh-CN"])
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/srv/runs/studio/data/rows.jsonl, line 3: is not JSON: x", "rows.jsonl"),
        ("no usable rows: 1 not an object (row 1 of runs/studio/data/rows.jsonl)", "rows.jsonl"),
        ("the studio has no model '/home/me/tiny'", "tiny"),
        ("cannot reach http://127.0.0.1:8000/v1/models", "http://127.0.0.1:8000/v1/models"),
        ("Qwen/Qwen2.5-3B is not in the hub; and/or runs/one", "Qwen/Qwen2.5-3B is not in the hub; and/or runs/one"),
    ],
)
def test_an_error_names_a_file_and_not_where_it_lies(said: str, shown: str, language: str) -> None:
    words = Words(SimpleNamespace(headers={"accept-language": language}))  # type: ignore[arg-type]
    for told in (words.problem(said), words.problem(UsageError(said, hint=said)), words.own(said)):
        assert shown in told
        assert not re.search("/srv|/home|studio/data", told)


@pytest.mark.parametrize(
    "kept", [None, 7, {"turns": 3}, {"turns": [1, {"answers": "x"}, {"question": 5, "answers": [{}]}]}]
)
def test_whatever_a_browser_has_kept_is_read(kept: Any) -> None:
    for turn in turns_of(kept):
        assert isinstance(turn["question"], str)
        assert len(turn["answers"]) == 2
        list(messages(turn["question"], turn["answers"][0], WORDS))


@pytest.mark.parametrize("kept", [None, 7, [1, {"id": 3}, {"id": "a"}, {"id": "b", "turns": [{"question": 5}]}]])
def test_whatever_list_of_conversations_a_browser_has_kept_is_read(kept: Any) -> None:
    assert titles(kept) == ([("5", "b")] if isinstance(kept, list) else [])


def test_the_list_has_each_conversation_once_newest_first_and_as_many_as_a_browser_keeps() -> None:
    def conversation(name: str, size: int = 5) -> dict[str, Any]:
        return {"id": name, "turns": [{"question": f"{name} " + "x" * size}]}

    kept: Any = []
    for name in ("a", "b", "a"):
        kept = with_conversation(kept, conversation(name))
    assert [name for _, name in titles(kept)] == ["a", "b"]
    assert with_conversation(kept, {"id": "c", "turns": []}) == listed(kept)
    for number in range(60):
        kept = with_conversation(kept, conversation(str(number), 100_000))
    assert len(kept) == 14
    assert all(len(title) <= 48 for title, _ in titles(kept))


def test_questions_wait_in_line_and_come_back_when_it_ends() -> None:
    waiting = WaitingQuestions()
    line = waiting.add("page", "a", 0, ())
    assert line is not None
    assert [waiting.add("page", text, 0, ()) for text in "bc"] == [None, None]
    assert waiting.add("other", "x", 0, ()) is not None
    assert [waiting.take("page", line) for _ in "ab"] == [("a", 0, ()), ("b", 0, ())]
    assert waiting.end("page") == ["c"]
    begun = waiting.add("page", "d", 0, ())
    assert waiting.take("page", line) is None  # of the line that was ended
    assert begun is not None
    assert waiting.take("page", begun) == ("d", 0, ())
    assert waiting.take("page", begun) is None
    assert not waiting.is_busy("page")


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("What is 7 times 8?", "56"),
        ("12 + 30?", "42"),
        ("(2+4)/4 =", "3/2"),
        ("7 × 8 是多少？", "56"),
        ("What is 2**99999?", None),
        ("What is 1/0?", None),
        ("What is 7?", None),
        ("Who is 7 times 8?", None),
        ("1.5.2 + 1", None),
        ("+" * 70, None),
    ],
)
def test_the_answer_of_a_plain_sum_is_known(question: str, value: str | None) -> None:
    assert sum_of(question) == value


def test_answers_are_right_or_wrong_where_a_run_was_scored_on_the_question(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tuned="rw")
    known = KnownAnswers(tmp_path)
    assert known.is_right("What is 2?", "<think>a</think> <answer>2</answer>") is True
    assert known.is_right("What is 2?", "It is 3.") is False
    assert known.is_right("Why is 2?", "2") is None
    (run / "eval/tuned/samples.jsonl").write_text("damaged\n")
    assert known.is_right("What is 2?", "2") in (None, True)


# models


def test_a_page_begins_with_the_newest_run_beside_its_base(pool: Pool, tiny_model: Path, runs: Path) -> None:
    assert pool.pair() == (str(runs / "tuned"), str(tiny_model))
    assert pool.choices() == [(str(tiny_model), str(tiny_model)), ("tuned", str(runs / "tuned"))]
    shutil.rmtree(runs)
    assert pool.pair() == (str(tiny_model), "")


def test_a_run_and_its_base_share_one_model_in_memory(pool: Pool, tiny_model: Path, runs: Path) -> None:
    assert pool.names() == [str(tiny_model), str(runs / "tuned")]
    base, tuned = pool.take(str(tiny_model)), pool.take(str(runs / "tuned"))
    assert base.shared is tuned.shared
    assert (base.adapter, tuned.adapter is None, base.tuned, tuned.tuned) == (None, False, False, True)
    assert base.fingerprint != tuned.fingerprint
    assert pool.take(str(runs / "tuned")) is tuned


def test_a_run_that_was_trained_anew_is_another_model(pool: Pool, tiny_model: Path, runs: Path) -> None:
    before = pool.take(str(runs / "tuned"))
    settings = (runs / "tuned/adapter/thinktune.json").read_text()
    make_adapter(tiny_model, runs / "tuned/adapter", 2)
    (runs / "tuned/adapter/thinktune.json").write_text(settings)
    after = pool.take(str(runs / "tuned"))
    assert after.adapter != before.adapter
    assert after.shared is before.shared


def test_only_models_that_are_offered_are_loaded(pool: Pool) -> None:
    with pytest.raises(UsageError, match="no model '/etc'"):
        pool.take("/etc")


def test_two_models_answer_at_once_and_differently(pool: Pool) -> None:
    turns = [{"role": "user", "content": "12 + 30?"}]
    sampling = Sampling(max_tokens=20, temperature=0.7, seed=1)
    states = [
        [each.as_dict() for each in state]
        for state in read_answers(pool, pool.names(), [turns, turns], sampling, RequestHandle(), pause=0)
    ]
    first, second = states[-1]
    assert (first["state"], second["state"]) == ("done", "done")
    assert first["text"] != second["text"]
    assert first["tokens"] > 1
    again = [
        each for state in read_answers(pool, pool.names()[:1], [turns], sampling, RequestHandle()) for each in state
    ][-1]
    assert again.text == first["text"]


def test_a_stop_ends_answers_and_keeps_what_was_written(pool: Pool) -> None:
    handle = RequestHandle()
    states = read_answers(
        pool, pool.names()[:1], [[{"role": "user", "content": "go"}]],
        Sampling(max_tokens=1900, temperature=2, stop=(), seed=4), handle, pause=0,
    )  # fmt: skip
    for state in states:
        if state[0].tokens > 3:
            handle.stop()
    assert state[0].state in ("stopped", "done")
    assert state[0].text
    wait_for(lambda: not pool.take(pool.names()[0]).shared.busy)


class Slow(Pool):
    """A pool whose models are read until they are let go."""

    def __init__(self, reference: str, runs: Path) -> None:
        super().__init__([reference], runs)
        self.read = threading.Event()

    def _load_shared(self, base: str) -> Any:
        assert self.read.wait(60)
        return super()._load_shared(base)


def test_nobody_waits_for_a_model_that_is_being_loaded_after_a_stop(runs: Path, tiny_model: Path) -> None:
    pool, handle = Slow(str(tiny_model), runs), RequestHandle()
    turns = [[{"role": "user", "content": "Hi"}]]
    answers = read_answers(pool, [str(tiny_model)], turns, Sampling(max_tokens=4), handle)
    assert next(answers)[0].state == "running"
    handle.stop()
    assert [each.state for each in list(answers)[-1]] == ["stopped"]
    assert not pool.read.is_set()
    pool.read.set()
    pool.close()


def test_a_pool_is_closed_while_a_model_is_being_loaded_which_is_let_go_then(runs: Path, tiny_model: Path) -> None:
    pool = Slow(str(tiny_model), runs)
    loading = threading.Thread(target=pool.take, args=[str(tiny_model)])
    loading.start()
    while pool.loading is None:
        time.sleep(0.01)
    pool.close()
    assert loading.is_alive()
    pool.read.set()
    loading.join()
    assert not pool._shared
    with pytest.raises(UsageError, match="closed"):
        pool.take(str(tiny_model))


def test_a_model_that_is_gone_is_an_answer_that_says_so(pool: Pool) -> None:
    *_, last = read_answers(pool, ["gone"], [[{"role": "user", "content": "q"}]], Sampling(), RequestHandle())
    assert last[0].state == "error"
    assert "no model 'gone'" in last[0].error


# ratings


def scored_study(tmp_path: Path, tuned: str = "rrww", base: str = "rwrw") -> Study:
    run = write_run(tmp_path / "run", tuned=tuned, base=base)
    return study_of_scores(tmp_path / "studies" / "one", [run], seed=7)


def test_a_study_takes_scored_answers_of_a_run_and_its_base(tmp_path: Path) -> None:
    study = scored_study(tmp_path)
    assert study.models == ["run", "base of run"]
    assert len(study.questions) == 4
    assert names(tmp_path / "studies") == ["one"]
    assert [question.correct["run"] for question in study.questions] == [True, True, False, False]


def test_sides_are_shuffled_by_rater_and_stay_where_they_were(tmp_path: Path) -> None:
    study = scored_study(tmp_path, "r" * 40, "w" * 40)
    pairs = study.pairs("ann")
    left = sum(pair.left == "run" for pair in pairs)
    assert 8 < left < 32
    assert study.pairs("ann") == pairs
    assert study.pairs("bob") != pairs


def test_a_rater_goes_on_where_they_stopped(tmp_path: Path) -> None:
    study = scored_study(tmp_path)
    for done in range(4):
        pair, rated, total = study.next("ann")
        assert pair is not None
        assert (rated, total) == (done, 4)
        study.rate("ann", pair, "first", "")
        study = Study(study.folder)
    assert study.next("ann") == (None, 4, 4)
    assert study.next("bob")[1] == 0


def test_a_pair_that_was_skipped_comes_after_all_others(tmp_path: Path) -> None:
    study = scored_study(tmp_path)
    first, second = study.pairs("ann")[:2]
    skipped = [(pair.question.id, pair.left, pair.right) for pair in (first, second)]
    assert study.next("ann", skipped)[0] == study.pairs("ann")[2]
    for pair in study.pairs("ann")[2:]:
        study.rate("ann", pair, "first", "")
    assert study.next("ann", skipped[::-1])[0] == second
    assert first.question.reference == first.question.prompt.removeprefix("What is ").removesuffix("?")


def test_a_study_that_is_deleted_leaves_the_list_and_its_ratings_can_be_had_back(tmp_path: Path) -> None:
    study = study_of_scores(tmp_path / "studio/studies/s", [write_run(tmp_path / "run", tuned="r", base="w")], seed=7)
    study.rate("ann", study.pairs("ann")[0], "first", "")
    throw_away(study.folder)
    assert names(tmp_path / "studio/studies") == []
    (kept,) = (tmp_path / "studio/deleted").iterdir()
    assert len(Study(kept).ratings.all()) == 1


def test_results_say_who_wins_and_whether_people_agree_with_scores(tmp_path: Path) -> None:
    study = scored_study(tmp_path, "rrrrr", "wwwww")
    for rater in ("ann", "bob"):
        for pair in study.pairs(rater):
            study.rate(rater, pair, "first" if pair.left == "run" else "second", "")
    results = study.results()
    (_, _, win), scores = results["wins"][0], results["scores_agree"]
    assert (win, scores) == (wilson(5, 5), wilson(5, 5))  # two raters of a problem say less than two problems do
    assert (results["raters"], results["ratings"]) == (2, 10)
    assert results["raters_agree"] is None  # always the same verdict says nothing of agreement
    assert [json.loads(line)["rater"] for line in study.export().splitlines()].count("ann") == 5


def test_three_models_get_strengths(tmp_path: Path) -> None:
    write_run(tmp_path / "a", tuned="rrr", base="www")
    write_run(tmp_path / "b", tuned="rwr")
    study = study_of_scores(tmp_path / "s", [tmp_path / "a", tmp_path / "b"], seed=1)
    assert study.models == ["a", "base of a", "b"]
    assert len(study.pairs("ann")) == 9
    study.ratings.add(Rating("ann", study.questions[0].id, "a", "b", "first"))
    strengths = study.results()["strengths"]
    assert strengths["a"] > strengths["b"]


def test_models_answer_the_questions_of_a_study(tmp_path: Path, pool: Pool) -> None:
    asked: list[str] = []
    study = study_of_models(
        tmp_path / "s", pool, pool.names(), batch_file(tmp_path, 3), seed=1, handle=RequestHandle(), tell=asked.append
    )
    assert asked == study.models == pool.names()
    assert [question.prompt for question in study.questions] == ["0 + 0?", "1 + 1?", "2 + 2?"]
    assert all(set(question.answers) == set(study.models) for question in study.questions)
    assert study.results()["scores_agree"] is None


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 80, "a..b"])
def test_a_study_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        new_folder(tmp_path, name)


def test_a_comparison_tells_what_people_said(tmp_path: Path) -> None:
    study = study_of_scores(
        tmp_path / "studio/studies/s", [write_run(tmp_path / "run", tuned="rrww", base="rwrw")], seed=7
    )
    for pair in study.pairs("ann"):
        study.rate("ann", pair, "first" if pair.left == "run" else "second", "")
    study.ratings.add(Rating("bob", study.questions[0].id, "run", "somebody else's", "first"))
    said = list(sentences(compare([tmp_path / "run"], ["tuned"])))
    assert "4 ratings of 4 items by 1 rater" in said
    assert "tuned is preferred to base: 100.0% (51.0% to 100.0%)" in said


# batch


@pytest.fixture
def jobs(tmp_path: Path, pool: Pool) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path / "batch", pool)
    jobs.start()
    yield jobs
    jobs.close()


def test_a_job_gives_the_file_that_the_command_line_gives(
    jobs: Jobs, pool: Pool, tmp_path: Path, tiny_model: Path
) -> None:
    file = batch_file(tmp_path, 6)
    job = jobs.add(file, pool.names()[:1], "default", None)
    wait_for(lambda: jobs.get(job.name).state != "running")
    infer_files(tiny_model, {file: tmp_path / "cli.json"}, samplings=samplings(Infer(), seed=3407))
    ((_, result),) = jobs.results(job.name)
    assert result.read_bytes() == (tmp_path / "cli.json").read_bytes()
    assert (jobs.done(job.name), job.total) == (6, 6)


def test_two_models_answer_one_file_and_where_they_differ_is_found(jobs: Jobs, pool: Pool, tmp_path: Path) -> None:
    file = tmp_path / "gold.jsonl"
    lines = [{"id": n, "type": "math", "prompt": f"{n}?", "reference": str(n)} for n in range(4)]
    file.write_text("".join(json.dumps({**line, "sampling": {"max_tokens": 6}}) + "\n" for line in lines))
    job = jobs.add(file, pool.names()[:2], "default", None)
    assert job.total == 8
    wait_for(lambda: jobs.get(job.name).state == "done", 60)
    assert [at for at, _ in jobs.results(job.name)] == [0, 1]
    texts = [read_texts(result) for result in jobs.files(job)]
    assert [set(each) for each in texts] == [set("0123")] * 2
    jobs.results(job.name)[1][1].unlink()
    assert read_texts(jobs.files(job)[1]) == texts[1]  # of its journal, as while it is written
    texts = [{"0": "0", "1": "<think>a</think> <answer>1</answer>", "2": "7"}, {"0": "9", "1": "1", "2": "8"}]
    rows = list(AnswerTable().rows(job.name, jobs.items(job.name), jobs.golds(job.name), texts))
    assert [row.right for row in rows] == [(True, False), (True, True), (False, False), (None, None)]
    found = {outcome: [row.id for row in filtered(rows, "math", outcome, "")] for outcome in OUTCOMES}
    assert found == {
        "all": ["0", "1", "2", "3"], "differ": ["0"], "right": ["0", "1"], "wrong": ["0", "2"], "unanswered": ["3"],
    }  # fmt: skip
    assert [row.id for row in filtered(rows, "", "all", "THINK")] == ["1"]
    assert filtered(rows, "choice", "all", "") == []
    study = study_of_rows(tmp_path / "studies", pool.names(), rows, "mine")
    assert study.questions[0].correct == dict(zip(pool.names(), (True, False), strict=True))
    assert study_of_rows(tmp_path / "studies", pool.names(), rows, "mine").folder.name == "mine 2"


def test_a_job_of_an_earlier_studio_has_one_model(jobs: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "batch/old"
    folder.mkdir(parents=True)
    fields = {"name": "old", "model": "m", "profile": "default", "think_budget": None, "total": 3, "state": "done"}
    (folder / "job.json").write_text(json.dumps(fields))
    assert jobs.get("old").models == ("m",)


def test_faulty_lines_are_told_by_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"id": 1, "type": "math", "prompt": "a"}\nnot json\n{"id": 1, "type": "math", "prompt": "b"}\n')
    assert [fault.partition(":")[0] for fault in faults(file)] == ["line 2", "line 3"]
    assert faults(tmp_path / "none.jsonl") == []


def test_a_job_goes_on_with_the_next_server(tmp_path: Path, pool: Pool) -> None:
    first = Jobs(tmp_path / "batch", pool)
    first.start()
    job = first.add(batch_file(tmp_path, 80, max_tokens=4), pool.names()[:1], "default", None)
    wait_for(lambda: first.done(job.name) > 0)
    first.close()
    kept = first.done(job.name)
    assert first.get(job.name).state == "running"
    assert kept < 80
    second = Jobs(tmp_path / "batch", pool)
    second.start()
    wait_for(lambda: second.get(job.name).state == "done", 60)
    second.close()
    assert second.done(job.name) == 80  # nothing was generated twice


def test_a_job_is_stopped_and_goes_on(jobs: Jobs, pool: Pool, tmp_path: Path) -> None:
    job = jobs.add(batch_file(tmp_path, 80, max_tokens=4), pool.names()[1:2], "default", None)
    wait_for(lambda: jobs.done(job.name) > 0)
    jobs.stop(job.name)
    assert jobs.get(job.name).state == "stopped"
    wait_for(lambda: not pool.take(pool.names()[1]).shared.busy)
    jobs.go_on(job.name)
    wait_for(lambda: jobs.get(job.name).state == "done", 60)


def test_what_is_wrong_with_a_file_is_said_before_anything_runs(jobs: Jobs, pool: Pool, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"id": 1, "type": "math", "prompt": "a"}\nnot json\n{"id": 1, "type": "x", "prompt": "b"}\n')
    with pytest.raises(BatchFileError, match="2 of 3 lines"):
        jobs.add(file, pool.names()[:1], "default", None)
    with pytest.raises(ConfigError, match="math"):
        check(batch_file(tmp_path, 1), "default", 100_000)
    assert jobs.all() == []


@pytest.mark.parametrize("name", ["../x", "..", "", "a/b", "no-such-job"])
def test_a_job_that_is_none_is_refused(name: str, jobs: Jobs) -> None:
    with pytest.raises(UsageError, match="no job"):
        jobs.results(name)


# trainings


@pytest.fixture
def trainings(runs: Path) -> Trainings:
    return Trainings(runs, runs / "studio/trainings")


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"model: {tiny_model}\ndata: {{sample: 12, max_length: 1024}}\ntrain: {{max_steps: 400, save_every: 5}}\n"
    )
    return file


def test_runs_are_found_also_in_sweeps_and_whatever_they_are_called(trainings: Trainings, runs: Path) -> None:
    for name in ("sweep/r=4", "<b>bold</b>x"):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.yaml").write_text("model: x\n")
    assert {run.name for run in trainings.all()} >= {"tuned", "sweep/r=4"}
    assert trainings.get("sweep/r=4").state == "unfinished"
    with pytest.raises(UsageError):
        trainings.get("../runs/tuned")


def test_the_form_stands_for_a_command_line(trainings: Trainings, config: Path, runs: Path) -> None:
    chosen, command = trainings.plan("new", config, ["lora.r=2"])
    assert chosen.lora is not None
    assert (chosen.lora.r, chosen.run_folder) == (2, runs / "new")
    assert command == ["thinktune", "train", str(config), "lora.r=2", f"output={runs / 'new'}"]
    for name in ("../x", "a/b", "studio", ""):
        with pytest.raises(UsageError):
            trainings.plan(name, config, [])
    with pytest.raises(ConfigError, match="output"):
        trainings.plan("new", config, ["output=/tmp/elsewhere"])
    with pytest.raises(ConfigError, match="did you mean"):
        trainings.plan("new", config, ["lora.rr=2"])


@pytest.mark.parametrize(
    ("log", "runs", "phase"),
    [
        ("", True, "starting"),
        ("loading m\n", True, "preparing"),
        ("train ───\nloading\n", True, "training"),
        ("train ───\ntrained 40 steps\n", True, "asking"),
        ("train ───\nmerge ───\n", True, "merging"),
        ("train ───\nmerge ───\neval tuned ───\n", True, "scoring"),
        ("eval base ───\n", True, "scoring_base"),
        ("stopping: a checkpoint is saved\n", False, "stopped"),
        ("loading\nthinktune: no such model\n  → name another\n", False, "failed"),
        ("Traceback\nValueError: x\n", False, "failed"),
        ("", False, "stopped"),
    ],
)
def test_the_phase_of_a_training_is_told(log: str, runs: bool, phase: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: m\neval:\n  data: d\n  sample: 12\n")
    (tmp_path / "plan.json").write_text('{"plan": {"steps": 40}}')
    if phase == "asking":
        (tmp_path / "run.json").write_text("{}")
    found = read_progress(RunFolder(tmp_path), 7 if phase in ("training", "asking") else None, log, 0.0, runs=runs)
    assert found.phase == phase
    if phase == "training":
        assert (found.done, found.total, found.seconds_left) == (7, 40, None)
        log += "step 8/40 · loss 1.0 · 3 tokens/s · 1.0 GiB · 64 s left\n"
        assert read_progress(RunFolder(tmp_path), 8, log, time.time(), runs=True).seconds_left == pytest.approx(64, 0.1)
    if phase == "scoring":
        assert (found.done, found.total) == (0, 12)
    assert ("no such model" in found.error) == ("no such model" in log)


def test_a_runs_page_escapes_what_the_run_says_and_shows_changes_first(tmp_path: Path) -> None:
    folder = RunFolder(write_run(tmp_path / "<b>x", tuned="rwr", base="wrr", completion="<img src=x> {}"))
    shown = run_view.changed(folder, WORDS)
    assert re.findall(r'"chip \w*">([a-z ,]+)</span>', shown)[-3:] == [
        WORDS("fixed"), WORDS("lost"), WORDS("both_right"),
    ]  # fmt: skip
    run = Run("<b>x", folder, "trained", [])
    told = run_view.head(run, Progress("failed", error="<i>bad"), WORDS) + run_view.facts(run, {}, WORDS)
    assert run_view.rollouts(folder, WORDS) == ""
    rollout = Rollout((), (), "<img src=y>", "stop", "right", {"answer": 1.0}, 1.0, True, 5)
    for step in range(1, 8):
        group = Group(0, 0, step, "<b>x", (rollout, replace(rollout, reward=0.0)))
        RolloutJournal(folder.rollouts).write(Drawn(step, [group], [], 1, {"reward": 0.5}))
    drawn = run_view.rollouts(folder, WORDS)
    assert re.findall(r"<h4>step (\d)</h4>", drawn) == ["1", "3", "5", "7"]
    assert drawn.count("&lt;img src=y&gt;") == 8
    page = shown + told + drawn + run_view.scores(folder, WORDS) + run_view.files_of(folder, WORDS)
    assert not re.search("<(b>x|img|i>bad)", page)
    assert "33.3%" in run_view.scores(folder, WORDS) or "66.7%" in run_view.scores(folder, WORDS)


def test_uploaded_rows_may_be_trained_on_and_nothing_else_of_the_machine(trainings: Trainings, tmp_path: Path) -> None:
    file = tmp_path / "my rows.jsonl"
    file.write_text("{}\n")
    kept = trainings.take_data(file)
    assert (kept, kept) == (trainings.take_data(file), str(trainings.uploads / "my-rows.jsonl"))
    assert trainings.data() == [kept]
    file.write_text("{} \n")
    assert trainings.take_data(file).endswith("my-rows1.jsonl")  # another file of that name
    config, _ = trainings.plan("x", QUICKSTART, [f"data.source={kept}"])
    assert config.data.source == kept
    with pytest.raises(ConfigError):
        trainings.plan("x", QUICKSTART, [f"data.source={file}"])
    with pytest.raises(UsageError):
        trainings.take_data(tmp_path / "x.py")


def test_metrics_are_read_again_when_they_have_changed_and_not_otherwise(trainings: Trainings, runs: Path) -> None:
    file = runs / "tuned/metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.5}\n')
    first = trainings.get("tuned")
    assert trainings.get("tuned").metrics is first.metrics
    file.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n')
    assert (first.last("step"), trainings.get("tuned").last("step")) == (1, 2)
    file.unlink()
    assert trainings.get("tuned").metrics == []


def test_a_half_written_line_of_metrics_is_left_out(trainings: Trainings, runs: Path) -> None:
    (runs / "tuned/metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    run = trainings.get("tuned")
    assert (run.last("step"), run.last("loss"), run.last("eval_loss")) == (1, 2.5, None)


@pytest.mark.slow
def test_a_training_is_started_stopped_and_resumed(trainings: Trainings, config: Path, runs: Path) -> None:
    trainings.start("new", config, [])
    assert trainings.get("new").state == "training"
    with pytest.raises(RunFolderError, match="already"):
        trainings.start("new", config, [])
    wait_for(lambda: (trainings.get("new").last("step") or 0) >= 3, 120)
    trainings.stop("new")
    wait_for(lambda: trainings.get("new").state != "training", 60)
    assert trainings.get("new").state == "unfinished"
    assert "a checkpoint is saved" in trainings.log("new")
    stopped = trainings.get("new").last("step")
    other = Trainings(runs, runs / "studio/trainings")  # as after a restart of the server
    other.resume("new")
    wait_for(lambda: (trainings.get("new").last("step") or 0) > stopped, 120)
    assert trainings.get("new").state == "training"  # which this one sees too
    trainings.stop("new")
    wait_for(lambda: trainings.get("new").state != "training", 60)


# who may ask


def test_without_the_password_nothing_is_answered(pool: Pool, runs: Path) -> None:
    server = open_page(Studio(pool, runs, may_train=False), password="open sesame")
    try:
        with httpx.Client(base_url=server.url) as client:
            assert b"chat-send" not in client.get("").content
            body: dict[str, Any] = {"data": [], "fn_index": 0, "session_hash": "page"}
            for path in ("run/predict", "queue/join", "upload", "call/x", "api/x"):
                assert client.post(f"gradio_api/{path}", json=body).status_code == 401, path
            for path in ("config", "gradio_api/info", "gradio_api/queue/data", "studio/versions"):
                assert client.get(path, params={"session_hash": "page"}).status_code == 401, path
            for path in ("openapi.json", "docs", "gradio_api/runs", "monitoring/x", "gradio_api/vibe-code"):
                assert client.get(path).status_code in (401, 403, 404), path
            assert client.post("login", data={"username": USER, "password": "wrong"}).status_code == 400
            assert client.get("config").status_code == 401
            assert client.post("login", data={"username": USER, "password": "open sesame"}).status_code == 200
            assert client.get("config").status_code == 200
            assert client.get("gradio_api/runs").status_code == 404  # browsers keep no history of calls
    finally:
        server.close()


@pytest.mark.parametrize(("settings", "asks"), [({}, False), ({"host": "0.0.0.0"}, True), ({"password": "mine"}, True)])
def test_a_page_that_others_can_reach_has_a_password_and_trains_nothing(
    settings: dict[str, Any], asks: bool, tiny_model: Path, runs: Path
) -> None:
    server = serve([str(tiny_model)], runs=runs, **settings)
    try:
        assert (server.password is not None) == asks
        assert server.password == settings.get("password", server.password)
        with httpx.Client(base_url=server.address.partition("?")[0]) as client:
            assert client.get("config").status_code == 401
            assert ("token=" in server.url) == (not asks)
            if asks:
                client.post("login", data={"username": USER, "password": server.password})
            else:
                client.get(server.url)
            ids = {each["props"].get("elem_id") for each in client.get("config").json()["components"]}
            assert ("train-start" in ids) == ("host" not in settings)
    finally:
        server.close()


def test_a_shared_page_is_the_tunnels_and_asks_for_the_password_there(
    tiny_model: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda **_: "https://abc.gradio.live")
    server = serve([str(tiny_model)], runs=runs, share=True)
    try:
        assert server.url == "https://abc.gradio.live"
        assert server.password
        with httpx.Client(base_url=server._demo.local_url, headers={"host": "abc.gradio.live"}) as client:
            assert client.get("config").status_code == 401
            assert client.get("config", headers={"host": "abc.example"}).status_code == 421
            client.post("login", data={"username": USER, "password": server.password})
    finally:
        server.close()


def test_a_page_that_cannot_be_shared_is_not_opened(
    tiny_model: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("gradio.networking.setup_tunnel", fail)
    with pytest.raises(UsageError, match="cannot be shared"):
        serve([str(tiny_model)], runs=runs, share=True)


def test_the_first_model_is_loaded_when_a_page_is_there_or_nobody_comes(
    tiny_model: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "_PAGE_SECONDS", 1.0)
    server = serve([str(tiny_model)], runs=runs)
    try:
        time.sleep(0.5)
        assert "loading" not in caplog.text
        deadline = time.monotonic() + 10
        while "loading" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "loading" in caplog.text
    finally:
        server.close()


# memory


def _is_refresh(component: dict[str, Any]) -> bool:
    return bool(component["props"].get("elem_id") == "model-refresh")


@pytest.mark.slow
def test_pages_that_come_and_go_are_not_all_remembered(pool: Pool, runs: Path) -> None:
    server = open_page(Studio(pool, runs, may_train=False))
    try:
        with signed_in(server) as client:
            events = client.get("config").json()["dependencies"]
            refresh = next(each["id"] for each in client.get("config").json()["components"] if _is_refresh(each))
            tick = next(each["id"] for each in events if each["targets"][0] == [refresh, "click"])
            for number in range(MOST_SESSIONS + 20):
                body = {"data": [""], "fn_index": tick, "session_hash": f"page{number}"}
                client.post("gradio_api/run/predict", json=body).raise_for_status()
        blocks = server._demo
        assert len(blocks.app.state_holder.session_data) <= MOST_SESSIONS
        assert len(blocks.app.state_holder.time_last_used) <= MOST_SESSIONS
        queue = blocks._queue
        assert (queue.ANALYTICS_MAX_EVENTS, queue.cached_event_analytics_summary) == (1, {"functions": {}})
    finally:
        server.close()


def test_an_answer_tells_gradio_the_same_again_where_nothing_changed(pool: Pool, runs: Path) -> None:
    """For everything that is skipped, Gradio builds the component anew: ten times the work of a token's update."""
    studio = Studio(pool, runs, may_train=False)
    with gr.Blocks():
        tab = ChatTab(studio)
    request = SimpleNamespace(headers={}, session_hash="page")
    settings = (pool.names()[0], "", False, 0.0, 1.0, 0, 1.0, 12, 0, 1)
    _, *states, last = tab.ask(request, "12 + 30?", {"turns": []}, *settings)
    assert len(states) > 2
    assert all(isinstance(side, list) for _, _, left, right, _ in states for side in (left, right))
    assert last == (gr.skip(),) * 5  # which Gradio tells again when it has ended


def test_several_sources_of_a_run_are_told_in_words(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "mixed")
    folder.path.mkdir()
    sources = "[{source: builtin:arithmetic, weight: 1100}, {source: a/b}]"
    folder.config.write_text(f"model: builtin:smollm2\ndata: {{source: {sources}}}\n")
    assert "builtin:arithmetic × 1100, a/b × 1" in run_view.facts(Run("mixed", folder, "trained", []), {}, WORDS)


def test_a_question_that_waits_tells_the_page_nothing(pool: Pool, runs: Path) -> None:
    """Of a generator without an answer, Gradio tells the page that every output is empty: conversation, and draft."""
    studio = Studio(pool, runs, may_train=False)
    with gr.Blocks():
        tab = ChatTab(studio)
    request: Any = SimpleNamespace(headers={}, session_hash="page")
    settings = (pool.names()[0], "", False, 0.0, 1.0, 0, 1.0, 12, 0, 1)
    first = tab.ask(request, "12 + 30?", {"turns": []}, *settings)
    assert next(first)
    assert list(tab.ask(request, "1 + 3?", {"turns": []}, *settings)) == [(gr.skip(),) * 5]
    assert len(list(first)) > 2


def test_a_file_to_download_takes_the_place_of_the_one_before(
    pool: Pool, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    (tmp_path / "files").mkdir()
    run = write_run(runs / "scored", tuned="rw", base="ww")
    study_of_scores(runs / "studio/studies/s", [run], seed=1).ratings.add(Rating("ann", "x", "a", "b", "first"))
    studio = Studio(pool, runs, may_train=False)
    with gr.Blocks():
        tab = RateTab(studio, gr.BrowserState({}))
    files = [tab.tell_results("s", SimpleNamespace(headers={}))[2]["value"] for _ in range(3)]  # type: ignore[arg-type]
    assert [file for file in (tmp_path / "files").rglob("*") if file.is_file()] == [Path(files[0])]


# the guard


class Served:
    """An app behind the guard, asked without a network."""

    def __init__(self, files: Path, suffix: str = "") -> None:
        self.read = 0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while (message := await receive())["type"] == "http.request":
                self.read += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"text/html; charset=utf-8")],
                }
            )
            await send({"type": "http.response.body", "body": b"<script>a</script><scripted>", "more_body": True})
            await send({"type": "http.response.body", "body": b"<script src='b'>"})

        self._guard = Guard(app, names={"studio.local"}, suffix=suffix, files=files)

    def ask(
        self, path: str = "/", method: str = "GET", body: tuple[bytes, ...] = (b"",), **headers: str
    ) -> tuple[int, bytes, dict[bytes, bytes]]:
        sent: list[Any] = []
        chunks = [{"type": "http.request", "body": chunk, "more_body": chunk is not body[-1]} for chunk in body]

        async def receive() -> Any:
            return chunks.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        wire = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
        scope = {
            "type": "http", "path": path, "method": method,
            "headers": [(name.encode(), value.encode()) for name, value in wire.items()],
        }  # fmt: skip
        asyncio.run(self._guard(scope, receive, send))
        return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:]), dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:7860"}, 200),
        ({"host": "studio.local"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example:7860"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"host": "["}, 421),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 200),
        ({"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"}, 200),
    ],
)
def test_other_names_and_other_sites_are_refused(headers: dict[str, Any], status: int, tmp_path: Path) -> None:
    assert Served(tmp_path).ask(**headers)[0] == status


def test_a_tunnel_is_let_through_only_where_it_was_asked_for(tmp_path: Path) -> None:
    assert Served(tmp_path).ask(host="abc.gradio.live")[0] == 421
    assert Served(tmp_path, suffix=".gradio.live").ask(host="abc.gradio.live")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../etc/passwd",
        "/gradio_api/file={inside}/../secret",
        "/gradio_api/file={inside}/%2e%2e/secret",
        "/gradio_api/file={inside}/%252e%252e/secret",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/file={inside}/link",
        "/gradio_api/file={inside}/\0",
    ],
)
def test_no_file_but_the_studios_own_is_served(path: str, tmp_path: Path) -> None:
    inside = tmp_path / "files"
    inside.mkdir()
    (tmp_path / "secret").write_text("x")
    (inside / "link").symlink_to(tmp_path / "secret")
    assert Served(inside).ask(path.format(inside=inside))[0] == 403
    assert Served(inside).ask(f"/gradio_api/file={inside}/a/b.json")[0] == 200


def test_uploads_are_bounded_whatever_they_say_of_their_length(tmp_path: Path) -> None:
    served = Served(tmp_path)
    assert served.ask(method="POST", content_length=str(MOST_UPLOADED + 1))[0] == 413
    assert served.ask(method="POST", content_length="many")[0] == 400
    served.ask(method="POST", body=(b"x" * 2**20,) * 40)
    assert served.read <= MOST_UPLOADED


def test_pages_run_only_the_scripts_that_were_sent(tmp_path: Path) -> None:
    _, body, headers = Served(tmp_path).ask()
    policy = headers[b"content-security-policy"].decode()
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert body == f'<script nonce="{nonce}">a</script><scripted><script nonce="{nonce}" src=\'b\'>'.encode()
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert int(headers[b"content-length"]) == len(body)
    assert Served(tmp_path).ask()[1] != body


def test_rules_for_dark_pages_stand_alone() -> None:
    """Gradio puts the page's own name before each selector, and of a list with `.dark` before the first only."""
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"/\*.*?\*/", "", css(), flags=re.DOTALL))
    assert any(".dark" in each for each in selectors)
    assert [each for each in selectors if ".dark" in each and "," in each] == []
