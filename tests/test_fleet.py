"""Fleets and sweeps on a real Ray cluster of this machine: the same answers and runs, whatever dies."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console

from conftest import make_tiny_model
from test_sweep import make_file
from thinktune import cluster
from thinktune.config import SEED, Infer, Load, Sampling
from thinktune.errors import UsageError
from thinktune.inference.batch import infer
from thinktune.inference.batch_file import read_batch_file
from thinktune.inference.complete import complete
from thinktune.inference.engines import Completion, Engine, EngineSettings, Opened, Request, open_engine
from thinktune.inference.engines.fleet.fleet import Fleet
from thinktune.inference.engines.lazy import EngineOnDemand
from thinktune.inference.profiles import samplings
from thinktune.inference.shard import journal_of
from thinktune.workflows.parallel_sweep import sweep_in_parallel
from thinktune.workflows.sweep import sweep
from training import adapter_of

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
LOAD = Load(device="cpu", dtype="float32")
SAMPLINGS = {"math": Sampling(max_tokens=24), "code-generate": Sampling(max_tokens=24, temperature=1.0, n=3, seed=1)}


class Machines:
    """A Ray cluster whose head has no room for workers, and each other node for one."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 10**8, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        self.nodes: list[Any] = []
        self.add(count)
        self.address = self._cluster.address

    def add(self, count: int) -> None:
        self.nodes += [self._cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(count)]

    def kill(self) -> None:
        self._cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def close(self) -> None:
        cluster.import_ray().shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    make_tiny_model(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def machines(folder: Path) -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))  # nodes hand it on to their workers
        patch.setenv("THINKTUNE_CACHE", str(folder / "cache"))
        patch.setenv("FLEET_POISON", "9999")
        patch.setenv("FLEET_SECONDS", "0.002")
        cluster.import_ray()  # sets its environment, before the nodes start
        machines = Machines(2)
        yield machines
        machines.close()


def settings(
    machines: Machines | None, workers: int | None = None, engine: str = "fleet_engine:Digests"
) -> EngineSettings:
    return EngineSettings(engine, LOAD, workers=workers, cluster=machines.address if machines else None)


def batch_file(folder: Path, count: int) -> Path:
    lines = [{"id": f"q{at}", "type": list(SAMPLINGS)[at % 2], "prompt": f"What is {at}?"} for at in range(count)]
    file = folder / f"batch{count}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def answer(opened: Opened, file: Path, out: Path) -> list[dict[str, Any]]:
    infer(opened, read_batch_file(file, samplings=SAMPLINGS), out, console=Console(file=io.StringIO()))
    results: list[dict[str, Any]] = json.loads(out.read_text())["result"]["results"]
    return results


def journal_keys(out: Path) -> list[str]:
    return [json.loads(line)["key"] for line in journal_of(out).read_text().splitlines()]


@pytest.fixture(scope="module")
def opened(machines: Machines, folder: Path) -> Iterator[Opened]:
    """Two workers with engines that answer at once."""
    with open_engine(folder / "tiny", settings(machines, 2)) as opened:
        yield opened


def fleet_of(opened: Opened) -> Fleet:
    assert isinstance(opened.engine, EngineOnDemand)
    opened.engine.start()
    assert isinstance(opened.engine._engine, Fleet)
    return opened.engine._engine


def test_workers_answer_as_one_process_does_and_go_on_with_its_journal(
    machines: Machines, folder: Path, tmp_path: Path
) -> None:
    many, few = batch_file(folder, 60), batch_file(folder, 1)
    with open_engine(folder / "tiny", settings(None, engine="transformers")) as single:
        alone = answer(single, many, tmp_path / "a.json")
    with open_engine(folder / "tiny", settings(machines, 2, "transformers")) as opened:
        found = answer(opened, many, tmp_path / "b.json")
        assert answer(opened, few, tmp_path / "c.json") == found[:1]  # fewer questions than workers
        journal = journal_of(tmp_path / "a.json")
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:30]))
        assert len(answer(opened, many, tmp_path / "a.json")) == 60
    assert len(journal_keys(tmp_path / "a.json")) == len(set(journal_keys(tmp_path / "a.json"))) == 120
    assert sum(one != other for one, other in zip(alone, found, strict=True)) <= 1  # rounding by batch shape


