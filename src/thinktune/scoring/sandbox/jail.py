"""Runs one side of a program's trial, apart from everything else. Standard library only: it is started as
`python -I -c <this file> SETTINGS MODULES`, also inside a container that has no thinktune; by the scorer's own Python
in the form that it is compiled to.

Three ways (see `containment`; `side` picks one): bubblewrap has made the namespaces and the file system before this
begins; or this file makes them; or neither is permitted. In all of them a process watches another, which gives up its
rights, sets its limits, has the kernel refuse it the calls of `syscalls`, reports the protections in force in one line
of JSON, and only then gets any code.
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

TYPE_CHECKING = False
if TYPE_CHECKING:  # this runs at every start, and typing takes its time to be imported
    from typing import Any

NEW_NAMESPACES = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000  # mount, uts, ipc, pid, network
NEW_USER = 0x10000000
MS_READ_ONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 8, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
READ_ALL = 1 << 2  # CAP_DAC_READ_SEARCH
PIVOT_ROOT = {"x86_64": 155}  # aarch64 and all later machines: 41
SIGCHLD_DEFAULT = signal.SIG_DFL
LIBC = ctypes.CDLL(None, use_errno=True)
OWN_PROCESS = b"\xff\xff\xff\x7f"  # syscalls.OWN_PROCESS


def main() -> None:
    settings = json.loads(sys.argv[1])
    way = settings["way"]
    if way == "namespaces":
        unshare()
    elif way == "bubblewrap":
        size_scratch(settings["disk"])
    elif sys.platform == "linux":
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # what daemonises itself stays among our descendants
    inner = os.fork()
    if inner:
        if way == "bubblewrap":  # it is in there with the program, which must not reach it
            drop_capabilities(0)
            prctl(PR_SET_DUMPABLE, 0)
        watch(inner, settings["seconds"], alone=way != "limits")
    if way == "namespaces":
        build_root(settings)
        size_scratch(settings["disk"])
    confine(settings)
    os.write(1, json.dumps(held(settings)).encode() + b"\n")
    load(modules_of(json.loads(sys.argv[2]))).main()


def modules_of(sent: "dict[str, Any]") -> "dict[str, Any]":
    """Return the code of modules, by name, from their texts or as the scorer's Python compiled it.

    Raises RuntimeError if that is another Python than this one.
    """
    if "texts" in sent:
        return {name: compile(text, name, "exec", dont_inherit=True) for name, text in sent["texts"].items()}
    import binascii
    import marshal
    import zlib

    if sent["version"] != sys.version:
        raise RuntimeError(f"compiled by Python {sent['version']}, run by {sys.version}")
    modules: dict[str, Any] = marshal.loads(zlib.decompress(binascii.a2b_base64(sent["compiled"])))
    return modules


def load(modules: "dict[str, Any]") -> "Any":
    """Load modules from their code, by name; the last one may import those before it."""
    for name, code in modules.items():
        module = sys.modules[name] = types.ModuleType(name)
        folder, _, last = name.rpartition(".")
        while folder:  # packages that hold nothing else: the real ones are not here
            package = sys.modules.setdefault(folder, types.ModuleType(folder))
            package.__path__ = []
            setattr(package, last, sys.modules[f"{folder}.{last}"])
            folder, _, last = folder.rpartition(".")
        exec(code, module.__dict__)
    return module


def size_scratch(size: int) -> None:
    mount("none", "/tmp", None, MS_REMOUNT | MS_NOSUID | MS_NODEV, f"size={size},nr_inodes=2000")
    os.chmod("/tmp", 0o1777)


def watch(inner: int, seconds: float, *, alone: bool) -> None:
    """Wait for the inner process to end, or end it, with all its descendants; does not return."""
    for descriptor in (0, 1):  # the pipes close when the inner process dies
        os.close(descriptor)
    asked: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    deadline = time.monotonic() + seconds
    ended = False
    while not asked and time.monotonic() < deadline and not ended:
        gone = os.waitpid(-1, os.WNOHANG)[0]  # orphans of the program may be ours: then their time counts as ours
        ended = gone == inner
        time.sleep(0 if gone else 0.005)
    if not ended:
        os.kill(inner, signal.SIGKILL)
        os.waitpid(inner, 0)
    while not alone and (remaining := children()):  # else they ended with their process table
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


def unshare() -> None:
    """Leave the system's namespaces. Raises OSError if that is not permitted."""
    user, group = os.getuid(), os.getgid()
    if LIBC.unshare(NEW_NAMESPACES) == 0:
        return
    check(LIBC.unshare(NEW_NAMESPACES | NEW_USER))
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{user} {user} 1")
    write("/proc/self/gid_map", f"{group} {group} 1")


