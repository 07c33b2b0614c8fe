"""What this machine can multiply: the yardstick for estimates and benchmarks."""

from __future__ import annotations

import time

import torch


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2, size: int = 1024) -> float:
    """Floating-point operations per second of a square matrix product, the best of repeated runs."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    best, spent = 0.0, 0.0
    with torch.inference_mode():
        a @ b
        while spent < seconds:
            start = time.perf_counter()
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            took = time.perf_counter() - start
            best, spent = max(best, 2 * size**3 / took), spent + took
    return best
