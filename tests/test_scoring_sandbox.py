"""What confines a program of a model: each way is tried for real, with what it must refuse and what it must not."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from thinktune.scoring.sandbox import containment, syscalls
from thinktune.scoring.sandbox.containment import WAYS, Way
from thinktune.scoring.sandbox.run import run_trial
from thinktune.scoring.sandbox.side import RUNNER, Limits, Side, Stopped, best_way, protections
from trials import slow_but

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is Linux's")

APART = [way for way in WAYS if way != "limits"]


def inside(way: Way, code: str, limits: Limits | None = None, *, timeout: float = 20) -> Any:
    """What `look()` of some code returns in a confined process."""
    text = f"import json\n{code}\n\ndef main():\n    print(json.dumps(look()), flush=True)\n"
    with Side("tests", {"code": text}, limits or Limits(), time.monotonic() + timeout, way=way) as side:
        return json.loads(side.receive())


def available(way: Way) -> Way:
    if not protections(way).get("processes") and way != "limits":
        pytest.skip(f"{way} is not to be had here")
    return way


def together(bodies: dict[str, str]) -> str:
    """Code that tries all bodies, one after the other, and tells what each returned or raised."""
    parts = ["def look():", "    found = {}"]
    for name, body in bodies.items():
        parts += ["    try:", f"        exec({body!r}, space := dict(call=call, os=os, sys=sys))"]
        parts += [f"        found[{name!r}] = space.get('gained')", "    except Exception as error:"]
        parts += [f"        found[{name!r}] = None"]
    head = (
        "import ctypes, os, sys\nLIBC = ctypes.CDLL(None, use_errno=True)\n\n"
        "def call(number, *arguments):\n    return LIBC.syscall(number, *arguments) >= 0 or None\n\n"
    )
    return head + "\n".join([*parts, "    return found"])


# Each leaves what it gained in `gained`; nothing may be gained.
FILES = {
    "the secret": "gained = open(SECRET).read()",
    "the secret, through the root of the first process": "gained = open('/proc/1/root' + SECRET).read()",
    "the folder of the secret": "gained = os.listdir(os.path.dirname(SECRET))",
    "the home folder": "gained = [name for name in os.listdir(HOME) if os.path.isfile(HOME + '/' + name)]",
    "passwords": "gained = open('/etc/shadow').read(1) + 'x'",
    "users": "gained = open('/etc/passwd').read()",
    # The way to Python's own folder is there, where that lies in it; nothing beside it is.
    "the working folder": "gained = [x for x in os.listdir(PROJECT) if not sys.prefix.startswith(f'{PROJECT}/{x}')]",
    "another trial": "gained = [name for name in os.listdir('/tmp') if name.startswith('thinktune-trial')]",
    "shared memory": "gained = open('/dev/shm/mischief', 'w')",
    "the temporary folder of all": "gained = open('/var/tmp/mischief', 'w')",
    "Python's library": "gained = open(os.path.dirname(os.__file__) + '/mischief.py', 'w')",
    "a pipe of somebody else": "gained = os.open(PIPE, os.O_RDWR | os.O_NONBLOCK)",
    "disks": "gained = [name for name in os.listdir('/dev') if name in ('sda', 'vda', 'mem', 'kmsg', 'kvm')]",
    "the log of the kernel": "gained = open('/dev/kmsg').fileno()",
    "a setting of the kernel": "gained = os.open('/proc/sys/kernel/ns_last_pid', os.O_WRONLY)",
    "control groups": "gained = os.listdir('/sys/fs/cgroup')",
    "the scorer's environment": "gained = open(f'/proc/{SCORER}/environ').read()",
}
PROCESSES = {
    "a signal to the scorer": "os.kill(SCORER, 0); gained = 1",
    "signals of a descriptor to the scorer": "import fcntl; fcntl.fcntl(os.pipe()[0], 8, SCORER); gained = 1",
    "limits of the scorer": "import resource; gained = resource.prlimit(SCORER, resource.RLIMIT_AS)",
    "its own limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40)); gained = 1",
    "ignored children": "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); gained = 1",
    "root": "before = os.getuid(); os.setuid(0); gained = before != 0 or None",
    "groups": "os.setgroups([0]); gained = 1",
    "urgency": "gained = os.nice(-5) < 0",
    "pipes of any size": "import fcntl; gained = fcntl.fcntl(os.pipe()[1], 1031, 2**20)",
    "keys typed into a terminal": "import fcntl; fcntl.ioctl(0, 0x5412, b'x'); gained = 1",
}
SOCKETS = {
    "a server": "import socket; gained = bool(socket.create_connection(('127.0.0.1', PORT), 1))",
    "a datagram": "import socket; gained = socket.socket(2, 2).sendto(b'x', ('127.0.0.1', PORT))",
    "a local socket": "import socket; socket.socket(1).connect(LOCAL); gained = 1",
    "an abstract socket": "import socket; socket.socket(1).connect(chr(0) + ABSTRACT); gained = 1",
    "a pair of datagrams": "import socket; gained = len(socket.socketpair(1, 2))",
    "the kernel's own": "import socket; gained = bool(socket.socket(16, 3))",
    "names": "import socket; gained = socket.getaddrinfo('localhost', 80)",
}
# x86_64 only: these numbers are its
CALLS = {
    "ptrace": "gained = call(101, 16, 1, 0, 0)",
    "memory of another": "gained = call(310, os.getpid(), None, 0, None, 0, 0)",
    "memfd_create": "gained = call(319, b'x', 0)",
    "memfd_secret": "gained = call(447, 0)",
    "shmget": "gained = call(29, 0, 4096, 0o1600)",
    "semget": "gained = call(64, 0, 1, 0o1600)",
    "msgget": "gained = call(68, 0, 0o1600)",
    "mq_open": "gained = call(240, b'mischief', 0o102, 0o600, None)",
    "unshare of users": "gained = call(272, 0x10000000)",
    "clone3": "gained = call(435, b'x' * 88, 88)",
    "setns": "gained = call(308, os.open('/proc/self/ns/uts', 0), 0)",
    "mount": "gained = call(165, b't', b'/tmp', b'tmpfs', 0, None)",
    "remount": "gained = call(165, None, b'/', None, 32, None)",
    "umount": "gained = call(166, b'/proc', 2)",
    "fsopen": "gained = call(430, b'tmpfs', 0)",
    "open_tree": "gained = call(428, -100, b'/', 1)",
    "chroot": "gained = call(161, b'/tmp')",
    "a handle of a file": "gained = call(303, -100, b'/', b'x' * 200, b'x' * 8, 0)",
    "mknod": "gained = call(133, b'/tmp/disk', 0o60666, 0)",
    "add_key": "gained = call(248, b'user', b'x', b'y', 1, -3)",
    "keyctl": "gained = call(250, 0, -3, 1)",
    "bpf": "gained = call(321, 0, None, 0)",
    "perf_event_open": "gained = call(298, b'x' * 200, 0, -1, -1, 0)",
    "userfaultfd": "gained = call(323, 1)",
    "io_uring_setup": "gained = call(425, 8, b'\\0' * 200)",
    "personality": "gained = call(135, 0xFFFFFFFF)",
    "syslog": "gained = call(103, 10)",
    "the clock": "gained = call(159, b'\\0' * 300)",
    "the name of the host": "gained = call(170, b'x', 1)",
    "a call of x32": "gained = call(0x40000000 + 39)",
    "a call that is newer than this": "gained = call(470)",
    "to look like another program": "gained = call(157, 35, 1, 0, 0, 0)",
    "to survive its parent": "gained = call(157, 1, 0, 0, 0, 0)",
}
if os.uname().machine != "x86_64":
    CALLS = {}
ATTACKS = FILES | PROCESSES | SOCKETS | CALLS


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("private")
    secret, pipe, local = folder / "gold.jsonl", folder / "pipe", folder / "socket"
    secret.write_text("the tests")
    os.mkfifo(pipe)
    for place in (secret, pipe):
        place.chmod(0o666)
    server, near, abstract = socket.create_server(("127.0.0.1", 0)), *(socket.socket(socket.AF_UNIX) for _ in range(2))
    with server, near, abstract:
        near.bind(str(local))
        near.listen()
        abstract.bind(f"\0mischief-{os.getpid()}")
        abstract.listen()
        yield {
            "SECRET": str(secret),
            "PIPE": str(pipe),
            "LOCAL": str(local),
            "ABSTRACT": f"mischief-{os.getpid()}",
            "PORT": server.getsockname()[1],
            "HOME": str(Path.home()),
            "PROJECT": str(Path.cwd()),
            "SCORER": os.getpid(),
        }


@pytest.fixture(scope="module")
def gains(surroundings: dict[str, Any]) -> Any:
    """What each attack gained, by way of confinement; all attacks of a way are tried in one process."""
    constants = "".join(f"{name} = {value!r}\n" for name, value in surroundings.items())

    @cache
    def tried(way: Way) -> dict[str, Any]:
        found = inside(available(way), together({name: constants + body for name, body in ATTACKS.items()}))
        assert isinstance(found, dict)
        return found

    return tried


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("way", APART)
def test_nothing_is_gained(way: Way, name: str, gains: Any) -> None:
    assert not gains(way)[name]


@pytest.mark.parametrize("name", [*SOCKETS, *CALLS, "a signal to the scorer", "limits of the scorer"])
def test_where_nothing_can_be_isolated_calls_are_refused_all_the_same(name: str, gains: Any) -> None:
    assert not gains("limits")[name]


def test_the_same_attacks_gain_something_where_nothing_confines_them(surroundings: dict[str, Any]) -> None:
    space: dict[str, Any] = {}
    bodies = {
        name: "".join(f"{key} = {value!r}\n" for key, value in surroundings.items()) + ATTACKS[name]
        for name in ("the secret", "a signal to the scorer", "a server", "an abstract socket", "the working folder")
    }
    exec(together(bodies), space)
    assert all(space["look"]().values())


@pytest.mark.parametrize("way", APART)
def test_what_holds_is_what_the_kernel_says(way: Way) -> None:
    held = protections(available(way))
    assert all(held[name] for name in ("files", "network", "processes", "capabilities"))
    assert held["calls"] or os.uname().machine not in ("x86_64", "aarch64")
    assert held["user"] == (os.getuid() == 0)


@pytest.mark.parametrize("way", WAYS)
def test_what_honest_programs_do_works_in_every_way(way: Way) -> None:
    code = """
