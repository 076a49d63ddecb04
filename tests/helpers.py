"""Shared by the tests of all rooms: paths, seeded tensors, phantoms, and other Python processes."""

from __future__ import annotations

import atexit
import gc
import itertools
import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = ROOT / "bundles"
HIPPOCAMPUS = BUNDLES / "hippocampus_segmentation"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# seconds after which a process is taken to hang: some twenty times what the slowest takes on an idle machine
HANG = 1200


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Draw a standard normal tensor; float64, so that comparisons can be exact."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def phantom(seed, shape=(34, 44, 30)):
    """A noisy ellipsoid, its front half brighter; image int16 and label uint8 on a rotated, flipped grid."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    centre = rng.uniform(-0.1, 0.1, size=(3, 1, 1, 1))
    inside = (((grid - centre) / np.array([0.4, 0.6, 0.4]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 1
    label = inside.astype(np.uint8) + (inside & (grid[1] < centre[1]))
    image = (200 * label + 100 + 15 * rng.standard_normal(shape)).astype(np.int16)
    angle = rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.1, 1.0, 0.9])  # the first axis runs from left to right: not RAS
    affine[:3, 3] = rng.uniform(-30, 30, size=3)
    return nib.Nifti1Image(image, affine), nib.Nifti1Image(label, affine)


def kernel_bytes(name: str) -> int:
    """Read a line of /proc/self/status, such as VmRSS, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def new_peak() -> int:
    """Start the peak of this process' memory, VmHWM, anew; the bytes that it holds now.

    ``getrusage`` would not do: what it calls the peak is inherited from the process that started this one.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return kernel_bytes("VmRSS")


def start_python(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start another Python in the repository's root, one thread a process, its output as text through pipes."""
    env = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT} | options
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=env, **pipes)


def run_python(*arguments: str | Path, timeout: float = HANG, **options: Any) -> tuple[int, str, str]:
    """Run another Python to its end (it is killed when it hangs); its exit code, output and errors."""
    with start_python(*arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, out, err


# Importing torch and MONAI takes longer than most commands: one process does it, and is forked for each command.
_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(["torch", "monai.bundle", "ignite.engine", "monai_vit3d.cli", "monai_vit3d.networks"])


def _run_as_main(words: Sequence[str], folder: str, environment: dict[str, str], output: str) -> None:
    """Do what ``python -W ignore WORDS`` does, its output into a file."""
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    try:
        if words[0] == "-m":
            sys.argv, sys.path[:0] = list(words[1:]), [folder]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv, sys.path[:0] = ["-c", *words[2:]], [folder]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[:0] = list(words), [str(Path(words[0]).parent)]
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # a fork ends without them


def run_warm(
    *words: str | Path, folder: Path = ROOT, processes: int = 1, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Do what ``python WORDS`` or torchrun does, but in a fork of a process that has imported torch and MONAI.

    Args:
        words: ``-m`` and a module, ``-c`` and code, or a script; and its arguments.
        folder: the current folder of the processes.
        processes: how many; 2 and more find each other by torchrun's environment variables.
        env: further environment variables.

    Returns:
        exit code (of the first process that failed, if any) and the output of all processes, errors included.
    """
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), **(env or {})}
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [Path(scratch) / str(rank) for rank in range(processes)]
        started = []
        for rank, output in enumerate(outputs):
            own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
            started.append(_WARM.Process(target=_run_as_main, args=([*map(str, words)], str(folder), own, str(output))))
            started[-1].start()
        end = time.monotonic() + HANG
        while any(one.is_alive() for one in started):  # as under torchrun, one that fails takes the others along
            if time.monotonic() > end or any(one.exitcode for one in started):
                for one in started:
                    one.kill()
            multiprocessing.connection.wait([one.sentinel for one in started if one.is_alive()], timeout=1)
        # a process that was killed for another's sake has a negative code
        code = max(one.exitcode for one in started) or min(one.exitcode for one in started)
        return code, "".join(output.read_text(errors="replace") for output in outputs if output.exists())


def run_processes(function: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Call ``function(rank, *arguments)`` in forks of the process of :func:`run_warm`; raise what one raises."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=count, start_method="forkserver")


def pairwise(*axes: Collection[Any]) -> list[tuple[Any, ...]]:
    """Choose few rows of the axes' product in which each value of an axis meets each value of every other axis."""
    positions = list(itertools.combinations(range(len(axes)), 2))
    rows = itertools.product(*(range(len(axis)) for axis in axes))
    pairs = {row: {(i, j, row[i], row[j]) for i, j in positions} for row in rows}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(pairs, key=lambda row: len(pairs[row] & missing)))
        missing -= pairs[chosen[-1]]
    values = [list(axis) for axis in axes]
    return [tuple(value[i] for value, i in zip(values, row)) for row in sorted(chosen)]


def side_by_side(*axes: Collection[Any]) -> list[tuple[Any, ...]]:
    """Choose as many rows as the longest axis has values: each value of each axis occurs, shorter ones again."""
    return [tuple(list(axis)[i % len(axis)] for axis in axes) for i in range(max(map(len, axes)))]
