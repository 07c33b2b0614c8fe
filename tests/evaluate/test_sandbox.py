"""What programs must not do, and what is said of those that try. Every one of them is bounded in time."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from instdiff.core.progress import Quiet
from instdiff.errors import EngineError
from instdiff.grading import sandbox as module
from instdiff.grading.sandbox import Limits, Program, Sandbox, Verdict, run_programs
from instdiff.grading.system_calls import CLONE, MACHINES, NEWEST, REFUSED, call_filter

SMALL = Limits(cpu=2, wall=30, memory=512 << 20, disk=4 << 20, processes=16, files=64)
SHORT = replace(SMALL, cpu=1, wall=1.0)
"""For programs that do not end by themselves; others are given the time that a busy machine needs."""
RUNNER = module.RUNNER


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    found = Sandbox(SMALL, workers=2)
    try:
        found.check()
    except EngineError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture
def short(sandbox: Sandbox) -> Sandbox:
    return Sandbox(SHORT, workers=2)


def verdicts(sandbox: Sandbox, *programs: str) -> list[Verdict]:
    found = dict(sandbox.run([Program(text) for text in programs]))
    return [found[number] for number in range(len(programs))]


def reasons(sandbox: Sandbox, *programs: str) -> list[str]:
    return [verdict.reason for verdict in verdicts(sandbox, *programs)]


def test_right_and_wrong_programs(sandbox: Sandbox) -> None:
    told = {
        "assert sum(range(4)) == 6": "passed",
        "assert sum(range(4)) == 7, 'wrong'": "failed",
        "1 / 0": "error",
        "def f(:": "syntax",
        "import no_such_library_at_all": "missing_library",
        "class A(Exception): pass\nraise A('x')": "error",
        "if __name__ == '__main__': raise ValueError": "passed",
    }
    found = verdicts(sandbox, *told)
    assert [verdict.reason for verdict in found] == list(told.values())
    assert found[1].detail == "AssertionError: wrong"
    assert found[2].detail == "ZeroDivisionError: division by zero"


def test_libraries_of_this_environment_can_be_imported(sandbox: Sandbox) -> None:
    text = "import numpy, dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\nassert numpy.ones(3).sum() == 3"
    assert reasons(sandbox, text) == ["passed"]


def test_endless_programs(short: Sandbox) -> None:
    forgetful = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    deaf = "import signal, time\nfor n in range(1, 32):\n    n in (9, 19) or signal.signal(n, signal.SIG_IGN)\n"
    ends = ["while True: pass", forgetful, "import time; time.sleep(60)", deaf + "time.sleep(60)"]
    assert reasons(short, *ends) == ["timeout"] * 4
    found = verdicts(Sandbox(replace(SHORT, wall=30)), forgetful)
    assert found == [Verdict("timeout", "more than 1 seconds of processor time")]


def test_memory_and_disk(sandbox: Sandbox) -> None:
    big = "file = open('big', 'wb')\nwhile True:\n    file.write(bytes(1 << 20)); file.flush()"
    many = "for n in range(99):\n    open(str(n), 'wb').write(bytes(1 << 20))"
    endless = (
        "print('x' * (1 << 16)); import sys\nfor _ in range(1000): print('y' * (1 << 16)); print('z', file=sys.stderr)"
    )
    assert reasons(sandbox, "x = bytearray(1 << 30)", "x = [0]\nwhile True: x += x", big, many, endless) == [
        *("memory", "memory", "disk", "disk"),
        "passed",  # what is printed goes nowhere
    ]


def test_fork_storm(sandbox: Sandbox, short: Sandbox) -> None:
    storm = "import os\nwhile True: os.fork()"
    threads = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    quiet = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert reasons(sandbox, storm, threads) == ["processes", "error"]
    # Storms are counted apart: a program beside one may still fork.
    some = "import os\nfor _ in range(8):\n    if os.fork() == 0: os._exit(0)\nfor _ in range(8): os.wait()"
    with ThreadPoolExecutor() as pool:
        storms = pool.submit(reasons, short, quiet, quiet)
        assert reasons(sandbox, some, some) == ["passed", "passed"]
        assert storms.result() == ["timeout", "timeout"]


def test_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        connect = "import socket\nsocket.create_connection(({!r}, {}), 1)"
        found = verdicts(sandbox, connect.format("127.0.0.1", port), connect.format("192.0.2.1", 80))
        with pytest.raises(TimeoutError):
            server.accept()
    assert [verdict.reason for verdict in found] == ["error", "error"]
    assert "refused" in found[0].detail and "unreachable" in found[1].detail


def test_a_program_may_talk_to_itself(sandbox: Sandbox) -> None:
    text = "import socket\ns = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(s.getsockname(), 1)"
    assert reasons(sandbox, text) == ["passed"]


def test_files_of_others(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir=Path.home()) as home, tempfile.TemporaryDirectory() as other:
        places = [Path(home) / "secret", Path(other) / "secret", tmp_path / "secret", Path(__file__)]
        for path in places[:-1]:
            path.write_text("secret")
            path.chmod(0o644)
            path.parent.chmod(0o755)
        monkeypatch.setenv("API_KEY", "secret")
        found = verdicts(sandbox, *(f"open({str(path)!r}).read()" for path in places))
        assert {verdict.detail.partition(":")[0] for verdict in found} <= {"FileNotFoundError", "PermissionError"}
        assert {verdict.reason for verdict in found} == {"error"}
        every = f"import os\nassert not any(map(os.path.exists, {[str(path) for path in places]}))"
        assert reasons(sandbox, every) == ["passed"]
    own = "import os\nassert 'API_KEY' not in os.environ and os.getcwd() == os.environ['HOME'] and not os.listdir('.')"
    writes = "import sys, os\nopen(os.path.join(sys.prefix, 'x'), 'w')"
    system = "open('/usr/x', 'w')"
    assert reasons(sandbox, own, writes, system) == ["passed", "error", "error"]


def test_rights(sandbox: Sandbox) -> None:
    rights = (
        "import os\nassert os.getuid() != 0\n"
        "told = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "assert told['CapEff'].strip() == told['CapPrm'].strip() == '0' * 16 and told['NoNewPrivs'].strip() == '1'"
    )
    assert reasons(sandbox, rights, "import os\nos.setuid(0)") == ["passed", "error"]


def test_killing(sandbox: Sandbox) -> None:
    assert os.getppid()  # this process is the parent's parent of all that follow, and is still there after them
    parent = "import os\nos.kill(os.getppid(), 9)\nassert False, 'still there'"
    every = "import os\nos.kill(-1, 9)\nassert False, 'still there'"
    group = "import os\nos.killpg(0, 9)"
    own = "import os\nos.kill(os.getpid(), 9)"
    named = f"import os\nos.kill({os.getpid()}, 9)\nassert False, 'still there'"
    found = verdicts(sandbox, parent, every, group, own, named)
    assert not any(verdict.passed for verdict in found)
    assert [verdict.reason for verdict in found[2:4]] == ["killed", "killed"]
    assert found[3].detail == "SIGKILL"
    assert found[4].detail == "ProcessLookupError: [Errno 3] No such process"
    assert reasons(sandbox, "pass") == ["passed"]


def test_ending_before_the_tests(sandbox: Sandbox) -> None:
    early = ["import os\nos._exit(0)", "raise SystemExit(0)", "exit()", "import sys\nsys.exit(0)"]
    copies = "import os\nif os.fork():\n    os._exit(0)"  # the copy goes on to the end of the tests
    talk = "import os\nfor n in range(64):\n    try: os.write(n, {!r})\n    except OSError: pass\nos._exit(0)"
    like = (b"passed", b"0" * 32 + b"passed", json.dumps({"reason": "passed"}).encode())
    said = [talk.format(text) for text in like]
    closed = "import os\nos.closerange(0, 999)\n"
    assert reasons(sandbox, *early, copies, *said, closed + "os._exit(0)") == ["exited_early"] * 9


def test_descendants_do_not_outlive(sandbox: Sandbox, short: Sandbox) -> None:
    mark = f"instdiff-{os.getpid()}-daemon"
    daemon = (
        "import os, time, ctypes\nif os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
        f"    ctypes.CDLL(None).prctl(15, {mark[:15].encode()!r})\n    time.sleep(60)\ntime.sleep(0.05)\n"
    )
    assert reasons(sandbox, daemon, daemon + "os._exit(0)") == ["outlived", "exited_early"]
    assert reasons(short, daemon + "time.sleep(60)") == ["timeout"]
    names = {path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm") if _there(path)}
    assert names and mark[:15] not in names


def _there(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False


def test_nothing_is_left_in_the_temporary_folder(
    short: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert reasons(short, "open('left', 'w').write('x')\nwhile True: pass") == ["timeout"]
    assert list(tmp_path.iterdir()) == []


def test_the_same_in_any_order(sandbox: Sandbox) -> None:
    programs = [f"assert hash('{n}') % 3 and {n} % 4" for n in range(6)]
    first = verdicts(sandbox, *programs)
    assert verdicts(sandbox, *reversed(programs)) == first[::-1]
    assert verdicts(Sandbox(SMALL, workers=1), *programs) == first
    assert {"passed", "failed"} == {verdict.reason for verdict in first}


def test_a_run_that_is_left_kills_its_programs(sandbox: Sandbox) -> None:
    running = Sandbox(Limits(cpu=60, wall=60), workers=2).run([Program("pass"), Program("import time; time.sleep(60)")])
    assert next(running) == (0, Verdict("passed"))
    running.close()  # it would wait a minute


def test_refused_where_it_cannot_be_made_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel that makes no namespaces."""
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER.read_text().replace('_call("unshare"', '_call("no_such_call"'))
    monkeypatch.setattr(module, "RUNNER", runner)
    with pytest.raises(EngineError, match=r"cannot be run safely here: no namespaces.*--unsafe"):
        Sandbox(SMALL).check()
    with pytest.raises(EngineError, match="the sandbox failed: no namespaces"):
        list(Sandbox(SMALL).run([Program("pass")]))
    unsafe = Sandbox(SMALL, workers=1, unsafe=True)
    lacking = unsafe.check()
    assert "the network can be reached" in lacking and "other processes can be seen and killed" in lacking
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n"
    told = ["pass", "assert 0", "import os; os._exit(0)", daemon]
    assert reasons(unsafe, *told) == ["passed", "failed", "exited_early", "outlived"]
    assert reasons(Sandbox(SHORT, unsafe=True), daemon + "while True: pass") == ["timeout"]


