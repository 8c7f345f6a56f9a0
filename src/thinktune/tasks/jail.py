"""Runs one side of a program's trial, apart from everything else. Standard library only: it is started as
`python -I -c <this file> SETTINGS MODULES`, also inside a container that has no thinktune.

The outer process unshares what the system lets it, forks the inner one, and kills it at the deadline, also when nobody
is left to wait for it. The inner one gives up its rights, then runs the code. On Linux, where permitted: no network, a
process table of its own (whose end is the end of all in it), a read-only file system but for a small scratch folder, no
capabilities and, if it was root, another user. Elsewhere only the limits of `resource` hold.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
import types
from typing import Any

NEW_NAMESPACES = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000  # mount, uts, ipc, pid, network
NEW_USER = 0x10000000
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 8, 36, 38
READ_ALL = 1 << 2  # CAP_DAC_READ_SEARCH: the one thing left of root where Python lies in root's own folder
MS_REC_PRIVATE = 0x4000 | 0x40000
MS_NOSUID_NODEV = 2 | 4


def main() -> None:
    settings = json.loads(sys.argv[1])
    isolated = unshare()
    if sys.platform == "linux":
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # what daemonises itself stays among our descendants
    inner = os.fork()
    if inner:
        watch(inner, settings["seconds"])
    else:
        confine(settings, isolated)
        load(json.loads(sys.argv[2])).main()


def load(modules: dict[str, str]) -> Any:
    """Modules from their texts, by name; the last one, which may import those before it."""
    for name, text in modules.items():
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(text, name, "exec"), module.__dict__)
    return module


def watch(inner: int, seconds: float) -> None:
    """Wait for the inner process to end, or end it."""
    for descriptor in (0, 1):  # the pipes close when the inner process dies
        os.close(descriptor)
    asked: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    deadline = time.monotonic() + seconds
    while not asked and time.monotonic() < deadline and os.waitpid(inner, os.WNOHANG)[0] != inner:
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.kill(inner, signal.SIGKILL)
    while remaining := children():  # orphans of the inner process are ours
        for pid in remaining:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    os._exit(0)


def children() -> list[int]:
    found: list[int] = []
    for name in os.listdir("/proc") if sys.platform == "linux" else []:
        try:
            with open(f"/proc/{name}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
        except (OSError, ValueError, IndexError):  # no process, or gone
            continue
    return found


def unshare() -> bool:
    """Leave the system's namespaces; False where that is not permitted."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_NAMESPACES) == 0:
        return True
    if libc.unshare(NEW_NAMESPACES | NEW_USER) != 0:
        return False
    try:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{user} {user} 1")
        write("/proc/self/gid_map", f"{group} {group} 1")
    except OSError:
        pass
    return True


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def confine(settings: dict[str, Any], isolated: bool) -> None:
    """Give up everything the code has no need of. Each step that is not permitted is left out."""
    scratch = settings["scratch"]
    if isolated:
        close_file_system(scratch, settings["disk"])
    if os.path.isdir(scratch):
        os.chdir(scratch)
    os.umask(0o077)
    limit("RLIMIT_AS", settings["memory"])
    limit("RLIMIT_FSIZE", settings["disk"])
    limit("RLIMIT_CPU", int(settings["cpu_seconds"]) + 2)
    limit("RLIMIT_CORE", 0)
    limit("RLIMIT_NOFILE", 64)
    user = settings["user"]
    if user and os.getuid() == 0:
        try:
            prctl(PR_SET_KEEPCAPS, 1)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:  # a container without these rights, or without so many users
            pass
    if os.getuid() != 0:  # it does not bind root; then the scorer counts and kills
        limit("RLIMIT_NPROC", settings["processes"] + tasks_of(os.getuid()))
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        drop_capabilities(READ_ALL if settings["read_all"] else 0)
    if settings["role"] == "program":
        sys.addaudithook(refuse_network)


def close_file_system(scratch: str, size: int) -> None:
    """Read-only everywhere but in a scratch folder of limited size, and no sight of other processes."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None)
    libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID_NODEV, None)
    read_only = ctypes.create_string_buffer(struct.pack("QQQQ", 1 | 2, 0, 0, 0))
    libc.syscall(442, -100, b"/", 0x8000, read_only, 32)  # mount_setattr, recursive
    if os.path.isdir(scratch):
        libc.mount(
            b"tmpfs", scratch.encode(), b"tmpfs", MS_NOSUID_NODEV, f"size={size},nr_inodes=1000,mode=777".encode()
        )


def drop_capabilities(kept: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("IIIIII", kept, kept, 0, 0, 0, 0))


def limit(name: str, value: int) -> None:
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on this system, or already lower
        resource.setrlimit(getattr(resource, name), (value, value))


def tasks_of(user: int) -> int:
    """How many tasks a user has who is not ours alone: the limit counts them all."""
    count = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


def refuse_network(event: str, arguments: "tuple[Any, ...]") -> None:
    if event.startswith("socket.") and not (event == "socket.__new__" and arguments[1] == 1):  # asyncio's own pair
        raise PermissionError("no network here")


if __name__ == "__main__":
    main()
