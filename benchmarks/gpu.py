"""What a GPU does, in one short run: file to file, encoders, compiled networks, transfers, memory, training, NCCL.

    python benchmarks/gpu.py             # on a GPU, under ten minutes
    python benchmarks/gpu.py --small     # small networks and images, on a CPU, too; taken by itself without CUDA

Each row prints ours, its peer, the ratio (the peer's over ours, the median of the pairs) and a limit, in ms unless
said, as soon as it is measured. A row that fails prints its error, one that would begin after --minutes is left out:
on a busy CPU the last two, which compile for some minutes (`--only compiled graph`).

- file: a CT-like volume (512x512x100) through a UNETR of 14 classes to a label file, warm, all that `vit3d predict`
  does for a case, against MONAI's components with the same weights in float32; the limit is the stage "network". Peak
  is the memory that a run adds on the device (on a CPU: to the process; Linux), in MiB.
- compiled: ours with `--backend compile` against ours with `--backend torch`, both in bfloat16.
- encoder: a ViT-B in bfloat16 at 4,096 and 13,824 tokens against MONAI's ViT of the same weights, and compiled. The
  limit is its operations at the rate of a square matrix product in bfloat16; the goal is half of that rate.
- graph: the UNETR, one window, by torch.compile(mode="reduce-overhead"), CUDA graphs, against the plain call;
  the limit is the plain call's kernels alone, their sum by torch.profiler (on a CPU: its operators).
- pinned: the volume to the device from pinned memory against pageable memory; the limit is a copy on the device.
- training: benchmarks/training_step.py's UNETR, its own table, in seconds.
- leave: processes that train by DistributedDataParallel and end by `leave_process_group`, seconds, against
  `destroy_process_group` alone; NCCL with a process for each GPU, Gloo with two on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import reading
import torch
from in_turn import added_bytes, timed
from made_up_bundle import WINDOW, segmenter, shrink
from monai.networks.nets import ViT
from network import Tokens
from torch import Tensor
from volume_runs import Case, by_monai, cases, ours

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.pipeline.acceleration import accelerate
from monai_vit3d.weights.convert import from_monai_vit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRAINING = """
import sys, torch, torch.distributed as dist
from monai_vit3d.handlers import leave_process_group
from monai_vit3d.handlers.processes import join_process_group
join_process_group()
gpu = torch.cuda.is_available()
if gpu:
    torch.cuda.set_device(dist.get_rank())
network = torch.nn.Linear(512, 512).to("cuda" if gpu else "cpu")
network = torch.nn.parallel.DistributedDataParallel(network)
for _ in range(5):
    network(torch.ones(64, 512, device="cuda" if gpu else "cpu")).square().mean().backward()
leave_process_group() if sys.argv[1] == "ours" else dist.destroy_process_group()
"""


def show(title: str, times: Mapping[str, list[float]], limit: float, unit: float = 1000) -> None:
    """A line: medians of "ours" and "peer", the median ratio of each pair, and the limit."""
    mine, theirs = (statistics.median(times[name]) * unit for name in ("ours", "peer"))
    ratio = statistics.median(p / o for o, p in zip(times["ours"], times["peer"]))
    print(f"{title:>36s} {mine:10.2f} {theirs:10.2f} {ratio:7.2f} {limit * unit:10.2f}", flush=True)


def peak_mib(call: Callable[[], object]) -> float:
    """What a call adds at its peak."""
    if DEVICE == "cpu":
        return added_bytes(call) / 2**20
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - start) / 2**20


def file_to_file(folder: Path, small: bool, rounds: int) -> None:
    """Ours in float32, bfloat16 and compiled, in turn with MONAI's; then the peaks."""
    case: Case = next(cases(folder, False, "unetr"))
    kinds = {"file, float32": ("torch", False), "file, bfloat16": ("torch", True)}
    bundles = {
        name: accelerate(load_bundle(case.bundle, DEVICE), backend, bf16) for name, (backend, bf16) in kinds.items()
    }
    calls = {name: partial(ours, bundle, [case.image], folder / name) for name, bundle in bundles.items()}
    run, _ = by_monai(case.peer, case.image, folder / "peer", DEVICE)
    times = timed({**calls, "peer": run}, rounds)
    theirs = peak_mib(run)
    for name, call in calls.items():
        records: list[list[dict]] = []
        mine = peak_mib(partial(_append, records, call))
        show(name, {"ours": times[name], "peer": times["peer"]}, records[0][0]["stages"]["network"])
        print(f"{name + ', peak MiB':>36s} {mine:10.0f} {theirs:10.0f} {theirs / max(mine, 1):7.2f}", flush=True)


def _append(found: list, call: Callable[[], object]) -> None:
    found.append(call())


def compiled_files(folder: Path, small: bool, rounds: int) -> None:
    """`--backend compile` against the plain network, both ours, in bfloat16."""
    case = next(cases(folder / "compiled", False, "unetr"))
    plain, fast = (accelerate(load_bundle(case.bundle, DEVICE), backend, True) for backend in ("torch", "compile"))
    calls = {"ours": partial(ours, fast, [case.image], folder / "fast")}
    calls["peer"] = partial(ours, plain, [case.image], folder / "plain")
    times = timed(calls, rounds)
    show("file, --backend compile / torch", times, calls["ours"]()[0]["stages"]["network"])


