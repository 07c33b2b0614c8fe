"""What runs one program that a model wrote, away from everything else. ``docs/sandbox.md`` says how.

It is started as a script, in a fresh interpreter, and needs nothing but the standard library. A job comes as two lines
of JSON on its standard input; a verdict goes as JSON to its standard output. There are four processes: the *keeper*,
which makes namespaces; in them the *first* one, which watches the clock and dies with the keeper, and all others with
it; the *program*, which has neither rights nor a way to what the first one says; and the *tests*, which ask the program
for its results. The program is there before the second line is read, so that it never holds the tests.
"""

from __future__ import annotations

import _socket  # what `socket` adds takes longer to import than most programs to run
import builtins
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
from collections import deque
from collections.abc import Callable
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
PDEATHSIG, DUMPABLE, SECCOMP, SUBREAPER, NO_NEW_PRIVS = 1, 4, 22, 36, 38

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
SETTINGS = ("ld.so.cache", "alternatives", "localtime", "mime.types", "fonts", "nsswitch.conf", "ssl/openssl.cnf")
DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: Any) -> None:
    """A function of the C library that returns 0."""
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _prctl(what: int, value: int, third: int = 0) -> None:
    _call("prctl", what, ctypes.c_ulong(value), ctypes.c_ulong(third), *[ctypes.c_ulong(0)] * 2)


def main() -> None:
    """The keeper."""
    _prctl(PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):  # where memory ends, this ends first
        _write("/proc/self/oom_score_adj", "1000")
    job = json.loads(_line())
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


def _line() -> bytes:
    """A line of the standard input, and nothing of what follows it."""
    line = bytearray()
    while not line.endswith(b"\n") and (some := os.read(0, 1)):
        line += some
    return bytes(line)


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
    """Start the program and its tests, watch them, and say how it ended."""
    _prctl(PDEATHSIG, signal.SIGKILL)
    _prctl(SUBREAPER, 1)
    if held:
        _loopback()
        with suppress(OSError):  # the machine's name is no business of a program
            _call("sethostname", b"sandbox", ctypes.c_size_t(7))
        try:
            _other_root(job, "processes" in held)
            held = [*held, "files"]
        except OSError as error:
            if not job["unsafe"]:
                return {"reason": "unsafe", "detail": f"no namespaces can be made ({error})", "held": held}
    if not held and not job["unsafe"]:
        return {"reason": "unsafe", "detail": "no namespaces can be made", "held": held}
    _prctl(DUMPABLE, 0)  # the program must not look into this process
    return {**_judge(job, "files" in held, "processes" in held), "held": held}


def _judge(job: dict[str, Any], files: bool, apart: bool) -> dict[str, Any]:
    """The verdict on a program, by its own report or by that of its tests."""
    ours, theirs = os.pipe()
    near, far = _socket.socketpair()
    own = job["secret"] is not None
    program = _start(lambda: _program(job, theirs if own else far.fileno(), files))
    far.close()
    rest = {"secret": job["secret"]} if own else json.loads(_rest())
    started = [program] if own else [program, _start(lambda: _tests({**job, **rest}, theirs, near.fileno(), files))]
    near.close()
    os.close(theirs)
    in_time, ends = _watch(started, job["wall"])
    os.set_blocking(ours, False)
    verdict = _verdict(_read(ours), {**job, **rest}, in_time, ends)
    left = _kill_rest(GRACE if verdict["reason"] == "passed" else 0, apart)
    if verdict["reason"] == "passed" and left:
        return {"reason": "outlived", "detail": "processes that the program started were still there after it"}
    return verdict


def _start(run: Callable[[], NoReturn]) -> int:
    process = os.fork()
    if process == 0:
        run()
    return process


def _rest() -> bytes:
    parts = []
    while part := os.read(0, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _watch(processes: list[int], wall: float) -> tuple[bool, list[tuple[int | None, float]]]:
    """Whether one ended in time, which ends them all; of each its status and its seconds of processor time.

    One that did not end by itself has no status.
    """
    handles = {os.pidfd_open(process): process for process in processes}
    ready, _, _ = select.select([*handles], [], [], wall)
    in_time = bool(ready)
    until = time.monotonic() + (GRACE if in_time else 0)
    while len(ready) < len(handles) and (now := time.monotonic()) < until:
        ready += select.select([handle for handle in handles if handle not in ready], [], [], until - now)[0]
    ends = []
    for handle, process in handles.items():
        if handle not in ready:
            os.kill(process, signal.SIGKILL)
        _, status, used = os.wait4(process, 0)
        ends.append((status if handle in ready else None, used.ru_utime + used.ru_stime))
    return in_time, ends


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, MOST_REPORT)
    except BlockingIOError:
        return b""