def test_only_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EngineError, match="on Linux alone, and this is darwin"):
        Sandbox(SMALL, workers=1).check()


def test_verdicts_are_kept(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "executions.jsonl"
    programs = [Program(text) for text in ("pass", "assert 0", "pass")]
    found = run_programs(programs, sandbox, path, Quiet())
    assert [verdict.reason for verdict in found] == ["passed", "failed", "passed"]
    assert len(path.read_text().splitlines()) == 2  # equal programs are one
    one = Program("1")
    with open(path, "a") as file:
        file.write('{"key": "torn')
    asked: list[Program] = []

    def run(some: list[Program]) -> Iterator[tuple[int, Verdict]]:
        asked.extend(some)
        yield from ((number, Verdict("passed")) for number in range(len(some)))

    monkeypatch.setattr(sandbox, "run", run)
    assert run_programs(programs, sandbox, path, Quiet()) == found and not asked
    assert [v.reason for v in run_programs([*programs, one], sandbox, path, Quiet())][-1] == "passed"
    assert asked == [one]
    assert run_programs([one], sandbox, path, Quiet()) == [Verdict("passed")] and asked == [one]
    run_programs([Program("pass")], Sandbox(Limits(cpu=2)), path, Quiet())  # other limits, another verdict
    lines = path.read_text().splitlines()
    assert len(lines) == 5 and lines[2] == '{"key": "torn'


# ── system calls ──────────────────────────────────────────────────────────────────────────────────────────────────────


NEEDLESS = {
    "a socket to the host of a virtual machine": "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    "a socket to the kernel's ciphers": "socket.socket(38, socket.SOCK_SEQPACKET)",
    "System V memory": "call('shmget', 0, 640 << 20, 0o1600)",
    "a file in memory": "os.memfd_create('x')",
    "POSIX message queues": "call('syscall', NUMBER['mq_open'], b'x', 0o102, 0o600, None)",
    "io_uring": "call('syscall', NUMBER['io_uring_setup'], 4, ctypes.create_string_buffer(120))",
    "userfaultfd": "call('syscall', NUMBER['userfaultfd'], 1)",
    "keys": "call('syscall', NUMBER['add_key'], b'user', b'name', b'value', 5, -4)",
    "keyrings": "call('syscall', NUMBER['keyctl'], 0, -4, 1)",
    "users of its own": "call('unshare', 0x10000000)",
    "users of its own for a copy": "call('syscall', NUMBER['clone'], 0x10000011, 0, 0, 0, 0) or os._exit(0)",
    "an eye on folders": "call('inotify_init1', 0)",
    "a call from after this list": "call('syscall', 463, 0, 0, 0)",
}
ASK = """
import ctypes, errno, os, socket
NUMBER = {numbers}
libc = ctypes.CDLL(None, use_errno=True)


def call(name, *given):
    if (found := getattr(libc, name)(*given)) < 0:
        raise OSError(ctypes.get_errno(), name)
    return found


try:
    {what}
except OSError as error:
    assert error.errno in ({refused}), error
else:
    raise AssertionError("it can be had")
"""


@pytest.mark.parametrize("what", NEEDLESS)
def test_system_calls_that_no_solution_needs_are_refused(sandbox: Sandbox, what: str) -> None:
    column = MACHINES[os.uname().machine][1]
    numbers = {name: both[column] for name, both in {**REFUSED, "clone": CLONE}.items()}
    refused = "errno.EAFNOSUPPORT" if "socket" in what else "errno.EPERM" if "copy" in what else "errno.ENOSYS"
    text = ASK.format(numbers=numbers, what=NEEDLESS[what], refused=refused + ",")
    assert verdicts(sandbox, text) == [Verdict("passed")]


WORKS = {
    "numpy": "import numpy\na = numpy.arange(250_000.0).reshape(500, 500)\nassert (a @ a).shape == (500, 500)",
    "a pool": "import multiprocessing as m\nwith m.Pool(2) as pool: assert pool.map(abs, [-1, -2]) == [1, 2]",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory\n"
    "s = SharedMemory(create=True, size=4096); s.buf[0] = 7; assert s.buf[0] == 7; s.close(); s.unlink()",
    "locks and queues": "import multiprocessing as m\nq, l, v = m.Queue(), m.Lock(), m.Value('i', 3)\n"
    "with l: q.put(v.value)\nassert q.get() == 3",
    "executors": "from concurrent.futures import ProcessPoolExecutor as P, ThreadPoolExecutor as T\n"
    "for kind in (P, T):\n    with kind(2) as pool: assert list(pool.map(abs, [-1])) == [1]",
    "commands": "import subprocess\nassert subprocess.run(['/bin/echo', 'x'], capture_output=True).stdout == b'x\\n'",
    "callbacks of C": "import ctypes\nf = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(abs)\nassert f(-3) == 3",
    "asyncio": "import asyncio\nasync def f(): return await asyncio.to_thread(abs, -1)\nassert asyncio.run(f()) == 1",
    "pairs of sockets": "import socket\na, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'",
    "names": "import socket\nassert socket.getaddrinfo('localhost', 80)[0][4][0] == '127.0.0.1'",
}


@pytest.mark.parametrize("what", WORKS)
def test_what_solutions_use_works_under_the_filter(what: str) -> None:
    limits = Limits(cpu=30, wall=90)
    assert verdicts(Sandbox(limits, workers=1), WORKS[what]) == [Verdict("passed")]


def answer_of(steps: bytes, machine: int, number: int, argument: int = 0) -> int:
    """What the kernel would do with a call: 0, or the error that it returns."""
    data, value, at = {0: number, 4: machine, 16: argument & 0xFFFFFFFF}, 0, 0
    program = list(struct.iter_unpack("=HBBI", steps))
    while True:
        code, then, other, operand = program[at]
        if code == 0x06:
            return operand & 0xFFFF if operand >> 16 == 5 else {0x7FFF0000: 0}[operand]
        if code == 0x20:
            value = data[operand]
        else:
            at += then if {0x15: value == operand, 0x35: value >= operand, 0x45: value & operand}[code] else other
        at += 1


@pytest.mark.parametrize(
    ("machine", "read", "shmget", "memfd_create", "keyctl", "clone", "socket_", "socketpair"),
    [("x86_64", 0, 29, 319, 250, 56, 41, 53), ("aarch64", 63, 194, 279, 219, 220, 198, 199)],
)
def test_the_filter_of_each_machine(
    machine: str, read: int, shmget: int, memfd_create: int, keyctl: int, clone: int, socket_: int, socketpair: int
) -> None:
    steps, word = call_filter(machine) or b"", MACHINES[machine][0]
    assert len(steps) % 8 == 0 and len(steps) // 8 < 4096
    assert answer_of(steps, word, read) == 0
    for number in (shmget, memfd_create, keyctl, 425, 435, NEWEST + 1, 0x40000000 | read):
        assert answer_of(steps, word, number) == errno.ENOSYS
    assert answer_of(steps, 0x40000003, read) == errno.ENOSYS  # a program of 32 bits
    for family in range(64):
        expected = 0 if family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK) else 97
        assert answer_of(steps, word, socket_, family) == answer_of(steps, word, socketpair, family) == expected
    assert answer_of(steps, word, clone, 0x01200011) == 0
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer_of(steps, word, clone, flag | 17) == errno.EPERM
    assert call_filter("riscv64") is None


