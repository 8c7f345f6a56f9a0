"""The system calls refused to a model's program, as a seccomp filter: a small BPF program that the kernel runs.

Calls that no honest program of a benchmark needs, and ways around the other limits, are refused: looking into or
steering other processes, namespaces and mounts, memory that belongs to no process (memfd, System V, message queues),
sockets (but for a connected pair, which asyncio wants), keys, clocks, modules, and large old or new parts of the
kernel.

Numbers: Linux' arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; format of the filter:
linux/filter.h and linux/seccomp.h.
"""

from __future__ import annotations

import struct

OWN_PROCESS = 0x7FFFFFFF
"""Stands in a filter for the number of the process that installs it, which puts its own there."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NEWEST = 462  # what is newer than this table (mseal) is unknown here, as are the x32 calls of x86_64
_PERMISSION, _UNKNOWN = 1, 38  # EPERM, ENOSYS: the C library then takes another way

# name: number on x86_64, on aarch64; None where there is no such call
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # memory that is no process's own
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    # namespaces, mounts, files without a path
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # sockets; see _RULES for socketpair
    "socket": (41, 198),
    "bind": (49, 200),
    "listen": (50, 201),
    "connect": (42, 203),
    "accept": (43, 202),
    "accept4": (288, 242),
    # the kernel itself
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "personality": (135, 92),
    "syslog": (103, 116),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
}

# Only where there is no process table of one's own: signals to anybody but oneself.
_SIGNALS: dict[str, tuple[int, int]] = {
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
}

Instruction = tuple[int, int, int, int]


def _load(offset: int) -> Instruction:
    return 0x20, 0, 0, offset  # BPF_LD | BPF_W | BPF_ABS


def _argument(index: int, *, high: bool = False) -> Instruction:
    return _load(16 + 8 * index + 4 * high)


def _answer(number: int) -> Instruction:
    return 0x06, 0, 0, 0x50000 | number  # BPF_RET, SECCOMP_RET_ERRNO


def _unless(value: int) -> Instruction:
    return 0x15, 1, 0, value  # BPF_JEQ: what is equal skips the next instruction


def _if(value: int) -> Instruction:
    return 0x15, 0, 1, value


_ALLOW: Instruction = (0x06, 0, 0, 0x7FFF0000)
_KILL: Instruction = (0x06, 0, 0, 0x80000000)
_NO = _answer(_PERMISSION)
_NEW_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET


def _never(index: int, *values: int) -> list[Instruction]:
    """Refuse a call whose argument has one of these values."""
    return [_argument(index), *(step for value in values for step in (_if(value), _NO)), _ALLOW]


def _only(index: int, value: int) -> list[Instruction]:
    return [_argument(index), _unless(value), _NO, _ALLOW]


_SIGCHLD_STAYS = [
    *(_argument(0), _unless(17), _ALLOW),
    *(_argument(1), _unless(0), _NO),
    *(_argument(1, high=True), _unless(0), _NO, _ALLOW),
]

# Calls that depend on their arguments: numbers, and the instructions that decide.
_RULES: list[tuple[tuple[int, int], list[Instruction]]] = [
    ((435, 435), [_answer(_UNKNOWN)]),  # clone3: its flags lie in memory; the C library then takes clone
    ((56, 220), [_argument(0), (0x45, 0, 1, _NEW_NAMESPACE_FLAGS), _NO, _ALLOW]),  # clone; BPF_JSET
    # socketpair: of local sockets that are connected for good (SOCK_STREAM, whatever flags)
    (
        (53, 199),
        [_argument(0), _unless(1), _NO, _argument(1), (0x54, 0, 0, 0xF), _unless(1), _NO, _ALLOW],
    ),
    # rt_sigaction of SIGCHLD: a parent that ignores its children would hide their processor time
    ((13, 134), _SIGCHLD_STAYS),
    ((157, 167), _never(0, 1, 4, 35)),  # prctl: PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_MM
    ((16, 29), _never(1, 0x5412, 0x541C, 0x8901, 0x8902)),  # ioctl: TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP
    ((72, 25), _never(1, 8, 10, 15, 1031)),  # fcntl: F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETPIPE_SZ
    ((302, 261), _only(0, 0)),  # prlimit64: of oneself
]
_SIGNAL_RULES: list[tuple[tuple[int, int], list[Instruction]]] = [
    ((62, 129), _only(0, OWN_PROCESS)),  # kill
    ((234, 131), _only(0, OWN_PROCESS)),  # tgkill
]


def filters(*, alone: bool) -> dict[str, str]:
    """Return the filter of each machine that `os.uname` may name, as hexadecimal text: an array of struct sock_filter.

    Args:
        alone: the program sees no process but its own; else signals to others are refused too.
    """
    return {machine: _assemble(machine, alone=alone).hex() for machine in _ARCHITECTURES}


def _assemble(machine: str, *, alone: bool) -> bytes:
    column = list(_ARCHITECTURES).index(machine)
    code = [_load(4), _unless(_ARCHITECTURES[machine]), _KILL]
    code += [_load(0), (0x35, 0, 1, _NEWEST + 1), _answer(_UNKNOWN)]  # BPF_JGE
    for numbers in [*_REFUSED.values(), *([] if alone else _SIGNALS.values())]:
        if (number := numbers[column]) is not None:
            code += [_if(number), _NO]
    for numbers, rule in [*_RULES, *([] if alone else _SIGNAL_RULES)]:
        code += [(0x15, 0, len(rule), numbers[column]), *rule]
    code.append(_ALLOW)
    return b"".join(struct.pack("<HBBI", *step) for step in code)
