"""Tables of the committed benchmark results, for docs/performance.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"

Record = dict[str, Any]


MACHINES = {"2-cores": "AVX-512", "2-cores-avx2": "AVX2"}
"""How the files of a machine end, and what the tables call it."""


def records(name: str) -> list[Record]:
    """What a benchmark wrote on the machines that the documents speak of; ``on`` says which."""
    found: list[Record] = []
    for machine, shown in MACHINES.items():
        file = RESULTS / f"{name}-{machine}.json"
        if file.is_file():
            found += [{**record, "on": shown} for record in json.loads(file.read_text(encoding="utf-8"))]
    return found


def table(rows: list[Record], columns: dict[str, str]) -> str:
    """Chosen fields under headings; a field that a record lacks is a dash."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_shown(row.get(field)) for field in columns) + " |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def scoring() -> str:
    return table(
        records("scoring"),
        {
            "on": "cores", "shape": "shape", "dtype": "dtype", "ours_rows_per_s": "rows/s", "tokens_per_s": "tokens/s",
            "ratio_reference": "against a loop, same dtype", "ratio_published": "against the published loop",
            "ratio_batched": "against padded batches, full logits", "share_of_peak": "share of the peak",
            "matmul_gflops": "peak, GFLOP/s", "tokens_saved": "tokens saved", "peak_memory_mb": "memory, MB",
        },
    )  # fmt: skip


def training() -> str:
    return table(
        records("training"),
        {
            "shape": "model", "mode": "mode", "dtype": "dtype", "ours_tokens_per_s": "ours, tokens/s",
            "ratio_trl_packed": "against TRL, packed", "ratio_trl_padded": "against TRL, padded",
            "ratio_plain_loop": "against a plain loop", "share_of_peak": "share of the peak",
            "matmul_gflops": "peak, GFLOP/s", "loss_difference": "largest difference of a loss",
        },
    )  # fmt: skip


def models() -> str:
    return table(
        records("scoring-models"),
        {
            "model": "model", "data": "rows of", "dtype": "dtype", "rows": "rows", "tokens": "tokens",
            "ratio_loop": "against a loop", "ratio_hflm": "against HFLM, the faster of batch 1 and 8",
            "share_of_peak": "share of the peak", "matmul_gflops": "peak, GFLOP/s",
            "fp32_difference": "difference in fp32",
        },
    )  # fmt: skip


def methods() -> str:
    return table(
        records("methods"),
        {
            "what": "method", "on": "cores", "rows": "rows", "options": "not default",
            "seconds": "seconds", "cpu_s": "CPU s", "peak_memory_mb": "memory of the largest process, MB",
        },
    )  # fmt: skip


def memory() -> str:
    return table(
        records("memory"),
        {
            "head": "head", "vocabulary": "vocabulary", "length": "length", "rows": "rows",
            "ours_peak_mb": "ours, MB", "full_peak_mb": "full logits, MB", "ratio_memory": "ratio",
            "most_difference": "largest relative difference", "ratio_speed": "speed against full logits",
        },
    )  # fmt: skip


def sharing() -> str:
    rows = [row for row in records("sharing") if row["kind"] == "methods"]
    for row in rows:
        row["count"] = len(row["methods"])
    return table(
        rows,
        {
            "count": "methods", "alone_passes": "passes alone", "together_passes": "together",
            "alone_counted_tokens": "tokens alone", "together_counted_tokens": "together",
            "ratio_counted_tokens": "together / alone", "alone_counted_loads": "model loads alone",
            "together_counted_loads": "together",
        },
    )  # fmt: skip


def growth() -> str:
    return table(
        records("growth"),
        {
            "kind": "grows", "rows": "rows", "vocabulary": "vocabulary", "length": "length", "cpu_s": "CPU s",
            "cpu_s_growth": "growth of CPU s", "forwards": "forwards", "forwards_growth": "growth of forwards",
            "process_mb": "process, MB", "peak_memory_mb": "added, MB", "in_use_mb": "in use, MB",
            "rerun_forwards": "rerun forwards",
            "added_share": "tokens for 1 % more",
        },
    )  # fmt: skip


def store() -> str:
    return table(
        [row for row in records("store") if row["what"] != "quantile"],
        {
            "rows": "rows", "signals": "signals", "values_per_row": "values/row", "append_rows_per_s": "append, rows/s",
            "missing_rows_per_s": "missing, rows/s", "read_rows_per_s": "read, rows/s", "bytes_per_row": "bytes/row",
            "rewrites_per_row": "rewrites", "pieces": "pieces", "anonymous_mb": "memory, MB",
        },
    )  # fmt: skip


def million() -> str:
    return table(
        [row for row in records("million") if row["what"] == "model"],
        {
            "rows": "rows", "workers": "processes that score", "wall_s": "seconds", "cpu_s": "CPU s",
            "worker_rows_per_s": "rows/s of each", "ratio_worker": "against one process",
            "peak_memory_mb": "memory of the driver, MB", "store_bytes_per_row": "bytes/row beside values",
        },
    )  # fmt: skip


def cluster_cost() -> str:
    columns = {"rows": "rows", "predicted_s": "predicted s", "measured_s": "measured s", "ratio_s": "ratio"}
    return table(records("cluster_cost"), {**columns, "ratio_tokens": "tokens, ratio"})


TABLES = {
    "million": million,
    "cluster_cost": cluster_cost,
    "scoring": scoring,
    "training": training,
    "models": models,
    "methods": methods,
    "memory": memory,
    "sharing": sharing,
    "growth": growth,
    "store": store,
}
