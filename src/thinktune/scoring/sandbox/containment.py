"""Confined processes: their environment, and three ways to start them (bubblewrap, our own namespaces, limits only)."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from thinktune.scoring.sandbox import syscalls

Way = Literal["bubblewrap", "namespaces", "limits"]
"""From the best to the one that works everywhere: bubblewrap (a kept sandbox), our own namespaces, or no file system,
network and process table of its own, only limits and the filter of system calls."""

WAYS: tuple[Way, ...] = get_args(Way)

_SYSTEM = (
    *(f"/usr/{part}" for part in ("bin", "lib", "lib32", "lib64", "libx32", "share")),
    *("/bin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/nix/store", "/gnu/store"),
)
_PARTS = ("bin", "lib", "lib64", "share", "pyvenv.cfg")  # of a Python; its folder may be a project's
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_FIRST_USER = 60_000  # users that own nothing; each process has one of its own
_CAPABILITIES = ("SETUID", "SETGID", "SETPCAP", "SYS_ADMIN")  # until the limits of `jail` are set


def begin(way: Way) -> list[str]:
    """Return the command before Python's own: bubblewrap's, if that is the way."""
    if way != "bubblewrap":
        return []
    if (program := shutil.which("bwrap")) is None:
        raise FileNotFoundError("bwrap")
    command = [program, "--as-pid-1", "--die-with-parent", "--unshare-cgroup-try"]
    command += [f"--unshare-{name}" for name in ("ipc", "pid", "net", "uts")]
    if os.getuid() != 0:  # root needs no namespace of users, and shall become another user
        command.append("--unshare-user")
    command += ["--hostname", "trial", "--cap-drop", "ALL"]
    for name in _CAPABILITIES:
        command += ["--cap-add", f"CAP_{name}"]
    command += ["--tmpfs", "/tmp"]  # first: Python may lie in the system's /tmp
    for folder in sorted({str(folder) for place in [*places(), *links()] for folder in Path(place).parents}):
        command += ["--perms", "0755", "--dir", folder]  # bubblewrap would make those for root alone
    for place in places():
        command += ["--dev-bind" if place in _DEVICES else "--ro-bind", place, place]
    for place, goal in links().items():
        command += ["--symlink", goal, place]
    return [*command, "--proc", "/proc", "--remount-ro", "/proc", "--remount-ro", "/", "--chdir", "/tmp", "--"]


def settings(way: Way, role: str) -> dict[str, Any]:
    """Return the settings of `jail` for this way: mounts, links, filters of system calls, and the user to become."""
    shared: dict[str, Any] = {"way": way, "filters": _filters(way), "tasks": _tasks(), **_user(way, role)}
    return shared | {"mounts": places(), "links": links()}


@cache
def _filters(way: Way) -> dict[str, str]:
    return syscalls.filters(alone=way != "limits")


@cache
def places() -> list[str]:
    """List the files and folders that a Python program needs: the system's programs and libraries, and Python's own.

    Not the folders that packages under development, PYTHONPATH or the working folder add: they are somebody's project.
    """
    packages = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    wanted = [*_SYSTEM, *(f"{prefix}/{part}" for prefix in _prefixes() for part in _PARTS), *packages, *_DEVICES]
    taken: list[str] = []
    for place in sorted({os.path.abspath(place) for place in wanted if os.path.exists(place)}):
        covered = any(place.startswith(f"{folder}/") for folder in [*taken, *links()])
        if place not in links() and not covered:
            taken.append(place)
    return taken


@cache
def links() -> dict[str, str]:
    """Return the links of the root folder, such as /lib to /usr/lib, and the descriptors of /dev: programs for contests
    open /dev/stdin."""
    found = {place: os.readlink(place) for place in _SYSTEM if place.count("/") == 1 and os.path.islink(place)}
    streams = {f"/dev/{name}": f"/proc/self/fd/{number}" for number, name in enumerate(("stdin", "stdout", "stderr"))}
    return found | {"/dev/fd": "/proc/self/fd"} | streams


def _prefixes() -> list[str]:
    """List the folders that hold parts of this Python: its own, and those along the links to its program."""
    found = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    program = sys.executable
    for _ in range(20):
        found.append(os.path.dirname(os.path.dirname(program)))
        if not os.path.islink(program):
            break
        program = os.path.normpath(os.path.join(os.path.dirname(program), os.readlink(program)))
    found.append(os.path.dirname(os.path.dirname(os.path.realpath(sys.executable))))
    return [prefix for prefix in dict.fromkeys(found) if prefix not in ("", "/")]


def _user(way: Way, role: str) -> dict[str, Any]:
    """Return the user that a process of root becomes, and whether it must keep the right to read root's own files.

    Python may lie where others may not look. Mounted, only its own permissions count; without mounts the right is
    kept, and if even mounting does not help, root stays root, in a file system with nothing of its own.
    """
    if not hasattr(os, "getuid") or os.getuid() != 0:
        return {"user": None, "read_all": False}
    public = _is_public(ancestors=way == "limits")
    if way != "limits" and not public:
        return {"user": None, "read_all": False}
    number = _FIRST_USER + (time.monotonic_ns() // 1000 * 2 + (role == "tests")) % 5000
    return {"user": number, "read_all": not public}


@cache
def _is_public(*, ancestors: bool) -> bool:
    """Return whether other users may read this Python, apart from the folders above it."""
    files = [Path(place).resolve() for place in (os.__file__, sys.executable)]
    folders = {file.parent for file in files} | {Path(place) for place in sys.path if place.endswith("-packages")}
    if ancestors:
        starts = {Path(place).resolve() for place in (sys.prefix, sys.base_prefix)} | folders
        folders |= {folder for start in starts for folder in start.parents}
    modes = [(folder, 0o001 if ancestors else 0o005) for folder in folders if folder.is_dir()]
    return all(
        place.stat().st_mode & wanted == wanted for place, wanted in [*modes, *((file, 0o004) for file in files)]
    )


def _tasks() -> int:
    """Count the tasks of this user if the limit counts those outside of a namespace too: before Linux 5.14."""
    release = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdigit())
    if sys.platform != "linux" or os.getuid() == 0 or release >= (5, 14):
        return 0
    own = [each for each in psutil.process_iter(["uids", "num_threads"]) if each.info["uids"]]
    return sum(each.info["num_threads"] or 1 for each in own if each.info["uids"].real == os.getuid())
