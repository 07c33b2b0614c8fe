"""What runs one program that a model wrote, away from everything else. ``docs/sandbox.md`` says how.

It is started as a script, in a fresh interpreter, and needs nothing but the standard library. A job comes as JSON on
its standard input; a verdict goes as JSON to its standard output. There are three processes: the *keeper*, which makes
namespaces; in them the *first* one, which watches the clock and dies with the keeper, and all others with it; and the
*program*, which has neither rights nor a way to what the first one says.
"""

from __future__ import annotations

import _socket  # what `socket` adds takes longer to import than most programs to run
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import struct
import sys
import time
import types
from contextlib import suppress
from typing import Any, NoReturn

NOBODY = 65534
HOME = "/tmp/home"
MOST_REPORT = 1 << 14
MOST_DETAIL = 400
GRACE = 1.0
"""Seconds that helpers of a program have to end after it, such as those of ``multiprocessing``."""

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_SETATTR = 442  # the same number on all architectures of Linux 5.12 and later but one
PDEATHSIG, DUMPABLE, SUBREAPER, NO_NEW_PRIVS = 1, 4, 36, 38

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
SETTINGS = ("ld.so.cache", "alternatives", "localtime", "mime.types", "fonts", "nsswitch.conf", "ssl/openssl.cnf")
DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: Any) -> None:
    """A function of the C library that returns 0."""
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _prctl(what: int, value: int) -> None:
    _call("prctl", what, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


def main() -> None:
    """The keeper."""
    _prctl(PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):  # where memory ends, this ends first
        _write("/proc/self/oom_score_adj", "1000")
    job = json.loads(sys.stdin.buffer.read())
    held = _apart()
    first = os.fork()
    if first == 0:
        try:
            verdict = _run_as_init(job, held)
        except Exception as error:  # noqa: BLE001 - whoever started this must hear of it
            verdict = {"reason": "sandbox", "detail": f"{type(error).__name__}: {error}"}
        os.write(1, json.dumps(verdict).encode())
        os._exit(0)
    os.waitpid(first, 0)


# ── away from the rest ────────────────────────────────────────────────────────────────────────────────────────────────


def _apart() -> list[str]:
    """Enter namespaces; what they give. Root needs none of users, others get one where the kernel lets them."""
    spaces = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS
    user, group = os.geteuid(), os.getegid()
    for flags in [spaces, spaces | NEWUSER] if user == 0 else [spaces | NEWUSER]:
        with suppress(OSError, AttributeError):
            _call("unshare", flags)
            if flags & NEWUSER:
                _write("/proc/self/setgroups", "deny")
                _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
                _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
            _prctl(PDEATHSIG, signal.SIGKILL)  # a change of user forgets it
            return ["network", "processes"]
    return []


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    names = [None if name is None else name.encode() for name in (source, target, kind)]
    _call("mount", *names, ctypes.c_ulong(flags), data.encode())


def _bind_read_only(source: str, target: str) -> None:
    """Show a file or folder under another root, to be read alone."""
    if os.path.isdir(source):
        os.makedirs(target, 0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, None, MS_BIND | MS_REC)
    attributes = struct.pack("=QQQQ", MS_RDONLY | MS_NOSUID, 0, 0, 0)
    here, recursive, size = ctypes.c_long(-100), ctypes.c_long(0x8000), ctypes.c_size_t(len(attributes))
    _call("syscall", ctypes.c_long(MOUNT_SETATTR), here, target.encode(), recursive, attributes, size)


def _other_root(job: dict[str, Any], processes: bool) -> None:
    """Change into a root that holds the system's and Python's libraries, to be read, and one empty folder."""
    root = job["folder"]
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"size={job['disk']},nr_inodes=16384,mode=755")
    given = {sys.base_prefix, sys.prefix, sys.exec_prefix, *filter(os.path.isdir, job["libraries"])}
    for path in SYSTEM:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            _bind_read_only(path, root + path)
    for path in sorted(given | {os.path.realpath(path) for path in given}, key=len):
        if not os.path.exists(root + path):
            _bind_read_only(path, root + path)
    for name in SETTINGS:
        if os.path.exists(f"/etc/{name}"):
            _bind_read_only(f"/etc/{name}", f"{root}/etc/{name}")
    _write(f"{root}/etc/hosts", "127.0.0.1 localhost\n")
    _write(f"{root}/etc/passwd", f"nobody:x:{NOBODY}:{NOBODY}:nobody:{HOME}:/bin/sh\n")
    os.mkdir(f"{root}/dev", 0o755)
    for name in DEVICES:
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    for name in ("/tmp", HOME, "/dev/shm"):
        os.makedirs(root + name, exist_ok=True)  # an interpreter may lie below it
        os.chmod(root + name, 0o1777)
    os.mkdir(f"{root}/proc", 0o755)
    with suppress(OSError):  # inside some containers nobody may; little needs it
        if processes:
            _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV)
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def _loopback() -> None:
    """Programs that talk to themselves may; nobody else listens in their network."""
    some = _socket.socket()
    with suppress(OSError):
        fcntl.ioctl(some, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))


# ── the first process ─────────────────────────────────────────────────────────────────────────────────────────────────