def build_root(settings: "dict[str, Any]") -> None:
    """Enter a file system that has, read-only, only the places of `settings`, a `/proc` and an empty `/tmp`.

    Raises OSError if a step is not permitted: half a containment is none.
    """
    root = settings["scratch"]
    os.umask(0o022)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID, "size=1m,nr_inodes=10000,mode=755")
    for folder in ("/proc", "/tmp"):
        os.mkdir(root + folder)
    mount("tmpfs", root + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV)  # first: Python may lie in the system's /tmp
    for place in settings["mounts"]:
        target = root + place
        if os.path.isdir(place):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        mount(place, target, None, MS_BIND | MS_REC)
    for place, goal in settings["links"].items():
        os.symlink(goal, root + place)
    make_read_only(root, settings["mounts"])
    with contextlib.suppress(OSError):  # not in a container that hides parts of it; then there is none
        mount("proc", root + "/proc", "proc", MS_READ_ONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.chdir(root)
    check(LIBC.syscall(PIVOT_ROOT.get(os.uname().machine, 41), b".", b"."))
    check(LIBC.umount2(b".", 2))  # MNT_DETACH: the system's own root, which lay on top
    os.chdir("/")
    LIBC.sethostname(b"trial", 5)


def make_read_only(root: str, mounts: "list[str]") -> None:
    attributes = (ctypes.c_uint64 * 4)(MS_READ_ONLY | MS_NOSUID)  # struct mount_attr: set, clear, propagation, user
    if LIBC.syscall(442, -100, root.encode(), 0x8000, attributes, 32) == 0:  # mount_setattr, recursive: Linux 5.12
        return
    for target in [*(root + place for place in mounts), root]:
        has = os.statvfs(target).f_flag  # those must stay; of them only the flag for relatime has another number
        kept = has & (2 | 4 | 8 | 1024 | 2048) | (0x200000 if has & 4096 else 0)
        mount("none", target, None, MS_REMOUNT | MS_BIND | MS_READ_ONLY | MS_NOSUID | kept)


def mount(source: str, target: str, kind: "str | None", flags: int, options: str = "") -> None:
    check(LIBC.mount(source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), options.encode()))


def check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def prctl(option: int, value: int, address: "Any" = None) -> int:
    result: int = LIBC.prctl(option, ctypes.c_ulong(value), address, None, None)
    return result


