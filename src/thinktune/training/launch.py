"""Processes for a training on the GPUs of this host, started and watched over by torch.distributed.elastic."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from thinktune.config import Config, dump_config
from thinktune.errors import DeviceError, LostRank, StartAgain, ThinktuneError, UsageError
from thinktune.files import write_text
from thinktune.training.ranks import here

_SECONDS_TO_STOP = "300"
"""From Ctrl-C or SIGTERM until processes are killed: they end the running step and save a checkpoint."""


def needs_one_gpu(config: Config) -> str | None:
    """Return the setting with which a training cannot be shared by several GPUs; None: it can."""
    if config.lora is None:
        return "lora: null"
    return "method: dpo" if config.method == "dpo" else None


def gpu_count(config: Config, asked: str) -> int:
    """Return the number of processes for `--gpus`.

    Raises:
        UsageError: it is neither `all` nor a number from 1, the processes have been started already, or the training
            cannot be shared.
        DeviceError: there are not so many GPUs.
    """
    if here().size > 1:
        raise UsageError("--gpus starts processes, and torchrun has started them already", hint="leave it out")
    if asked != "all" and not (asked.isdecimal() and int(asked) > 0):
        raise UsageError(f"--gpus {asked}: it is all, or a number from 1")
    if asked != "1" and (setting := needs_one_gpu(config)):
        raise UsageError(f"{setting} runs on one GPU", hint="without --gpus")
    import torch

    if config.load.device == "cpu":  # processes without GPUs, to try it
        return 1 if asked == "all" else int(asked)
    there = torch.cuda.device_count()
    count = there if asked == "all" else int(asked)
    if not 1 <= count <= there:
        raise DeviceError(f"--gpus {asked}, and there are {there} GPUs here")
    if ":" in config.load.device and count > 1:
        raise DeviceError(f"--gpus {asked}, and load.device is {config.load.device}", hint="set load.device=auto")
    return count


def launch_training(config: Config, count: int, *, resume: bool, overwrite: bool) -> None:
    """Train in so many processes, a GPU each, and return when all have ended well.

    Errors are printed by the process that has them. Its status becomes that of this process: SystemExit.

    Raises:
        ThinktuneError: a process was killed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SECONDS_TO_STOP)
    if not os.environ.get("THINKTUNE_DEBUG"):
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it in a sentence
    with tempfile.TemporaryDirectory(prefix="thinktune-") as folder:
        file = Path(folder) / "config.yaml"
        write_text(file, dump_config(config))
        while _launch(file, count, resume=resume, overwrite=overwrite) == StartAgain.exit_code:
            resume, overwrite = True, False


def _launch(file: Path, count: int, *, resume: bool, overwrite: bool) -> int:
    """Run the processes once, and return 0, or the status that means to start them again."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"thinktune-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # of failures, most would come again
        logs_specs=DefaultLogsSpecs(log_dir=str(file.parent)),
    )
    flags = ["--resume"] * resume + ["--overwrite"] * overwrite
    command = ("-P", "-m", "thinktune", "train", str(file), *flags)  # -P: no module of the working folder is run
    try:
        elastic_launch(settings, sys.executable)(*command)
    except ChildFailedError as error:
        return _status(error.failures)
    except SignalException as error:  # the processes have said what came of it
        sys.exit(1 if error.sigval in (signal.SIGINT, signal.SIGTERM) else 128 + error.sigval)
    return 0


def _status(failures: dict[int, Any]) -> int:
    """Find the failure that the others come of, and end with its status, unless it means to start again."""
    own = {rank: each for rank, each in failures.items() if each.exitcode != LostRank.exit_code} or failures
    rank, first = min(own.items(), key=lambda item: item[1].timestamp)
    if first.exitcode == StartAgain.exit_code:
        return StartAgain.exit_code
    if first.exitcode < 0:
        raise ThinktuneError(
            f"process {rank} of the training was ended by {signal.Signals(-first.exitcode).name}",
            hint="--resume goes on from the newest checkpoint",
        )
    sys.exit(1 if first.exitcode == LostRank.exit_code else first.exitcode)