import asyncio, datetime, os, subprocess, sys, tempfile, threading, zoneinfo
from concurrent.futures import ThreadPoolExecutor

def look():
    import numpy
    with tempfile.TemporaryFile("w+") as file:
        file.write("written")
        file.seek(0)
        text = file.read()
    with open("mine", "w") as file:
        file.write("kept")
    child = os.fork()
    if not child:
        os._exit(3)
    return [
        float(numpy.ones(3).sum()),
        list(ThreadPoolExecutor(4).map(abs, [-1, -2])),
        asyncio.run(asyncio.sleep(0, "slept")),
        text,
        open("mine").read(),
        os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]),
        subprocess.run("echo one | cat", shell=True, capture_output=True, text=True).stdout,
        subprocess.run([sys.executable, "-c", "print(2)"], capture_output=True, text=True).stdout,
        str(datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("Asia/Tokyo")).utcoffset()),
        os.path.exists(os.path.expanduser("~")),
    ]
"""
    expected = [3.0, [1, 2], "slept", "written", "kept", 3, "one\n", "2\n", "9:00:00", True]
    assert inside(available(way), code) == expected


MORE = {
    "memory that children share among them": (
        "import mmap, os, time\ndef look():\n    for _ in range(4):\n        if os.fork() == 0:\n"
        "            block = mmap.mmap(-1, 200 << 20)\n            for _ in range(200): block.write(b'1' * (1 << 20))\n"
        "            time.sleep(60)\n    time.sleep(60)",
        "of memory",
    ),
    "time of children that ended": (
        "import os, time\ndef look():\n    while True:\n        child = os.fork()\n        if not child:\n"
        "            end = time.process_time() + 0.05\n            while time.process_time() < end: pass\n"
        "            os._exit(0)\n        os.waitpid(child, 0)",
        "of processor time",
    ),
    "time of orphans": (
        "import os, time\ndef fork():\n    while True:\n        try: return os.fork()\n"
        "        except OSError: time.sleep(0.01)\n"
        "def look():\n    while True:\n        if not fork():\n"
        "            os.setsid()\n            if not fork():\n                end = time.process_time() + 0.05\n"
        "                while time.process_time() < end: pass\n            os._exit(0)\n"
        "        os.waitpid(-1, 0)",
        "of processor time",
    ),
    "children": (
        "import os, time\ndef look():\n    while True:\n        try:\n            if not os.fork(): time.sleep(60)\n"
        "        except OSError: time.sleep(0.01)",
        "",
    ),
}


@pytest.mark.parametrize("name", slow_but(["time of orphans"], MORE))
def test_limits_hold_for_all_processes_together(name: str) -> None:
    code, why = MORE[name]
    limits = Limits(cpu_seconds=30 if why == "of memory" else 0.7, memory=400 << 20, processes=4)
    with pytest.raises(Stopped, match=why or "did not end|processes"):
        inside(best_way(), code, limits, timeout=5 if not why else 60)


@pytest.mark.parametrize("way", APART)
def test_disk_is_limited_in_bytes_and_in_files(way: Way) -> None:
    code = """