def test_check_says_where_system_calls_cannot_be_filtered(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a kernel without seccomp, and on a machine whose calls are not known."""
    monkeypatch.setattr(module, "call_filter", lambda machine: None)
    with pytest.raises(EngineError, match=r"cannot be run safely here: system calls cannot be filtered \(.*--unsafe"):
        Sandbox(SMALL).check()
    monkeypatch.undo()
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER.read_text().replace("NO_NEW_PRIVS = 1, 4, 22,", "NO_NEW_PRIVS = 1, 4, 9999,"))
    monkeypatch.setattr(module, "RUNNER", runner)
    with pytest.raises(EngineError, match="cannot be run safely here: system calls cannot be filtered"):
        Sandbox(SMALL).check()
    with pytest.raises(EngineError, match="the sandbox failed: system calls cannot be filtered"):
        list(Sandbox(SMALL).run([Program("f = abs", "assert f(-1) == 1", "f")]))
    unsafe = Sandbox(SMALL, unsafe=True)
    assert {"system calls are not filtered", "memory beside the limit can be had"} <= set(unsafe.check())
    assert reasons(unsafe, "pass") == ["passed"]


def test_the_name_of_the_machine_is_hidden(sandbox: Sandbox) -> None:
    assert reasons(sandbox, "import socket\nassert socket.gethostname() == 'sandbox'") == ["passed"]
