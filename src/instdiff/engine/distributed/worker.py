"""One of several processes that score: ``python -m instdiff.engine.distributed.worker FD DEVICE DTYPE``.

It says ``None`` when it is ready; then tasks come in, and batches, log lines and errors go out. It ends with the
process that started it.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instdiff.core import Log, Measure
    from instdiff.engine.models import Resident
    from instdiff.engine.sources import Source
    from instdiff.engine.sweep import BatchResult, Sweep
    from instdiff.rendering.rows import Rows


def main(fd: str, device: str, dtype: str) -> None:
    """Serve until the pipe is closed."""
    # Before anything that takes seconds to import, so that no worker outlives its parent even then.
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(Connection(int(fd)), device, dtype)


class Serving:
    """What a worker keeps from one run of rows to the next: the model, and the sweep that has found its batch size."""

    def __init__(self, resident: Resident) -> None:
        self.resident = resident
        self._sweep: Sweep | None = None
        self._of: tuple[Source, int | None] | None = None

    def sweep(
        self, source: Source, rows: Rows, measures: tuple[Measure, ...], log: Log, batch_tokens: int | None = None
    ) -> Iterator[BatchResult]:
        """Values of rows under a model, batch by batch."""
        from instdiff.engine.sweep import Sweep

        if self._of != (source, batch_tokens):
            self._sweep = None  # it holds the old model, for which there may be no room beside the new one
            self._of = source, batch_tokens
        with self.resident.use(source) as model:
            self._sweep = self._sweep or Sweep(model, log, batch_tokens)
            yield from self._sweep(rows, measures)


def _serve(pipe: Any, device: str, dtype: str) -> None:
    import torch

    from instdiff.engine.models import DTYPES, Resident
    from instdiff.errors import InstDiffError

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    serving = Serving(Resident(torch.device(device), DTYPES[dtype]))
    pipe.send(None)
    while True:
        task, rows = pipe.recv()
        try:
            for swept in serving.sweep(task.source, rows, task.measures, pipe.send, task.batch_tokens):
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
