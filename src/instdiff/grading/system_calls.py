"""A filter of system calls for programs that a model wrote, as the kernel's seccomp reads it."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Of each machine the kernel's word for its system calls, and their column in ``REFUSED``."""

REFUSED = {
    # Memory that no limit of a process counts.
    **{"shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180)},
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "perf_event_open": (298, 241), "bpf": (321, 280)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    # Other ways to do what this filter sees.
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    # New namespaces, which would give rights; clone3 hides its flags, and the C library goes on without it.
    **{"unshare": (272, 97), "setns": (308, 268), "clone3": (435, 435)},
    # Other processes.
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"pidfd_getfd": (438, 438), "kcmp": (312, 272), "process_madvise": (440, 440), "userfaultfd": (323, 282)},
    # What others do in folders that are shared to be read.
    **{"inotify_init1": (294, 26), "fanotify_init": (300, 262)},
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "syslog": (103, 116)},
}
"""The number of each refused call on x86_64 and on aarch64."""
OLD = {"inotify_init": 253, "modify_ldt": 154, "uselib": 134}
"""Refused calls that x86_64 alone has."""
NEWEST = 456
"""Calls with a higher number are newer than this list."""

CLONE, SOCKET, SOCKETPAIR = (56, 220), (41, 198), (53, 199)
NAMESPACES = 0x7E020000
"""The flags of ``clone`` for any new namespace."""
FAMILIES = (1, 2, 10, 16)
"""Unix, both of the internet and netlink: the families that a network namespace holds."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST = 0, 4, 16
"""Where ``struct seccomp_data`` has the call, the machine, and the low half of the first argument."""
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


def call_filter(machine: str) -> bytes | None:
    """The program that the kernel runs before each system call; None for a machine whose numbers are not known."""
    if machine not in MACHINES:
        return None
    architecture, column = MACHINES[machine]
    refused = [numbers[column] for numbers in REFUSED.values()] + (list(OLD.values()) if column == 0 else [])
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        *_unless(_EQUAL, architecture, errno.ENOSYS),
        _step(_LOAD, _NUMBER),
        *_when(_AT_LEAST, NEWEST + 1, errno.ENOSYS),
        *(step for number in sorted(refused) for step in _when(_EQUAL, number, errno.ENOSYS)),
        *_first_argument([CLONE[column]], [_step(_ANY_BIT, NAMESPACES, 0, 1), _error(errno.EPERM)]),
        *_first_argument([SOCKET[column], SOCKETPAIR[column]], _only_families()),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)


def _step(code: int, value: int, then: int = 0, other: int = 0) -> bytes:
    """One instruction; a comparison skips ``then`` or ``other`` of those that follow."""
    return struct.pack("=HBBI", code, then, other, value)


def _error(number: int) -> bytes:
    return _step(_RETURN, _ERROR | number)


def _when(code: int, value: int, number: int) -> list[bytes]:
    return [_step(code, value, 0, 1), _error(number)]


def _unless(code: int, value: int, number: int) -> list[bytes]:
    return [_step(code, value, 1, 0), _error(number)]


def _only_families() -> list[bytes]:
    count = len(FAMILIES)
    tests = [_step(_EQUAL, family, count - at) for at, family in enumerate(FAMILIES)]
    return [*tests, _error(errno.EAFNOSUPPORT)]


def _first_argument(calls: Iterable[int], then: list[bytes]) -> list[bytes]:
    """Steps over the first argument of these calls, which end the filter."""
    body = [_step(_LOAD, _FIRST), *then, _step(_RETURN, _ALLOW)]
    numbers = list(calls)
    tests = [_step(_EQUAL, number, len(numbers) - 1 - at) for at, number in enumerate(numbers[:-1])]
    return [*tests, _step(_EQUAL, numbers[-1], 0, len(body)), *body]
