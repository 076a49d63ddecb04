"""Peak memory of a step of our I-JEPA against one that encodes all tokens, and against nidl's.

    python benchmarks/pretraining_memory.py --widths 192 384

Who takes part, and what a step is, pretraining_step.py says. The figure is the peak of a model's first step, above what
its process, one for each, holds before it: the model and its volumes. So gradients, activations and the moving
average's temporary tensors are in it. It is the CUDA allocator's, or without CUDA the kernel's (VmHWM; Linux), with a
malloc that gives blocks back as they are freed: else the step uses again what the building of the model has left.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys

import torch
from in_turn import added_bytes
from pretraining_step import CASES, DEVICE, Sizes, contender, known_names, print_head, print_line, step


def peak_bytes(name: str, sizes: Sizes, batch: int) -> int:
    """Of the first step, above what is held before it."""
    step(contender(name, Sizes(48, 1, 3, 1), batch))  # what the libraries take once
    of = contender(name, sizes, batch)
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        step(of)
        return torch.cuda.max_memory_allocated() - start
    return added_bytes(lambda: step(of))


def in_own_process(name: str, sizes: Sizes, batch: int) -> float:
    """What :func:`peak_bytes` returns there, in MiB."""
    command = [sys.executable, "-W", "ignore", __file__, "--point", json.dumps([name, sizes, batch])]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return int(out.stdout.splitlines()[-1]) / 2**20


def main() -> None:
    """Print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 384, 768])
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        name, sizes, batch = args.point
        print(peak_bytes(name, Sizes(*sizes), batch))
        return
    names = known_names()
    print_head(names, args.batch)
    for case in (case for case in CASES if case.width in args.widths):
        print_line(case, "step, MiB", [[in_own_process(name, case, args.batch) for name in names]])


if __name__ == "__main__":
    main()
