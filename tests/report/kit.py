"""Score files made by hand, and a browser to look at their pages."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.config.methods import make_method
from instdiff.core import Scored
from instdiff.data import Pool, load
from instdiff.scoring.table import ScoreTable
from instdiff.selection.selector import select

HOSTILE = {
    "instruction": "<script>document.title='owned'</script><img src=x onerror=document.title='owned'> \u202efdp.exe",
    "input": "</script></td></table><a href='https://example.org'>a</a>\u2028",
    "output": '"><style>*{display:none}</style> &amp; {{ 7 * 7 }} \u2066x\u2069 \u0007 --><!--',
    "source": "<b>bold</b>",
}
SOURCES = ("math", "code", "chat", "<b>bold</b>")


def write_rows(path: Path, count: int, hostile: int = 3) -> Pool:
    """Rows of four sources, the first of them hostile."""
    rng = np.random.default_rng(1)
    words = np.array(
        ["sun", "moon", "tree", "river", "seven", "stone", "blue", "walk", "sing", "north", "glass", "bread"]
    )
    with open(path, "w", encoding="utf-8") as file:
        for row in range(count):
            said = words[rng.integers(0, len(words), 3 + row % 9)]
            own = {"instruction": f"{' '.join(said)} {row}", "output": " ".join(said[::-1]), "source": SOURCES[row % 4]}
            file.write(json.dumps({**HOSTILE, "id": row} if row < hostile else own, ensure_ascii=False) + "\n")
    return load(str(path))


def make_table(count: int, ids: list[str], origin: str = "rows.jsonl", pool: Pool | None = None) -> ScoreTable:
    """Scores by instructdiff (with a band), longest and random, that every test can compute again."""
    rng = np.random.default_rng(2)
    n_tokens = np.arange(count) % 97 + 3
    x, y = rng.normal(1, 0.5, count), rng.normal(0, 0.3, count)
    out = np.argsort(x)[: count // 10], np.argsort(x)[-(count // 10) :]
    reason = np.full(count, None, object)
    reason[np.concatenate(out)] = "filtered"
    value = np.where(reason == None, -y, np.nan)  # noqa: E711 - elementwise
    none = np.full(count, None, object)

    def scored(name: str, value: Any, reason: Any, **details: Any) -> Scored:
        return Scored(name, make_method(name, {}, 0), value, reason, details, ids, n_tokens)

    methods = {
        "instructdiff": scored("instructdiff", value, reason, diff_nll=x, diff_entropy=y),
        "longest": scored("longest", n_tokens.astype(float), none, length=n_tokens.astype(float)),
        "random": scored("random", rng.random(count), none),
    }
    meta = {
        "instdiff": "0",
        "data": {"origin": origin, "fingerprint": pool.fingerprint if pool else "f", "rows": count},
        "methods": {name: {"spec": name, "params": s.method.params()} for name, s in methods.items()},
        "models": {},
        "settings": {"targets": "all"},
        "store": str(Path(origin).parent / "no-store"),
    }
    rows = np.arange(count) if pool is None else pool.rows
    return ScoreTable(rows, ids, n_tokens, np.zeros(count, bool), methods, meta)


def make_scores(folder: Path, count: int = 200, *, selected: bool = True, hostile: int = 3) -> ScoreTable:
    """``rows.jsonl``, ``scores.parquet`` and ``selection.json`` in a folder."""
    pool = write_rows(folder / "rows.jsonl", count, hostile)
    table = make_table(count, pool.ids, str(folder / "rows.jsonl"), pool)
    table.write(folder / "scores.parquet")
    if selected:
        select(pool, table["instructdiff"], "20%", meta=table.meta).write_record(folder / "selection.json")
    return table


def payload(page: Path, name: str = "figures") -> Any:
    """What a page carries."""
    found = re.search(rf'id="payload-{name}">([^<]*)</script>', page.read_text(encoding="utf-8"))
    assert found
    raw = gzip.decompress(base64.b64decode(found[1]))
    return json.loads(raw) if name == "figures" else raw


def column(page: Path, ref: dict[str, int]) -> np.ndarray[Any, Any]:
    """An array of a page, as its script reads it."""
    kind, start, count = payload(page)["arrays"][ref["$"]]
    planes = np.frombuffer(payload(page, "arrays"), np.uint8)[start : start + 4 * count].reshape(4, count)
    raw = np.ascontiguousarray(planes.T).view("<f4" if kind == "f" else "<i4").ravel()
    values = raw if kind == "f" else np.cumsum(raw)
    return values[column(page, {"$": ref["at"]})] if "at" in ref else values


class Chromium:
    """A headless one, which starts with the first page and stays for the pages after it."""

    def __init__(self) -> None:
        self._browser: Any = None
        self._open = ExitStack()

    def browser(self) -> Any:
        if self._browser is None:
            chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
            if chromium is None:
                pytest.skip("no Chromium is installed")
            api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
            play = self._open.enter_context(api.sync_playwright())
            self._browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            self._open.callback(self._browser.close)
        return self._browser

    def close(self) -> None:
        self._browser = None
        self._open.close()


CHROMIUM = Chromium()
"""That of a file of tests, whose end closes it: see ``conftest.py``."""


@contextmanager
def opened(
    page: Path,
    scheme: str = "light",
    scripts: bool = True,
    ready: str = "html[data-ready]",
    complaints: int = 0,
    width: int = 1360,
    at: str = "",
) -> Iterator[Any]:
    """The page in headless Chromium, with its scripts or without; it may ask for nothing and complain of nothing.

    ``at`` is the part of the address after the file.
    """
    size = {"width": width, "height": 900}
    tab = CHROMIUM.browser().new_page(viewport=size, color_scheme=scheme, java_script_enabled=scripts)
    try:
        said: list[str] = []
        tab.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on(
            "request",
            lambda ask: said.append(ask.url) if not ask.url.startswith(("file:", "data:", "blob:")) else None,
        )
        tab.goto(page.resolve().as_uri() + at)
        if scripts:
            tab.wait_for_selector(ready, timeout=120_000)
        yield tab
        if complaints:
            tab.wait_for_timeout(500)
        assert len(said) == complaints, said
    finally:
        tab.close()
