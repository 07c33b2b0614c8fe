"""One of several processes that score: ``python -m instdiff.engine.distributed.worker FD DEVICE DTYPE``.

It says ``None`` when it is ready; then tasks come in, and batches, log lines and errors go out. It ends with the
process that started it.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any


def main(fd: str, device: str, dtype: str) -> None:
    """Serve until the pipe is closed."""
    # Before anything that takes seconds to import, so that no worker outlives its parent even then.
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(Connection(int(fd)), device, dtype)


def _serve(pipe: Any, device: str, dtype: str) -> None:
    import torch

    from instdiff.engine.models import DTYPES, Resident
    from instdiff.engine.sweep import Sweep
    from instdiff.errors import InstDiffError

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    resident = Resident(torch.device(device), DTYPES[dtype])
    sweep: Sweep | None = None
    mine: Any = None
    pipe.send(None)
    while True:
        task, rows = pipe.recv()
        try:
            if mine != (task.source, task.batch_tokens):
                sweep = None  # it holds the old model, for which there may be no room beside the new one
                mine = task.source, task.batch_tokens
            with resident.use(task.source) as model:
                sweep = sweep or Sweep(model, pipe.send, task.batch_tokens)
                for swept in sweep(rows, task.measures):
                    pipe.send(swept)
        except InstDiffError as error:
            pipe.send(error)
        except Exception:  # noqa: BLE001 - it is a bug, which the parent shows
            pipe.send(RuntimeError(f"a worker process failed:\n{traceback.format_exc()}"))


def _leave_with_parent() -> None:
    """The parent never writes to the input of a worker; it ends when the parent does, whatever ended it."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