def test_budgets_likelihoods_and_calls_that_are_left_are_those_of_one_engine(
    opened: Opened, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def texts(engine: Engine, requests: list[Request]) -> dict[tuple[str, int], str]:
        found = [((each.request_id, each.index), each.text) for each in engine.generate(requests)]
        assert len(found) == len(dict(found))
        return dict(found)

    monkeypatch.syspath_prepend(str(TESTS))
    budget = Sampling(max_tokens=20, think_budget=8, n=2)
    budgeted = [Request(f"b{at}", [5, at], budget) for at in range(50)]
    plain = [Request(f"think b{at}", [6, at], Sampling(max_tokens=20)) for at in range(50)]
    pairs = [([1] * (1 + at % 5), [at % 7, 3]) for at in range(50)]
    with open_engine(folder / "tiny", settings(None)) as single:
        expected = texts(single.engine, [*budgeted, *plain])
        scores = [sum(single.engine.logprobs(*pair)) for pair in pairs]
    opened.engine.require_supported(budget)
    assert texts(opened.engine, [*budgeted, *plain]) == expected
    with closing(opened.engine.generate([Request(f"b{at}", [7, at], Sampling()) for at in range(500)])) as left:
        next(left)
    assert texts(opened.engine, [*budgeted, *plain]) == expected
    assert [each.logprob for each in opened.engine.likelihoods(pairs)] == scores
    assert opened.engine.logprobs([1, 2], [3]) == [-2.5]
    assert "".join(opened.engine.stream(plain[0])) == expected["think b0", 0]


def test_a_machine_that_is_lost_costs_no_answer_and_none_comes_twice(
    machines: Machines, opened: Opened, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    requests = [Request(f"q{at}", [4, at], Sampling(n=1 + at % 2)) for at in range(3000)]
    fleet = fleet_of(opened)
    generate = fleet.generate

    def killing(asked: Iterable[Request]) -> Generator[Completion, None, None]:
        for number, completion in enumerate(generate(asked)):
            if number == 500:
                machines.kill()
                machines.add(1)
            yield completion

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "generate", killing)
        console = Console(file=io.StringIO())
        done = complete(opened.engine, requests, tmp_path / "x.journal.jsonl", model="m", console=console)
    assert len(done.completions) == 4500
    assert all(each.error is None for each in done.completions.values())
    keys = [json.loads(line)["key"] for line in (tmp_path / "x.journal.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 4500
    assert capfd.readouterr().out == ""  # Ray's daemons speak to stdout, which is for results


def test_a_worker_that_is_cut_off_is_given_up_and_does_not_go_on_for_itself(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_of(opened)

    def are_ready() -> bool:
        fleet._greet()
        return all(member.is_ready for member in fleet._members)

    until(are_ready, 240)
    monkeypatch.setattr("thinktune.inference.engines.fleet.fleet._SILENT_SECONDS", 3)
    cut_off = psutil.Process(int(fleet._members[0].place.rpartition(" ")[2]))
    requests = [Request(f"q{at}", [5, at], Sampling()) for at in range(500)]
    found = []
    for number, completion in enumerate(fleet.generate(requests)):
        found.append(completion)
        if number == 100:
            cut_off.suspend()
    assert sorted(each.request_id for each in found) == sorted(each.id for each in requests)
    assert not any(each.error for each in found)
    assert cut_off.pid not in [int(each.place.rpartition(" ")[2]) for each in fleet._members if each.is_ready]
    with suppress(psutil.NoSuchProcess):
        cut_off.resume()
    until(lambda: not cut_off.is_running(), 30)


def test_a_question_that_ends_every_process_becomes_an_error(opened: Opened) -> None:
    requests = [Request("poison", [9999], Sampling(n=2)), *(Request(f"q{at}", [at], Sampling()) for at in range(9))]
    found = {(each.request_id, each.index): each for each in opened.engine.generate(requests)}
    assert "a worker ended at this request" in str(found["poison", 0].error)
    assert {name for (name, _), each in found.items() if each.error} == {"poison"}
    assert len(found) == 11


def test_a_worker_that_has_another_model_is_refused_in_a_sentence(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_of(opened)
    monkeypatch.setattr(fleet, "_fingerprint", "another")
    if all(member.is_ready for member in fleet._members):  # one that is starting comes upon it
        fleet._replace(fleet._members[0])
    asked = (Request(f"q{at}", [1], Sampling()) for at in count())  # until the next worker is there
    with pytest.raises(UsageError, match=r"is another model on .* than here, or has another dtype") as caught:
        deque(fleet.generate(asked), maxlen=0)
    assert "--load dtype=bfloat16" in caught.value.hint


def test_a_driver_that_is_killed_leaves_no_worker_and_its_journal_is_gone_on_with(
    machines: Machines, opened: Opened, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.engine.close()  # room for another
    file, out = batch_file(folder, 2000), tmp_path / "res.json"
    call = [sys.executable, "-m", "thinktune", "infer", str(folder / "tiny"), str(file), "-o", str(out)]
    call += ["--engine", "fleet_engine:Digests", "--load", "device=cpu", "--load", "dtype=float32"]
    call += ["--cluster", machines.address, "--workers", "1"]
    driver = subprocess.Popen(call, stderr=subprocess.DEVNULL)
    journal = journal_of(out)
    until(lambda: journal.exists() and journal.stat().st_size > 20_000, 240)
    driver.kill()
    driver.wait()
    until(lambda: not processes("ray::Worker"), 60)
    assert len(journal.read_bytes().splitlines()) < 2000
    monkeypatch.syspath_prepend(str(TESTS))
    with open_engine(folder / "tiny", settings(None)) as single:
        items = read_batch_file(file, samplings=samplings(Infer(), SEED))
        infer(single, items, out, console=Console(file=io.StringIO()))
    assert len(journal_keys(out)) == len(set(journal_keys(out))) == 4000


def test_a_ray_of_ones_own_ends_with_the_process_that_has_started_it() -> None:
    code = "from thinktune.cluster import *; connect(None, 1, Resources(0, 1)); print('up', flush=True); input()"
    driver = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert driver.stdout is not None
    assert driver.stdout.readline() == b"up\n"
    left = psutil.Process(driver.pid).children(recursive=True)
    assert {"raylet", "gcs_server"} <= {process.name() for process in left}
    driver.kill()
    driver.communicate()
    assert psutil.wait_procs(left, 30)[1] == []


def test_members_trained_side_by_side_are_those_of_one_after_the_other_though_one_is_killed(
    machines: Machines, opened: Opened, folder: Path, tmp_path: Path
) -> None:
    opened.engine.close()
    files = {}
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
        files[name] = make_file(folder / "tiny", tmp_path / name, train={"max_steps": 4})
    grid, console = ["lora.r=2,4,8"], Console(file=io.StringIO())

    def kill_one() -> None:
        until(lambda: list((tmp_path / "together").glob("runs/*/checkpoints")), 240)
        processes("ray::_train")[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    together = sweep_in_parallel(files["together"], grid, console=console, workers=2, cluster=machines.address)
    killer.join()
    alone = sweep(files["alone"], grid, console=console)
    assert not together.failures
    assert [run.name for run in together.runs] == [run.name for run in alone.runs]
    for one, other in zip(alone.runs, together.runs, strict=True):
        torch.testing.assert_close(adapter_of(one), adapter_of(other), rtol=1e-5, atol=1e-7)
        for name in ("base", "tuned"):
            ours, theirs = [json.loads((run / "eval" / name / "summary.json").read_text()) for run in (one, other)]
            assert ours["accuracy"] == theirs["accuracy"]
        assert (other / "report.html").exists()
    answers = {(run / "eval/base/journal.jsonl").read_bytes() for run in together.runs}
    assert len(answers) == 1
    said = io.StringIO()
    again = sweep_in_parallel(
        files["together"], [*grid, "lora.alpha=8"], console=Console(file=said), workers=2, cluster=machines.address
    )
    assert set(again.failures) == {run.name for run in together.runs}
    assert "was started with other settings of lora" in said.getvalue().replace("\n", " ")


def test_a_cluster_with_other_versions_and_none_are_told_in_a_sentence(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = cluster.import_ray()
    ray.shutdown()
    with pytest.raises(UsageError, match=r"there is no Ray cluster at 127\.0\.0\.1:1"):
        cluster.connect("127.0.0.1:1", 1, cluster.Resources(0, 1))
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    with pytest.raises(UsageError, match=r"runs other versions: .*Ray: 2\.0\.0"):
        cluster.connect(machines.address, 1, cluster.Resources(0, 1))


def processes(name: str) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if name in " ".join(each.info["cmdline"] or [])]


def until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