def confine(settings: "dict[str, Any]") -> None:
    """Give up all rights that the code does not need. Each step that this system does not have is left out."""
    scratch = settings["scratch"] if settings["way"] == "limits" else "/tmp"
    if os.path.isdir(scratch):
        os.chdir(scratch)
    os.umask(0o077)
    limit("RLIMIT_AS", settings["memory"])
    limit("RLIMIT_FSIZE", settings["disk"])
    limit("RLIMIT_CPU", int(settings["cpu_seconds"]) + 2)
    limit("RLIMIT_CORE", 0)
    limit("RLIMIT_NOFILE", 64)
    limit("RLIMIT_MEMLOCK", 65536)
    limit("RLIMIT_SIGPENDING", 256)
    limit("RLIMIT_MSGQUEUE", 0)
    linux = sys.platform == "linux"
    if linux:
        capability = 0
        while prctl(PR_CAPBSET_DROP, capability) == 0:
            capability += 1
    user = settings["user"]
    if user and os.getuid() == 0:
        try:
            if settings["read_all"]:
                prctl(PR_SET_KEEPCAPS, 1)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:  # a container without these rights, or without so many users
            pass
    if os.getuid() != 0:  # it does not bind root; then the scorer counts and kills
        limit("RLIMIT_NPROC", settings["processes"] + max(settings["tasks"], tasks_of(os.getuid())))
    signal.signal(signal.SIGCHLD, SIGCHLD_DEFAULT)
    if linux:
        drop_capabilities(READ_ALL if settings["read_all"] else 0)
        prctl(PR_SET_DUMPABLE, 1)  # lost with the user; without it the program cannot look at itself
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if settings["way"] == "limits":
            settings["restricted"] = restrict_files(scratch, settings["mounts"])
        refuse_calls(settings["filters"].get(os.uname().machine))
    if settings["role"] == "program":
        sys.addaudithook(refuse_network)


def drop_capabilities(kept: int) -> None:
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(kept, kept)
    LIBC.capset(header, sets)


def restrict_files(scratch: str, places: "list[str]") -> bool:
    """Have Landlock allow the places that would else be mounted, if no mounts are permitted, and no signals to others.

    Returns whether this kernel has it (5.13; signals 6.12). Formats: linux/landlock.h.
    """
    version = LIBC.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1 or not places:
        return False
    everything = 0x1FFF | (version >= 2) << 13 | (version >= 3) << 14
    rules = (ctypes.c_uint64 * 3)(everything, 3 * (version >= 4), 3 * (version >= 6))  # files, network, scope
    ruleset = LIBC.syscall(444, rules, ctypes.c_size_t(8 + 8 * (version >= 4) + 8 * (version >= 6)), 0)
    read, listed, written = 0b101, 0b1101, 0b110  # execute, write, read a file, read a folder: bits 0 to 3
    for place in [*places, "/proc/self", scratch]:
        allowed = listed if os.path.isdir(place) else written if place.startswith("/dev/") else read
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", everything if place == scratch else allowed, descriptor)
        LIBC.syscall(445, ruleset, 1, rule, 0)
        os.close(descriptor)
    done: bool = LIBC.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return done


def refuse_calls(text: "str | None") -> None:
    """Install a filter of system calls (see `syscalls`), if there is one for this machine."""
    if text is None:
        return
    code = bytes.fromhex(text).replace(OWN_PROCESS, os.getpid().to_bytes(4, "little"))

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    prctl(PR_SET_SECCOMP, 2, ctypes.byref(Program(len(code) // 8, code)))


def held(settings: "dict[str, Any]") -> "dict[str, bool]":
    """Return the protections in force, as the kernel reports them."""
    status: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    calls = status.get("Seccomp", "").strip() == "2"
    apart = settings["way"] != "limits"
    return {
        "files": not os.path.exists(settings["scratch"]) if apart else settings.get("restricted", False),
        "network": apart or calls,
        "processes": apart and os.getpid() <= 2,
        "calls": calls,
        "capabilities": not int(status.get("CapEff", "1"), 16),
        "user": os.getuid() == settings["user"],
    }


def limit(name: str, value: int) -> None:
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on this system, or already lower
        resource.setrlimit(getattr(resource, name), (value, value))


def tasks_of(user: int) -> int:
    """Count the tasks of a user who is not ours alone: the limit counts them all."""
    count = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


def refuse_network(event: str, arguments: "tuple[Any, ...]") -> None:
    """Refuse the network to a program in words; if there is a filter of calls, that is the protection."""
    if event.startswith("socket.") and not (event == "socket.__new__" and arguments[1] == 1):  # asyncio's own pair
        raise PermissionError("no network here")


if __name__ == "__main__":
    main()