import os

def look():
    files = size = 0
    try:
        while files < 10_000:
            open(f"empty{files}", "w").close()
            files += 1
    except OSError:
        pass
    for number in range(files):
        os.unlink(f"empty{number}")
    try:
        while size < 2**28:
            size += open("/tmp/full%d" % size, "wb").write(b"1" * 2**20)
    except OSError:
        pass
    return files, size
"""
    files, size = inside(available(way), code, Limits(disk=2**23))
    assert (files < 3000, size <= 2**23) == (True, True)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_a_program_outlives_it(way: Way) -> None:
    code = """
import os, signal, time

def look():
    if not os.fork():
        os.setsid()
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except OSError: pass
        if not os.fork():
            os.execvp("sleep", ["sleep", "4242.42"])
        os._exit(0)
    time.sleep(0.3)
    return 1
"""
    assert inside(available(way), code) == 1
    deadline = time.monotonic() + 5
    while (
        left := [each for each in psutil.process_iter(["cmdline"]) if "4242.42" in (each.info["cmdline"] or [])]
    ) and (time.monotonic() < deadline):
        time.sleep(0.05)
    assert not left


SCORER = """
import sys, time
from thinktune.scoring.sandbox.side import *
code = {"code": "import os\\ndef main():\\n    os.setsid()\\n    os.execvp('sleep', ['sleep', '4343.43'])"}
side = Side("tests", code, Limits(seconds=1), time.monotonic() + 60, way=sys.argv[1])
side.held()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("way", slow_but(["bubblewrap"], WAYS))
def test_a_killed_scorer_leaves_no_program_behind(way: Way, tmp_path: Path) -> None:
    scorer = subprocess.Popen(
        [sys.executable, "-c", SCORER, available(way)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert scorer.stdout is not None
    assert scorer.stdout.readline() == "ready\n"
    scorer.send_signal(signal.SIGKILL)
    scorer.wait()
    scorer.stdout.close()
    deadline = time.monotonic() + 20
    while any("4343.43" in (each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_only_parts_of_python_and_the_system_are_mounted() -> None:
    project, home = Path.cwd().resolve(), Path.home().resolve()
    for place in map(Path, containment.places()):
        resolved = place.resolve()
        assert not project.is_relative_to(resolved)
        assert not home.is_relative_to(resolved)
        assert place.exists()
    assert "/etc" not in containment.places()
    assert "/tmp" not in containment.places()


def test_what_could_not_be_confined_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNNER, "false")
    verdict = run_trial("def f(): return 1", "assert f() == 1", "f")
    assert (verdict.equal, verdict.failed) == (False, True)
    assert "could not be started or confined" in (verdict.note or "")
    monkeypatch.setenv(RUNNER, "echo no such image")
    assert run_trial("def f(): return 1", "assert f() == 1", "f").failed


def test_a_way_that_cannot_be_had_holds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert protections("bubblewrap") == {}
    assert not list(tmp_path.iterdir())


PERMISSION, UNKNOWN, ALLOWED, KILLED = 0x50001, 0x50026, 0x7FFF0000, 0x80000000
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def decide(machine: str, number: int, *arguments: int, architecture: int | None = None, alone: bool = True) -> int:
    """What the kernel would do: run a filter as linux/filter.h describes it."""
    steps = list(struct.iter_unpack("<HBBI", bytes.fromhex(syscalls.filters(alone=alone)[machine])))
    data = struct.pack(
        "<iIQ6Q", number, architecture or MACHINES[machine], 0, *arguments, *([0] * (6 - len(arguments)))
    )
    accumulator, place = 0, 0
    while True:
        code, yes, no, value = steps[place]
        place += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x06:
            return int(value)
        else:
            tests = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
            place += yes if tests[code] else no


@pytest.mark.parametrize(
    ("x86_64", "aarch64", "arguments", "expected"),
    [
        (0, 63, (), ALLOWED),  # read
        (59, 221, (), ALLOWED),  # execve
        (101, 117, (), PERMISSION),  # ptrace
        (41, 198, (1, 1), PERMISSION),  # socket
        (53, 199, (1, 1 | 0x80800), ALLOWED),  # socketpair, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK
        (53, 199, (1, 2), PERMISSION),  # SOCK_DGRAM
        (53, 199, (2, 1), PERMISSION),  # AF_INET
        (56, 220, (0x3D0F00,), ALLOWED),  # clone of a thread
        (56, 220, (0x10000011,), PERMISSION),  # CLONE_NEWUSER
        (56, 220, (0x40000011,), PERMISSION),  # CLONE_NEWNET
        (435, 435, (), UNKNOWN),  # clone3
        (13, 134, (15, 2**40), ALLOWED),  # rt_sigaction of SIGTERM
        (13, 134, (17, 0), ALLOWED),  # asks for that of SIGCHLD
        (13, 134, (17, 2**40), PERMISSION),  # changes it, at an address whose low half is zero
        (13, 134, (17, 1), PERMISSION),
        (302, 261, (0, 7), ALLOWED),  # prlimit64 of oneself
        (302, 261, (1, 7), PERMISSION),
        (72, 25, (3, 4), ALLOWED),  # fcntl: F_SETFL
        (72, 25, (3, 10), PERMISSION),  # F_SETSIG
        (304, 265, (), PERMISSION),  # open_by_handle_at
        (62, 129, (1, 9), ALLOWED),  # kill, in a process table of one's own
        (463, 463, (), UNKNOWN),
        (0x40000000, 0x40000000, (), UNKNOWN),  # x32
    ],
)
def test_the_filter_decides_alike_on_both_machines(
    x86_64: int, aarch64: int, arguments: tuple[int, ...], expected: int
) -> None:
    assert decide("x86_64", x86_64, *arguments) == expected
    assert decide("aarch64", aarch64, *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_architecture_kill(machine: str) -> None:
    assert decide(machine, 0, architecture=0x40000003) == KILLED


def test_without_a_process_table_of_its_own_a_program_signals_only_itself() -> None:
    assert decide("x86_64", 62, syscalls.OWN_PROCESS, 15, alone=False) == ALLOWED
    assert decide("x86_64", 62, 1, 0, alone=False) == PERMISSION
    assert decide("x86_64", 62, 2**32 - 1, 9, alone=False) == PERMISSION
    assert decide("aarch64", 424, 3, 9, alone=False) == PERMISSION
