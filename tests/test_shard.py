"""Shards of a batch file: whatever their number, their journals add up to one result."""

from __future__ import annotations

import fcntl
import json
from datetime import datetime
from pathlib import Path

import pytest

from conftest import CHAT_TEMPLATE, make_tiny_tokenizer
from test_batch import Workbench, line
from thinktune.errors import GenerationError, UsageError
from thinktune.inference.batch_file import Item
from thinktune.inference.shard import Shard, journal_of, journals_beside
from thinktune.models import Chat
from thinktune.models.template_date import hold_date


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def test_every_sound_item_belongs_to_one_shard() -> None:
    items = [Item(at, "math") for at in range(1000)] + [Item(None, problem="line 7: is not JSON")]
    parts = [Shard.parse(f"{index}/7").of(items) for index in range(7)]
    assert sorted(item.id for part in parts for item in part) == list(range(1000))  # type: ignore[type-var]
    assert all(100 < len(part) < 190 for part in parts)


@pytest.mark.parametrize("text", ["7/7", "1", "1/0", "a/b", "-1/3", "1/3/5"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not I/N"):
        Shard.parse(text)


def test_journals_of_shards_add_up_to_the_result_and_nothing_is_asked_twice(bench: Workbench) -> None:
    text = line(1) + line(2, "code-generate") + line(3) + line(4) + line(5, "choice")
    bench.infer(text)
    whole, asked = bench.out.read_bytes(), len(set(bench.asked))
    bench.out.unlink()
    journal_of(bench.out).unlink()
    bench.asked.clear()
    for index in range(3):
        bench.infer(shard=Shard(index, 3))
        assert not bench.out.exists()
    assert "shard 2 of 3; the same command without --shard writes" in bench.said.getvalue()
    assert len(set(bench.asked)) == asked
    bench.asked.clear()
    bench.infer(shard=Shard(0, 2))  # of another number
    bench.infer()
    assert (bench.asked, bench.out.read_bytes()) == ([], whole)
    assert len({file.name for file in bench.out.parent.glob("res.journal*.jsonl")}) == 5


def test_the_result_makes_what_no_shard_has_and_overwriting_forgets_them(bench: Workbench) -> None:
    text = "".join(map(line, range(6)))
    bench.infer(text, shard=Shard(1, 2))
    there = len(set(bench.asked))
    bench.asked.clear()
    bench.infer()
    assert len(set(bench.asked)) == 6 - there
    bench.asked.clear()
    bench.infer(overwrite=True)
    assert len(set(bench.asked)) == 6
    assert journals_beside(bench.out) == []


def test_a_failure_of_a_shard_is_tried_again_by_the_whole(bench: Workbench) -> None:
    def fail(prompt: str) -> str:
        raise ValueError("a bad day")

    good, bench.reply = bench.reply, fail
    with pytest.raises(GenerationError, match="a bad day"):
        bench.infer(line(1) + line(2), shard=Shard(0, 1))
    bench.reply = good
    assert bench.infer().failed == 0


def test_while_a_shard_is_at_work_the_whole_is_refused(bench: Workbench) -> None:
    bench.infer(line(1) + line(2), shard=Shard(0, 2))
    with journal_of(bench.out, Shard(0, 2)).open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"another process is writing .*res\.journal\.0-of-2\.jsonl"):
            bench.infer()
        bench.infer(shard=Shard(1, 2))
    assert bench.infer().items == 2


def test_journals_of_other_results_are_not_taken(tmp_path: Path) -> None:
    for name in ("res.journal.0-of-2.jsonl", "res.journal.jsonl", "res2.journal.jsonl", "xres.journal.1-of-2.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "res.journal.jsonl.date").touch()
    assert [each.name for each in journals_beside(tmp_path / "res.json")] == ["res.journal.0-of-2.jsonl"]
    assert [each.name for each in journals_beside(tmp_path / "res.json", Shard(1, 2))] == ["res.journal.jsonl"]


def test_shards_have_one_date(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}" + CHAT_TEMPLATE
    journal = tmp_path / "res.journal.jsonl"
    chats = []
    for day in (1, 2):
        chat = Chat(tokenizer, now=datetime(2026, 1, day))
        chat.is_dated = False  # as if it were that day
        hold_date(chat, journal, overwrite=False, shared=True)
        chats.append(chat)
    assert [chat.now.day for chat in chats] == [1, 1]
    assert json.loads((tmp_path / "res.journal.jsonl.date").read_text())["now"].startswith("2026-01-01")
    assert [each.name for each in tmp_path.iterdir()] == ["res.journal.jsonl.date"]