def bfloat16_rate(side: int) -> float:
    """Floating-point operations a second of a square product."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / min(timed({"it": lambda: a @ b}, 20, warm=3)["it"])


def in_bfloat16(network: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """A forward under autocast."""
    with torch.autocast(DEVICE, torch.bfloat16):
        found = network(x)
    return found[0] if isinstance(found, tuple) else found


@torch.inference_mode()
def encoder(folder: Path, small: bool, rounds: int) -> None:
    """Plain and compiled, against MONAI's."""
    rate = bfloat16_rate(1024 if small else 8192)
    print(f"{'bfloat16 product':>36s} {rate / 1e12:10.3f} TFLOP/s")
    for side in (64, 96) if small else (256, 384):
        width, depth, tokens = (96, 1, (side // 16) ** 3) if small else (768, 12, (side // 16) ** 3)
        theirs = ViT(
            1,
            (side,) * 3,
            (16,) * 3,
            hidden_size=width,
            mlp_dim=4 * width,
            num_layers=depth,
            num_heads=width // 32 if small else 12,
            proj_type="conv",
            qkv_bias=True,
        ).eval()
        backbone = from_monai_vit(theirs, (side,) * 3).eval().to(DEVICE)
        x = torch.randn(1, 1, side, side, side, device=DEVICE)
        work = depth * (24 * tokens * width**2 + 4 * tokens**2 * width) + 2 * tokens * 16**3 * width
        peer = partial(in_bfloat16, theirs.to(DEVICE), x)
        for name, network in (("", Tokens(backbone)), (", compiled", torch.compile(Tokens(backbone)))):
            times = timed({"ours": partial(in_bfloat16, network, x), "peer": peer}, rounds, warm=2)
            show(f"encoder, {tokens} tokens{name}", times, work / rate)
            reached = work / statistics.median(times["ours"]) / rate
            print(f"{'of the rate of a product':>36s} {reached:10.1%}   goal 50%", flush=True)


@torch.inference_mode()
def graph(folder: Path, small: bool, rounds: int) -> None:
    """One window by CUDA graphs."""
    network, x = segmenter().to(DEVICE), torch.randn(1, 1, *WINDOW, device=DEVICE)
    fast = torch.compile(network, mode="reduce-overhead")
    calls = {"ours": partial(in_bfloat16, fast, x), "peer": partial(in_bfloat16, network, x)}
    times = timed(calls, max(rounds, 10), warm=3)
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if DEVICE == "cuda" else activity.CPU]) as profile:
        calls["peer"]()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    kernels = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    spent = sum(getattr(event, kernels) for event in profile.key_averages()) / 1e6
    show("graph, one window, bfloat16", times, spent)


def pinned(folder: Path, small: bool, rounds: int) -> None:
    """A volume to the device."""
    if DEVICE == "cpu":
        print(f"{'pinned':>36s} needs CUDA")
        return
    x = torch.zeros(1, 1, 512, 512, 100)
    fast, out = x.pin_memory(), torch.empty_like(x, device=DEVICE)
    moves = {"ours": lambda: fast.to(DEVICE, non_blocking=True), "peer": lambda: x.to(DEVICE)}
    times = timed({**moves, "copy": lambda: out.copy_(out.flip(0))}, max(rounds, 10))
    show("pinned, 100 MiB to the device", times, statistics.median(times["copy"]))


def training(folder: Path, small: bool, rounds: int) -> None:
    """The table of another file."""
    script = Path(__file__).with_name("training_step.py")
    words = [sys.executable, "-W", "ignore", str(script), "--only", "unetr", "--child", "--rounds", str(rounds)]
    words += ["--threads", str(torch.get_num_threads())] + ["--small"] * small
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    print(done.stdout.rstrip(), flush=True)


def leave(folder: Path, small: bool, rounds: int) -> None:
    """Processes that end, all with exit code 0."""
    script = folder / "leave.py"
    script.write_text(TRAINING)
    processes = torch.cuda.device_count() if DEVICE == "cuda" else 2
    words = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    words += [f"--nproc_per_node={processes}", str(script)]
    failed = {"ours": 0, "peer": 0}

    def start(name: str) -> None:
        done = subprocess.run([*words, name], capture_output=True, text=True, timeout=90)
        failed[name] += done.returncode != 0
        if name == "ours" and done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])

    times = timed({name: partial(start, name) for name in failed}, 1, warm=0)
    show(f"leave, {processes} processes, s", times, 0, unit=1)
    print(f"{'runs that failed':>36s} {failed['ours']:10d} {failed['peer']:10d}", flush=True)


ROWS: dict[str, Callable[[Path, bool, int], None]] = {
    "file": file_to_file,
    "encoder": encoder,
    "pinned": pinned,
    "training": training,
    "leave": leave,
    "compiled": compiled_files,
    "graph": graph,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", default=DEVICE == "cpu")
    parser.add_argument("--rounds", type=int, default=None, help="3, or 1 with --small")
    parser.add_argument("--minutes", type=float, default=None, help="no row begins later; 9, or 2 with --small")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()
    if args.small:
        shrink()
        reading.SHAPE = (60, 60, 30)
    args.minutes = args.minutes or (2 if args.small else 9)
    rounds, start = args.rounds or (1 if args.small else 3), time.perf_counter()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {name}{', small' * args.small}")
    print(f"{'':>36s} {'ours':>10s} {'peer':>10s} {'ratio':>7s} {'limit':>10s}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in args.only:
            if time.perf_counter() - start > 60 * args.minutes:
                print(f"{row:>36s} left out: {args.minutes:g} minutes are over", flush=True)
                continue
            began = time.perf_counter()
            try:
                ROWS[row](Path(folder), args.small, rounds)
            except Exception as error:  # a session on a GPU is short: the others go on
                print(f"{row:>36s} {type(error).__name__}: {str(error).strip().splitlines()[:1]}", flush=True)
            print(f"{row:>36s} {time.perf_counter() - began:10.1f} s in all", flush=True)


if __name__ == "__main__":
    main()