def _run_as_init(job: dict[str, Any], held: list[str]) -> dict[str, Any]:
    """Start the program, watch it, and say how it ended."""
    _prctl(PDEATHSIG, signal.SIGKILL)
    _prctl(SUBREAPER, 1)
    if held:
        _loopback()
        try:
            _other_root(job, "processes" in held)
            held = [*held, "files"]
        except OSError as error:
            if not job["unsafe"]:
                return {"reason": "unsafe", "detail": str(error), "held": held}
    if not held and not job["unsafe"]:
        return {"reason": "unsafe", "detail": "no namespaces", "held": held}
    _prctl(DUMPABLE, 0)  # the program must not look into this process
    ours, theirs = os.pipe()
    program = os.fork()
    if program == 0:
        _program(job, theirs, "files" in held)
    os.close(theirs)
    ended, status, cpu = _watch(program, job["wall"])
    os.set_blocking(ours, False)
    verdict = _verdict(_read(ours), job, ended, status, cpu)
    left = _kill_rest(GRACE if verdict["reason"] == "passed" else 0, "processes" in held)
    if verdict["reason"] == "passed" and left:
        verdict = {"reason": "outlived", "detail": "processes that the program started were still there after it"}
    return {**verdict, "held": held}


def _watch(program: int, wall: float) -> tuple[bool, int, float]:
    """Whether the program ended by itself, its status, and the seconds of processor time that it took."""
    ready, _, _ = select.select([os.pidfd_open(program)], [], [], wall)
    if not ready:
        os.kill(program, signal.SIGKILL)
    _, status, used = os.wait4(program, 0)
    return bool(ready), status, used.ru_utime + used.ru_stime


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, MOST_REPORT)
    except BlockingIOError:
        return b""


def _verdict(report: bytes, job: dict[str, Any], ended: bool, status: int, cpu: float) -> dict[str, Any]:
    """Believe the report that begins with the secret of this run, and nothing else."""
    secret = job["secret"].encode()
    if not ended:
        return {"reason": "timeout", "detail": f"more than {job['wall']:g} seconds"}
    if report.startswith(secret):
        reason, _, detail = report[len(secret) :].decode(errors="replace").partition(" ")
        return {"reason": reason, "detail": detail}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU or cpu >= job["cpu"]:
            return {"reason": "timeout", "detail": f"more than {job['cpu']:g} seconds of processor time"}
        return {"reason": "killed", "detail": signal.Signals(number).name}
    return {"reason": "exited_early", "detail": f"exit code {os.WEXITSTATUS(status)} before the end of the tests"}


def _kill_rest(grace: float, apart: bool) -> bool:
    """Whether processes of the program are still there; where nothing else would end them, they are ended."""
    until, left = time.monotonic() + grace, False
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        there = _others(apart)
        if not there or (left and apart):
            return left
        if time.monotonic() >= until:
            left = True
            for process in [] if apart else there:
                with suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.005)


def _others(apart: bool) -> list[int]:
    """Processes below this one: all others of the namespace, or the children and the orphans that came here."""
    if apart:
        try:
            os.kill(-1, 0)
        except OSError:
            return []
        return [-1]
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat") as file:
            if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(name))
    return found


# ── the program ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _program(job: dict[str, Any], report: int, apart: bool) -> NoReturn:
    """Give up everything, run the text, and report when its end is reached."""
    write, leave, own, secret = os.write, os._exit, os.getpid(), job["secret"].encode()
    number = os.getpid
    try:
        os.setsid()
        _drop_rights(job, report, apart)
        reason, detail = _run(job["program"])
    except BaseException as error:  # noqa: BLE001 - this process ends here, whatever it was
        reason, detail = "error", type(error).__name__
    # A copy of the process that ran to the end as well has nothing to say.
    if number() == own:
        write(report, secret + f"{reason} {detail}".encode(errors="replace")[: MOST_REPORT // 4])
    leave(0)


def _drop_rights(job: dict[str, Any], report: int, apart: bool) -> None:
    """No open files, limits, no rights."""
    null = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.closerange(3, report)
    os.closerange(report + 1, 1 << 12)
    os.environ["HOME"] = os.environ["TMPDIR"] = HOME if apart else job["folder"]
    os.chdir(os.environ["HOME"])
    cpu = max(int(job["cpu"]), 1)
    for kind, limit in {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_FSIZE: (job["disk"],) * 2,
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (job["files"],) * 2,
        resource.RLIMIT_AS: (job["memory"],) * 2,
    }.items():
        resource.setrlimit(kind, limit)
    if os.geteuid() == 0 and (apart or job["open"]):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with suppress(OSError):  # a count of processes of its own: others of this user are not its business
            _call("unshare", NEWUSER)
    resource.setrlimit(resource.RLIMIT_NPROC, (job["processes"],) * 2)
    _prctl(NO_NEW_PRIVS, 1)
    # Version 3 of the call's header, this process; all three sets of both halves empty.
    _call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))
    _prctl(DUMPABLE, 1)


def _run(text: str) -> tuple[str, str]:
    """How a program's text ends: a word, and what it said."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(text, "program.py", "exec"), module.__dict__)
    except MemoryError:
        return "memory", ""
    except SystemExit as error:
        return "exited_early", f"SystemExit {error.code!r:.40}"
    except BaseException as error:  # noqa: BLE001 - whatever a program raises is a verdict on it
        return _word(error), f"{type(error).__name__}: {error}"[:MOST_DETAIL]
    return "passed", ""


def _word(error: BaseException) -> str:
    if isinstance(error, AssertionError):
        return "failed"
    if isinstance(error, SyntaxError):
        return "syntax"
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] not in sys.stdlib_module_names:
        return "missing_library"
    if isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC):
        return "disk"
    return "processes" if isinstance(error, BlockingIOError) else "error"


if __name__ == "__main__":
    main()
