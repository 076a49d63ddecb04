"""What benchmarks share: calls timed in turn, peaks of memory, and a child process for each setting of the allocator.

A large block that is freed goes back to the kernel, and its pages are faulted in anew when the next one is asked for:
4 KiB at a time, or 2 MiB if PyTorch asks for huge pages, which `vit3d` lets it do. The setting has to stand in the
environment before PyTorch's first tensor. It is Linux's; elsewhere it does nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ALLOCATORS: dict[str, dict[str, str]] = {
    "small pages, as PyTorch is": {"THP_MEM_ALLOC_ENABLE": "0"},
    "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},
}


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """That of a benchmark: rounds, threads, and the mark of a child."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def with_each_allocator() -> None:
    """Run the calling script again, as a child, with each setting."""
    for name, env in ALLOCATORS.items():
        print(f"\n{name}", flush=True)
        command = [sys.executable, "-W", "ignore", *sys.argv, "--child"]
        subprocess.run(command, env={**os.environ, **env}, check=True)


def kernel_bytes(name: str) -> int:
    """A line of /proc/self/status, such as VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def new_peak() -> int:
    """Let the peak of this process' memory, VmHWM, start anew (Linux); the bytes that it holds now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return kernel_bytes("VmRSS")


def added_bytes(call: Callable[[], object]) -> int:
    """By how much a call raises this process' memory at its peak."""
    start = new_peak()
    call()
    return kernel_bytes("VmHWM") - start


def timed(calls: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each call, a GPU's work within, all of them in turn, after so many rounds that warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + warm):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            _wait_for_gpu()
            if round_ >= warm:
                times[name].append(time.perf_counter() - start)
    return times


def _wait_for_gpu() -> None:
    torch = sys.modules.get("torch")  # who has not imported it, as startup.py, has no work there
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def show(title: str, times: Mapping[str, list[float]], ours: str, peer: str, limit: str) -> None:
    """One line: medians in ms, and medians of the ratios of each pair."""
    mine, theirs, least = (statistics.median(times[name]) * 1000 for name in (ours, peer, limit))
    ratio = statistics.median(p / o for p, o in zip(times[peer], times[ours]))
    near = statistics.median(o / n for o, n in zip(times[ours], times[limit]))
    print(f"{title:>44s} {mine:8.1f} {theirs:8.1f} {ratio:7.2f} {least:8.1f} {near:10.1f}", flush=True)


def head(title: str, limit: str) -> None:
    """The line above."""
    print(f"{title:>44s} {'ours':>8s} {'MONAI':>8s} {'ratio':>7s} {'limit':>8s} {'ours/limit':>10s}   ({limit})")
