"""The share of each worker, and what becomes of requests whose workers die."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest

from thinktune.cluster import Resources, connect
from thinktune.config import Load, Sampling
from thinktune.errors import DeviceError, MissingExtra, UsageError
from thinktune.inference.engines import Completion, EngineSettings, Request
from thinktune.inference.engines.fleet.opening import choose_crew
from thinktune.inference.engines.fleet.work import Cargo, Work


def requests(count: int, n: int = 1) -> list[Request]:
    return [Request(f"r{at}", [1, 2], Sampling(n=n)) for at in range(count)]


def answers(asked: Iterable[Request]) -> list[Completion]:
    return [Completion(each.id, index, "a") for each in asked for index in range(each.sampling.n)]


def test_a_worker_gets_a_little_more_than_it_writes_at_once_and_at_the_end_its_share() -> None:
    work, cargo = Work(requests(1000)), Cargo()
    assert len(work.load(cargo, 100, 4)) == 125
    assert work.load(cargo, 100, 4) == []
    work = Work(requests(100, n=2))
    assert [len(work.load(Cargo(), 100, 4)) for _ in range(4)] == [25] * 4
    assert not work.left
    work = Work(iter(requests(1000)))  # of unknown number
    assert len(work.load(Cargo(), 100, 4)) == 125


def test_whatever_dies_every_sample_comes_once() -> None:
    draw = random.Random(3)
    work, cargos = Work(requests(500, n=3)), [Cargo() for _ in range(4)]
    found: Counter[tuple[str, int]] = Counter()
    late: list[Completion] = []
    while work.left or any(cargo.tasks for cargo in cargos):
        for place, cargo in enumerate(cargos):
            coming = answers(work.load(cargo, 40, 4)) + late
            late = []
            draw.shuffle(coming)
            for completion in coming:
                if draw.random() < 0.1 and completion.index < 2:
                    late.append(completion)  # from a worker that was only cut off
                elif work.finish(cargo, completion):
                    found[completion.request_id, completion.index] += 1
            if cargo.tasks:
                assert list(work.give_back(cargo, "gone")) == [] or cargo.suspected
                cargos[place] = Cargo()
    assert set(found.values()) == {1}
    assert len(found) >= 1490  # those aboard three dead workers, the last time alone, are errors


def test_the_request_that_ends_its_workers_is_found_and_all_others_are_answered() -> None:
    work, cargo = Work(requests(300)), Cargo()
    done, failed, deaths = set(), [], 0
    while work.left:
        asked = work.load(cargo, 200, 1)
        if any(each.id == "r77" for each in asked):
            deaths += 1
            failed += list(work.give_back(cargo, "gone"))
            cargo = Cargo()
        else:
            done |= {each.request_id for each in answers(asked) if work.finish(cargo, each)}
    assert len(done) == 299
    assert [(each.request_id, each.finish_reason) for each in failed] == [("r77", "error")]
    assert "gone" in (failed[0].error or "")
    assert deaths <= 11


def test_two_losses_of_machines_blame_nobody() -> None:
    work = Work(requests(64))
    for _ in range(2):
        cargo = Cargo()
        while work.load(cargo, 64, 1):
            pass
        assert list(work.give_back(cargo, "gone")) == []
    cargo = Cargo()
    assert len(work.load(cargo, 64, 1)) == 64
    assert cargo.suspected
    assert all(work.finish(cargo, each) for each in answers(task.request for task in list(cargo.tasks.values())))
    assert not work.left


def test_without_ray_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra, match="Ray is not installed") as caught:
        connect(None, 2, Resources(0, 1))
    assert caught.value.hint == "pip install 'thinktune[ray]'"


def test_one_gpu_for_all_workers_is_refused() -> None:
    with pytest.raises(DeviceError, match="each worker takes a GPU of its own"):
        choose_crew(EngineSettings(workers=2, load=Load(device="cuda:1")))


def test_workers_on_this_host_share_its_cores_or_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8))
    assert choose_crew(EngineSettings(workers=3, load=Load(device="cpu"))).each == Resources(0, 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert choose_crew(EngineSettings(workers=2)).each == Resources(1, 1)
    with pytest.raises(UsageError, match="3 workers take a GPU each, and there are 2 here"):
        choose_crew(EngineSettings(workers=3))
