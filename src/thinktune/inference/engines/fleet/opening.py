"""From settings to a fleet: how many workers, where, and with which engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from thinktune.cluster import Resources, connect, gpus_of_cluster
from thinktune.config import Load
from thinktune.errors import DeviceError, UsageError
from thinktune.inference.engines.base import Engine
from thinktune.inference.engines.fleet.fleet import Crew, Fleet
from thinktune.inference.engines.fleet.worker import Opening
from thinktune.inference.engines.found_model import FoundModel
from thinktune.inference.engines.lazy import Candidate
from thinktune.inference.engines.registry import ENGINES, choose_engines
from thinktune.inference.engines.settings import EngineSettings

if TYPE_CHECKING:
    import torch


def choose_crew(settings: EngineSettings) -> Crew:
    """Choose how many workers there are, and the resources of each: a GPU, or a share of the cores.

    Raises:
        UsageError: this host has fewer GPUs, or the number is not given for a cluster without any.
        DeviceError: there is no such device, or one of them is named for all.
        MissingExtra, UsageError: see `cluster.connect`.
    """
    wanted = settings.load.device
    if ":" in wanted:
        raise DeviceError(f"load.device is {wanted}, and each worker takes a GPU of its own", hint="load.device=cuda")
    if settings.cluster is None:
        return _on_this_host(settings.workers or 1, wanted)
    connect(settings.cluster, 0, Resources(0, 1))
    gpus = 0 if wanted == "cpu" else gpus_of_cluster()
    if wanted == "cuda" and not gpus:
        raise DeviceError(f"the cluster at {settings.cluster} has no GPUs")
    if not settings.workers and not gpus:
        raise UsageError("the cluster has no GPUs to count the workers by", hint="say how many: --workers N")
    return Crew(settings.workers or gpus, Resources(1 if gpus else 0, 1), settings.cluster)


def _on_this_host(count: int, wanted: str) -> Crew:
    from thinktune.models.device import choose_device

    if choose_device(wanted).type == "cpu":
        return Crew(count, Resources(0, max(1, len(os.sched_getaffinity(0)) // count)))
    import torch

    if (gpus := torch.cuda.device_count()) < count:
        raise UsageError(
            f"{count} workers take a GPU each, and there are {gpus} here",
            hint="ask for fewer, or --load device=cpu runs them on the cores",
        )
    return Crew(count, Resources(1, 1))


def hardware_of(crew: Crew, load: Load) -> tuple[torch.device, torch.dtype]:
    """Return the device and the dtype that the workers choose; a machine without a GPU expects theirs to be newer ones.

    Each worker is held to it, by the model's fingerprint, when it has started.
    """
    import torch

    from thinktune.models.device import choose_device, choose_dtype

    if crew.each.gpus and not torch.cuda.is_available():
        return torch.device("cuda"), torch.float32 if load.dtype == "float32" else torch.bfloat16
    device = choose_device("cuda" if crew.each.gpus else "cpu")
    return device, choose_dtype(device, load.dtype)


def fleet_candidates(model: FoundModel, crew: Crew) -> Iterator[Candidate]:
    """Yield a fleet for each engine that may run a model."""
    for entry in choose_engines(model):
        name = next((name for name, each in ENGINES.items() if each is entry), model.settings.engine)
        unsupported = entry.unsupported - {"think_budget"}
        start = partial(_start, model, name, crew, unsupported)
        yield Candidate(start, unsupported, entry.context_setting(model.settings))


def _start(model: FoundModel, engine: str, crew: Crew, unsupported: frozenset[str]) -> Engine:
    load = model.settings.load.model_copy(update={"device": "cuda" if crew.each.gpus else "cpu"})
    settings = replace(model.settings, engine=engine, load=load, workers=1, cluster=None)
    opening = Opening(model.reference, settings, model.adapters, os.getcwd())
    return Fleet(opening, crew, model.fingerprint, unsupported)
