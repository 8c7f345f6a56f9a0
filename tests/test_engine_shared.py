"""One model for many callers: nobody's answer depends on who else asks, and a stop stops one."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from thinktune.config import Sampling
from thinktune.errors import GenerationError, Interrupted, ModelError
from thinktune.inference.engines.base import Request
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.inference.engines.shared_engine import SharedModel
from thinktune.models import Loaded, load_model
from thinktune.models.adapters import put_adapter


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    """An adapter that changes what the tiny model says."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(
        load_model(base).model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "up_proj"])
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    shutil.copy(base / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Loaded:
    return load_model(tiny_model)


@pytest.fixture
def shared(tiny_model: Path) -> Iterator[SharedModel]:
    own = load_model(tiny_model)
    model = SharedModel(TransformersEngine(own.model, own.tokenizer, own.chat.stop_ids), most_streams=4)
    yield model
    model.close()


@pytest.fixture
def endless(tiny_model: Path) -> Iterator[SharedModel]:
    """A model that knows no end of turn."""
    own = load_model(tiny_model)
    model = SharedModel(TransformersEngine(own.model, own.tokenizer, ()), most_streams=4)
    yield model
    model.close()


def ask(loaded: Loaded, text: str, **sampling: object) -> Request:
    settings = Sampling().changed(**{"max_tokens": 24, "temperature": 0.8, "seed": 1, **sampling})
    return Request(text, loaded.chat.prompt_ids([{"role": "user", "content": text}]), settings)


def test_many_at_once_read_what_each_would_read_alone(loaded: Loaded, shared: SharedModel) -> None:
    requests = [ask(loaded, f"{'word ' * (n % 5)}number {n}", max_tokens=8 + n) for n in range(12)]
    alone = TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids)
    expected = ["".join(alone.stream(request)) for request in requests]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda request: "".join(shared.engine().stream(request)), requests))
    assert found == expected


def test_adapters_are_switched_on_one_model_and_leave_nothing_behind(
    loaded: Loaded, shared: SharedModel, tiny_model: Path, tmp_path: Path
) -> None:
    folders = [make_adapter(tiny_model, tmp_path / f"adapter{n}", n) for n in (1, 2)]
    request = ask(loaded, "How many apples are left?")
    alone = TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids)
    expected: dict[str | None, str] = {None: "".join(alone.stream(request))}
    for name, folder in zip(("one", "two"), folders, strict=True):
        shared.add_adapter(name, folder)
        own = load_model(tiny_model)
        engine = TransformersEngine(put_adapter(own.model, folder, merge=False), own.tokenizer, own.chat.stop_ids)
        expected[name] = "".join(engine.stream(request))
    assert len(set(expected.values())) == 3
    names = [None, "one", "two", "two", None, "one"] * 2
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda name: "".join(shared.engine(name).stream(request)), names))
    assert found == [expected[name] for name in names]


def test_a_list_is_answered_beside_streams_as_it_is_alone(loaded: Loaded, shared: SharedModel) -> None:
    requests = [ask(loaded, f"item {n}", n=2) for n in range(6)]
    alone = TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids)
    expected = {(each.request_id, each.index): each.text for each in alone.generate(requests)}
    with ThreadPoolExecutor(4) as pool:
        asked = [ask(loaded, f"beside {n}") for n in range(3)]
        streams = [pool.submit(lambda each: "".join(shared.engine().stream(each)), each) for each in asked]
        found = {(each.request_id, each.index): each.text for each in shared.engine().generate(requests)}
        assert all(stream.result() for stream in streams)
    assert found == expected


def test_a_stop_ends_one_stream_and_no_other(loaded: Loaded, endless: SharedModel) -> None:
    mine, other = RequestHandle(), RequestHandle()
    long = {"max_tokens": 1500, "stop": ()}
    stream = endless.engine(None, mine).stream(ask(loaded, "mine", **long))
    beside = endless.engine(None, other).stream(ask(loaded, "beside", **long))
    assert next(stream)
    assert next(beside)
    mine.stop()
    assert len(list(stream)) < 400
    assert next(beside)
    other.stop()
    list(beside)
    for _ in range(100):
        if not endless.busy:
            break
        time.sleep(0.02)
    assert not endless.busy  # the engine itself stands still


def test_who_stops_listening_stops_the_engine(loaded: Loaded, endless: SharedModel) -> None:
    stream = endless.engine().stream(ask(loaded, "x", max_tokens=1500, stop=()))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while endless.busy and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not endless.busy


def test_those_who_wait_know_their_place_and_can_leave(loaded: Loaded, endless: SharedModel) -> None:
    handles = [RequestHandle() for _ in range(7)]
    texts: dict[int, str] = {}

    def read(n: int) -> None:
        request = ask(loaded, f"q {n}", max_tokens=1200, stop=())
        texts[n] = "".join(endless.engine(None, handles[n]).stream(request))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(7)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    time.sleep(0.1)
    assert [handle.waiting for handle in handles] == [0, 0, 0, 0, 1, 2, 3]
    handles[4].stop()
    time.sleep(0.2)
    assert [handle.waiting for handle in handles[5:]] == [1, 2]
    for handle in handles:
        handle.stop()
    for thread in threads:
        thread.join(timeout=10)
    assert texts[4] == texts[5] == texts[6] == ""


def test_a_stopped_list_says_that_it_goes_on(loaded: Loaded, endless: SharedModel) -> None:
    handle = RequestHandle()
    requests = [ask(loaded, f"item {n}", max_tokens=4 + 300 * n, stop=()) for n in range(4)]
    completions = endless.engine(None, handle).generate(requests)
    assert next(completions).request_id == "item 0"
    handle.stop()
    with pytest.raises(Interrupted):
        list(completions)


def test_scores_are_those_of_the_adapter_that_is_asked(loaded: Loaded, shared: SharedModel) -> None:
    prompt = loaded.chat.prompt_ids([{"role": "user", "content": "3 + 4"}])
    reply = loaded.chat.reply_ids("7")
    alone = TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids)
    assert shared.engine().logprobs(prompt, reply) == pytest.approx(alone.logprobs(prompt, reply), abs=1e-4)


def test_a_question_without_room_is_refused_at_once(loaded: Loaded, shared: SharedModel) -> None:
    with pytest.raises(GenerationError, match="no room"):
        next(shared.engine().stream(ask(loaded, "word " * 3000)))


def test_an_adapter_for_another_model_does_not_speak_for_the_base(
    shared: SharedModel, loaded: Loaded, tmp_path: Path
) -> None:
    from conftest import make_tiny_model

    other = make_tiny_model(tmp_path / "other", hidden_size=64)
    with pytest.raises(ModelError, match="does not fit"):
        shared.add_adapter("wrong", make_adapter(other, tmp_path / "adapter", 1))
    assert shared.failed
    with pytest.raises(GenerationError, match="did not fit"):
        next(shared.engine().stream(ask(loaded, "q")))


def test_closing_ends_whoever_still_listens(loaded: Loaded, endless: SharedModel) -> None:
    stream = endless.engine().stream(ask(loaded, "x", max_tokens=1500, stop=()))
    next(stream)
    endless.close()
    with pytest.raises(GenerationError, match="closed"):
        list(stream)