def _verdict(report: bytes, job: dict[str, Any], in_time: bool, ends: list[tuple[int | None, float]]) -> dict[str, Any]:
    """Believe the report that begins with the secret of this run, and nothing else."""
    secret = job["secret"].encode()
    if not in_time:
        return {"reason": "timeout", "detail": f"more than {job['wall']:g} seconds"}
    if report.startswith(secret):
        reason, _, detail = report[len(secret) :].decode(errors="replace").partition(" ")
        return {"reason": reason, "detail": detail}
    for status, cpu in ends:
        if status is not None and os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGXCPU or cpu >= job["cpu"]:
                return {"reason": "timeout", "detail": f"more than {job['cpu']:g} seconds of processor time"}
            return {"reason": "killed", "detail": signal.Signals(number).name}
    code = os.WEXITSTATUS(ends[0][0] or 0)
    return {"reason": "exited_early", "detail": f"exit code {code} before the end of the tests"}


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


def _program(job: dict[str, Any], way: int, apart: bool) -> NoReturn:
    """Give up everything and run the text; then report by the file ``way``, or answer the tests by it."""
    write, leave, own, number = os.write, os._exit, os.getpid(), os.getpid
    secret, namespace = job["secret"], dict[str, Any]()
    try:
        os.setsid()
        reason, detail = _drop_rights(job, way, apart) or _run(job["program"], namespace)
    except BaseException as error:  # noqa: BLE001 - this process ends here, whatever it was
        reason, detail = "error", type(error).__name__
    try:
        # A copy of the process that ran to the end as well has nothing to say.
        if number() == own and secret is None:
            _answer(way, namespace, reason, detail)
        elif number() == own:
            write(way, f"{secret}{reason} {detail}".encode(errors="replace")[: MOST_REPORT // 4])
    finally:
        leave(0)


def _drop_rights(job: dict[str, Any], way: int, apart: bool, other: int | None = None) -> tuple[str, str] | None:
    """No open files, limits, no rights; what is amiss, where the system calls cannot be filtered."""
    null = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    kept = sorted({way, way if other is None else other})
    for low, high in zip([2, *kept], [*kept, 1 << 12], strict=True):
        os.closerange(low + 1, high)
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
    try:
        _filter_calls(bytes.fromhex(job["calls"] or ""))
    except OSError as error:
        if not job["unsafe"]:
            return "unsafe", f"system calls cannot be filtered ({error})"
    _prctl(DUMPABLE, 1 if other is None else 0)
    return None


def _filter_calls(steps: bytes) -> None:
    """Have the kernel refuse what no solution needs, for good."""
    code = ctypes.create_string_buffer(steps, len(steps))
    head = ctypes.create_string_buffer(struct.pack("HP", len(steps) // 8, ctypes.addressof(code)))
    _prctl(SECCOMP, 2, ctypes.addressof(head))


def _run(
    text: str, namespace: dict[str, Any], ending: Callable[[BaseException], tuple[str, str]] | None = None
) -> tuple[str, str]:
    """How a text ends: a word, and what it said. ``namespace`` gets what it defines; ``ending`` words an exception."""
    module = types.ModuleType("program")
    module.__dict__.update(namespace)
    sys.modules["program"] = module
    try:
        exec(compile(text, "program.py", "exec"), module.__dict__)
    except BaseException as error:  # noqa: BLE001 - whatever a program raises is a verdict on it
        return (ending or _ending)(error)
    finally:
        namespace.update(module.__dict__)
    return "passed", ""


def _ending(error: BaseException) -> tuple[str, str]:
    if isinstance(error, MemoryError):
        return "memory", ""
    if isinstance(error, SystemExit):
        return "exited_early", f"SystemExit {error.code!r:.40}"
    return _word(error), f"{type(error).__name__}: {error}"[:MOST_DETAIL]


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


def _answer(way: int, namespace: dict[str, Any], reason: str, detail: str) -> None:
    """Do what the tests ask of the program's names, until they close the way."""
    things = Things()
    asked = _receive(way)
    if reason != "passed":
        return _send(way, ["end", reason, detail])
    _send(way, ["names", {name: things.pack(namespace[name]) for name in asked or () if name in namespace}])
    own = os.getpid()
    while (asked := _receive(way)) is not None:
        try:
            said = ["value", things.pack(_do(things, *asked))]
        except BaseException as error:  # noqa: BLE001 - the tests are told of it
            if os.getpid() != own:
                return None
            plain = isinstance(error, Exception)
            said = ["error", type(error).__name__ if plain else "", str(error)[:MOST_DETAIL], *_ending(error)]
        if os.getpid() != own:
            return None
        _send(way, said)
    return None


def _do(things: Things, what: str, at: int, name: str, given: Any) -> Any:
    """What one question comes to: a call, or an attribute to be told or set."""
    thing, values = things.of[at], things.unpack(given)
    if what == "call":
        return thing(*values[0], **values[1])
    return setattr(thing, name, values) if what == "set" else getattr(thing, name)


# ── the tests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tests(job: dict[str, Any], report: int, way: int, apart: bool) -> NoReturn:
    """Run the tests with stand-ins for what the program defines, which ask it by the file ``way``, and report."""
    with suppress(BaseException):  # without a report the end of the program is the verdict
        os.setsid()
        reason, detail = _drop_rights(job, report, apart, way) or _run_tests(job, way)
        os.write(report, f"{job['secret']}{reason} {detail}".encode(errors="replace")[: MOST_REPORT // 4])
    os._exit(0)


def _run_tests(job: dict[str, Any], way: int) -> tuple[str, str]:
    namespace: dict[str, Any] = {}
    with suppress(Exception):  # a head that is no whole program gives the tests nothing
        exec(compile(job["head"], "head.py", "exec"), namespace)
    namespace.pop(job["entry"], None)
    known = {*namespace, *vars(builtins)}
    try:
        needed = sorted(_names(compile(job["tests"], "tests.py", "exec")) - known | {job["entry"]})
    except SyntaxError as error:
        return "error", f"the tests are no Python: {error}"[:MOST_DETAIL]
    _send(way, needed)
    told = _receive(way)
    if told is None:
        raise EOFError
    if told[0] == "end":
        return _failing(told[1]), str(told[2])[:MOST_DETAIL]
    program = Asked(way)
    namespace |= {name: program.unpack(value) for name, value in told[1].items() if name in needed}
    reason, detail = _run(job["tests"], namespace, program.ending)
    if program.gone:
        raise EOFError
    return reason, detail


def _names(code: types.CodeType) -> set[str]:
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


def _failing(word: Any) -> str:
    """A program may name its own failure, but never a success."""
    words = ("failed", "syntax", "error", "missing_library", "memory", "disk", "processes", "exited_early")
    return word if word in words else "error"


# ── values between the two ────────────────────────────────────────────────────────────────────────────────────────────


def _send(way: int, message: Any) -> None:
    body = json.dumps(message).encode()
    data = memoryview(struct.pack("Q", len(body)) + body)
    while data:
        data = data[os.write(way, data) :]


def _receive(way: int) -> Any:
    """A message; None where the other side is gone."""
    head = _read_exactly(way, 8)
    body = _read_exactly(way, struct.unpack("Q", head)[0]) if head else None
    return None if body is None else json.loads(body)


def _read_exactly(way: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = os.read(way, min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


class Things:
    """Values as JSON: copies of plain ones, and numbers for those that stay here."""

    def __init__(self) -> None:
        self.of: list[Any] = []
        self._numbers: dict[int, int] = {}

    def pack(self, value: Any) -> Any:
        """What is sent for a value. A subclass of a plain type goes as that type."""
        if value is None or isinstance(value, bool):
            return value
        for kind, plain in PLAIN:
            if isinstance(value, kind):
                return plain(value)
        for kind, name in SEQUENCES:
            if isinstance(value, kind):
                return [name, [self.pack(part) for part in value]]
        if isinstance(value, dict):
            return ["dict", [self.pack(pair) for pair in dict.items(value)]]
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if isinstance(value, type) and value in vars(builtins).values():
            return ["type", value.__name__]
        return self._numeric(value) or self._keep(value)

    def _numeric(self, value: Any) -> Any:
        """What comes from libraries of numbers, where it is plain."""
        numpy, module = sys.modules.get("numpy"), str(type(value).__module__)
        if numpy and isinstance(value, (numpy.ndarray, numpy.generic)) and value.dtype.kind in "biufcSU":
            return ["numpy", value.dtype.str, list(value.shape), self.pack(value.ravel().tolist())]
        if (module.partition(".")[0], type(value).__name__) in TEXTS:
            return ["text", module.partition(".")[0], type(value).__name__, str(value)]
        return ["iterator", [self.pack(part) for part in value]] if hasattr(type(value), "__next__") else None

    def _keep(self, value: Any) -> Any:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.of)
            self.of.append(value)
        return ["thing", self._numbers[id(value)]]

    def unpack(self, packed: Any) -> Any:
        """The value; a ValueError where it is none."""
        if not isinstance(packed, list):
            return packed
        name, *rest = packed
        if name in BUILD:
            return BUILD[name](*[[self.unpack(part) for part in some] for some in rest])
        if name in SINGLE:
            return SINGLE[name](*rest)
        if name == "numpy":
            return self._array(*rest)
        if name == "text" and tuple(rest[:2]) in TEXTS:
            return getattr(__import__(rest[0]), rest[1])(rest[2])
        if name == "module" and rest[0].partition(".")[0] in {*sys.stdlib_module_names, "numpy"}:
            __import__(rest[0])
            return sys.modules[rest[0]]
        return self.thing(*rest) if name == "thing" else _no_value(name)

    def _array(self, dtype: str, shape: list[int], values: Any) -> Any:
        import numpy

        found = numpy.array(self.unpack(values), numpy.dtype(dtype)).reshape(shape)
        return found if shape else found[()]

    def thing(self, number: int) -> Any:
        """What stays on a side, by its number."""
        return self.of[number]


def _no_value(name: Any) -> NoReturn:
    raise ValueError(f"no value: {name!r:.40}")


PLAIN: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    # JSON has integers in decimals, of which Python writes so many alone.
    (int, lambda value: ["integer", hex(value)] if int.bit_length(value) > 10_000 else int.__index__(value)),
    (float, float.__float__),
    (str, str.__str__),
    (complex, lambda value: ["complex", value.real, value.imag]),
    (bytes, lambda value: ["bytes", value.hex()]),
    (bytearray, lambda value: ["bytes", value.hex()]),
    (range, lambda value: ["range", [value.start, value.stop, value.step]]),
)
SEQUENCES: tuple[tuple[Any, str], ...] = (
    *((tuple, "tuple"), (list, "list"), (set, "set"), (frozenset, "frozenset"), (deque, "deque")),
    *((type({}.keys()), "keys"), (type({}.values()), "values"), (type({}.items()), "items")),
)
BUILD: dict[str, Callable[..., Any]] = {
    "tuple": tuple,
    "list": list,
    "set": set,
    "frozenset": frozenset,
    "range": lambda parts: range(*parts),
    "deque": deque,
    "iterator": iter,
    "dict": dict,
    "keys": lambda parts: dict.fromkeys(parts).keys(),
    "values": lambda parts: dict(enumerate(parts)).values(),
    "items": lambda parts: dict(parts).items(),
}
SINGLE: dict[str, Callable[..., Any]] = {
    "integer": lambda text: int(text, 16),
    "complex": complex,
    "bytes": bytes.fromhex,
    "type": lambda name: kind if isinstance(kind := getattr(builtins, name), type) else _no_value(name),
}
TEXTS = {("decimal", "Decimal"), ("fractions", "Fraction")}


class Gone(BaseException):
    """The program has ended, or asked to."""


class Asked(Things):
    """What stays with the program, as its tests see it."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self._way, self._seen, self.gone = way, dict[int, Remote](), False
        self.raised: tuple[BaseException | None, tuple[str, str]] = None, ("", "")

    def thing(self, number: int) -> Any:
        """Equal ones are one, and none equals another, whatever the program says."""
        return self._seen.setdefault(number, Remote(self, number))

    def _keep(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return ["thing", object.__getattribute__(value, "_number")]
        raise TypeError(f"the tests give the program a {type(value).__name__}, which is no plain value")

    def ask(self, what: str, number: int, name: str, given: Any) -> Any:
        """The program's answer; raises what the program raised."""
        question = [what, number, name, self.pack(given)]
        said = None
        with suppress(OSError):
            _send(self._way, question)
            said = _receive(self._way)
        if said is None:
            self.gone = True
            raise Gone
        if said[0] == "value":
            return self.unpack(said[1])
        _, name, text, word, detail = said
        self.raised = _like(name, text), (_failing(word), str(detail)[:MOST_DETAIL])
        raise self.raised[0]

    def ending(self, error: BaseException) -> tuple[str, str]:
        """How the tests end by an exception: in the program's own words, where it was the program's."""
        raised, words = self.raised
        return words if error is raised else _ending(error)


def _like(name: str, text: str) -> BaseException:
    """The exception of Python that a program raised; any other is one that tests do not know."""
    kind = getattr(builtins, name, None) if name else Gone
    # The end of an iteration would end the tests' own loops.
    if isinstance(kind, type) and issubclass(kind, BaseException) and not issubclass(kind, StopIteration):
        with suppress(TypeError):  # some take more than a text
            return kind(text)
    return Exception(text)


class Remote:
    """A function or an object of the program."""

    def __init__(self, program: Asked, number: int) -> None:
        object.__setattr__(self, "_ask", program.ask)
        object.__setattr__(self, "_number", number)

    def __call__(self, *values: Any, **named: Any) -> Any:  # noqa: D102
        return self._ask("call", self._number, "", (values, named))

    def __getattr__(self, name: str) -> Any:
        return self._ask("get", self._number, name, None)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", self._number, name, value)


if __name__ == "__main__":
    main()
