"""Ray, which places the processes of fleets and sweeps on this host or on a cluster: the one place that imports it.

Ray is an extra, and plain `ray`: its `llm` pins a vLLM of its own.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from dataclasses import dataclass
from typing import Any

import psutil

from thinktune.errors import MissingExtra, ThinktuneError, UsageError

OBJECT_STORE = 2**28  # bytes; what is sent are token ids and texts, and Ray would take a third of the memory

_SECONDS_TO_ANSWER = 10.0
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # it announces a change of this setting otherwise
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # the daemons' messages, which Ray prints to stdout
}


_KILL_AT_END_OF_INPUT = 'cat; for each in "$@"; do grep -aq "^ray::" "/proc/$each/cmdline" && kill -KILL "$each"; done'
_shells: list[subprocess.Popen[bytes]] = []
"""Whose input ends with this process."""


@dataclass(frozen=True)
class Resources:
    """What a process of Ray's is given for itself.

    Attributes:
        gpus: 1, or 0 to run on CPUs.
        cpus: cores; 1 beside a GPU.
    """

    gpus: int
    cpus: int

    def as_options(self) -> dict[str, int]:
        """Return the options of an actor or a task of Ray's."""
        return {"num_gpus": self.gpus, "num_cpus": self.cpus}

    def __str__(self) -> str:
        return "a GPU" if self.gpus else f"{self.cpus} of the cores"


def import_ray() -> Any:
    """Import Ray.

    Raises:
        MissingExtra: it is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise MissingExtra("Ray is not installed", hint="pip install 'thinktune[ray]'") from None
    return ray


def connect(address: str | None, count: int, each: Resources) -> bool:
    """Connect this process to a cluster, or to one of its own on this host; return False if it was connected already.

    Args:
        address: of the cluster, as `ray start` prints it, or "auto"; None: this host.
        count: processes that this host is to have room for.
        each: resources of each.

    Raises:
        MissingExtra: Ray is not installed.
        ThinktuneError: it does not start on this host.
        UsageError: its version or Python's is another one than the cluster's, or there is no cluster.
    """
    ray = import_ray()
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        own = {"num_cpus": count * each.cpus, "num_gpus": count * each.gpus, "object_store_memory": OBJECT_STORE}
        try:
            ray.init("local", include_dashboard=False, **own, **quiet)
        except Exception as error:  # Ray has no class of its own for it
            raise ThinktuneError(
                f"Ray does not start on this host: {_in_a_line(error)}",
                hint="try again when it is less busy, and see whether /tmp and /dev/shm have room",
            ) from error
        _end_helpers_with_us()
        return True
    _require_listener(address)
    try:
        ray.init(address, **quiet)
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise UsageError(
            f"the cluster at {address} runs other versions: {_in_a_line(error)}",
            hint="driver and cluster need the same ray and the same Python, such as one image for both",
        ) from None
    except (ConnectionError, ValueError) as error:
        raise _no_cluster(address, error) from None
    return True


def _end_helpers_with_us() -> None:
    """Start a shell that kills the helpers of our own Ray when this process is gone, however it ended.

    Its daemons and workers end by themselves; its agents try for a minute to tell their server, which is gone, too
    (ray 2.60, `report_raylet_error_logs`).
    """
    daemons = [each for each in psutil.Process().children() if each.name() == "raylet"]
    agents = [str(each.pid) for daemon in daemons for each in daemon.children()]
    shell = subprocess.Popen(
        ["sh", "-c", _KILL_AT_END_OF_INPUT, "sh", *agents],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us
    )
    _shells.append(shell)


def _require_listener(address: str) -> None:
    """Make sure that something listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
        except OSError as error:
            raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"there is no Ray cluster at {address}: {_in_a_line(error)}",
        hint="its address is what `ray start --head` prints, such as 10.0.0.1:6379; if it has a token "
        "(~/.ray/auth_token there), set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here",
    )


def gpus_of_cluster() -> int:
    """Return the number of GPUs of the cluster that this process is connected to."""
    return int(import_ray().cluster_resources().get("GPU", 0))


def cause_of(error: Any) -> ThinktuneError:
    """Return the error of ours that ended a process of Ray's; for any other, one that tells it in a line."""
    if isinstance(error, import_ray().exceptions.RayActorError):  # Ray's own text has a dozen lines
        return ThinktuneError("its process has ended, or its machine cannot be reached")
    cause = getattr(error, "cause", None) or error
    return cause if isinstance(cause, ThinktuneError) else ThinktuneError(_in_a_line(cause))


def _in_a_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:500]}"
