"""Runs one side of a program's trial, apart from everything else. Standard library only: it is started as
`python -I -c <this file> SETTINGS`, also inside a container that has no thinktune.

The program that a model wrote and the tests that judge it run in two such processes, which exchange one JSON message a
line through the scorer: the program sees the arguments of each call and never the tests, the tests see plain values and
never an object of the program's making. So a program can only answer right or wrong, whatever it patches or reads.

The outer process unshares what the system lets it, forks the inner one, and kills it at the deadline, also when nobody
is left to wait for it. The inner one gives up its rights, then runs the code. On Linux, where permitted: no network, a
process table of its own (whose end is the end of all in it), a read-only file system but for a small scratch folder, no
capabilities and, if it was root, another user. Elsewhere only the limits of `resource` hold.
"""

import builtins
import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import IO, Any

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
    elif settings["role"] == "tests":
        confine(settings, isolated)
        judge(*take_over_pipes())
    else:
        confine(settings, isolated)
        serve(*take_over_pipes())


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


def refuse_network(event: str, _: object) -> None:
    if event.startswith("socket."):
        raise PermissionError("no network here")


def take_over_pipes() -> tuple[IO[str], IO[str]]:
    """The pipes to the scorer; what the code prints or reads goes nowhere."""
    sys.stdout.flush()
    incoming, outgoing = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    return incoming, outgoing


def send(outgoing: IO[str], **message: Any) -> None:
    outgoing.write(json.dumps(message) + "\n")
    outgoing.flush()


def serve(incoming: IO[str], outgoing: IO[str]) -> None:
    """The program's side: define its functions, then answer calls."""
    namespace: dict[str, Any] = {"__name__": "solution", "__builtins__": builtins}
    try:
        message = json.loads(incoming.readline())
        for name in ("given", "source"):
            exec(compile(message[name], "solution.py", "exec"), namespace)
    except BaseException as error:  # noqa: BLE001 - whatever the code raises, SystemExit too, is its answer
        send(outgoing, failed=described(error))
        return
    send(outgoing, names=[name for name, value in list(namespace.items()) if callable(value) and type(name) is str])
    for line in incoming:
        message = json.loads(line)
        try:
            arguments = [decode(value) for value in message["arguments"]]
            named = {name: decode(value) for name, value in message["named"].items()}
            reply = {"value": encode(namespace[message["call"]](*arguments, **named))}
        except BaseException as error:  # noqa: BLE001 - as above
            reply = {"raised": type(error).__name__, "why": described(error)}
        send(outgoing, **reply)


def judge(incoming: IO[str], outgoing: IO[str]) -> None:
    """The tests' side: call the program through the scorer, and say whether every assertion held."""
    message = json.loads(incoming.readline())

    def proxy(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            send(
                outgoing,
                call=name,
                arguments=[encode(value) for value in arguments],
                named={key: encode(value) for key, value in named.items()},
            )
            reply = json.loads(incoming.readline())
            if "value" in reply:
                return decode(reply["value"])
            kind = getattr(builtins, reply["raised"], None)
            error = kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError
            raise error(reply["why"])

        return call

    namespace: dict[str, Any] = {"__name__": "tests"}
    namespace.update({name: proxy(name) for name in message["names"]})
    namespace["candidate"] = namespace.get(message["entry_point"])
    try:
        exec(compile(message["test"], "tests.py", "exec"), namespace)
        if "check" in namespace and "check" not in message["names"]:
            namespace["check"](namespace["candidate"])
    except BaseException as error:  # noqa: BLE001 - an assertion, or what the program raised
        send(outgoing, passed=False, why=described(error))
    else:
        send(outgoing, passed=True)


def described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300].rstrip(": ")
    except BaseException:  # noqa: BLE001 - its text is the program's own code
        return type(error).__name__


TAGS: dict[Any, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
KINDS = {name: kind for kind, name in TAGS.items()}


def encode(value: Any) -> Any:
    """A plain value as JSON that keeps its type. Subclasses lose what they add, so that none can redefine equality."""
    if value is None or type(value) is bool:
        return value
    if hasattr(value, "item") and type(value).__module__ == "numpy":
        value = value.item()
    for scalar in (int, float, str):
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    for kind, name in TAGS.items():
        if isinstance(value, kind):
            return {name: [encode(item) for item in kind.__iter__(value)]}
    raise TypeError(f"{type(value).__name__} is no plain value")


def decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == "dict":
        return {decode(key): decode(item) for key, item in content}
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "complex":
        return complex(*content)
    return KINDS[name](decode(item) for item in content)


if __name__ == "__main__":
    main()
