"""What each decoder costs beside UNETR's, and what it is worth on the hippocampus.

    python benchmarks/decoders.py                  # cost: GMAC, time, added memory, in two settings
    python benchmarks/decoders.py --train DATA     # also train and score each; DATA holds Task04_Hippocampus
    python benchmarks/decoders.py --show           # the table and the picture of what has been trained
    python benchmarks/decoders.py --show --runs DIR         # of runs that lie elsewhere

Cost is measured in 96^3 windows with 14 classes (vit3d_base, patch 16) and in the hippocampus bundle's own window and
network, fp32, batch 1, forward, all in turn: medians, and the median of the ratios round by round. The ratio is
UNETR's time over the decoder's (the peer is "unetr", the paper's: image features at full resolution only; the bundle
ships "unetr, 3 levels"). Memory is the peak resident memory above what is held before the call, the output included,
for each decoder in a process of its own (Linux). The limit is the time of as many products as the decoder's in one
large matrix product, measured in the same rounds; it leaves out that the logits have to be written.

Training is the recipe of bundles/hippocampus_segmentation (its train.yaml with another decoder), the same steps for
all; the weights' average after the last step is scored by evaluate.yaml on the test section, on which nothing is
chosen. Runs that are done are kept under --runs, named by decoder, epochs and seed, and not repeated; the table shows
those of --epochs. 12 epochs are 900 steps: the six decoders with
three seeds take about an hour of one thread of a 2-core machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from decoder_runs import DECODERS, PEER, draw, network_def, print_pareto, read_results, train_all
from hippocampus import BUNDLE, ROOT
from in_turn import added_bytes, command_line, timed, with_each_allocator
from monai.bundle import ConfigParser
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D, create_preset

SETTINGS = {"96^3, 14 classes, vit3d_base": (96, 96, 96), "hippocampus bundle, 32 x 48 x 32": (32, 48, 32)}
MIB = 2**20


@cache
def vit3d_base(size: tuple[int, ...]) -> VisionTransformer3D:
    """One backbone for all: six would be 2 GB."""
    return create_preset("vit3d_base", size, 16)


def segmenter(setting: str, name: str) -> TokenSegmenter:
    """One network, as it is before training."""
    torch.manual_seed(0)
    size = SETTINGS[setting]
    if size == (96, 96, 96):
        return TokenSegmenter(vit3d_base(size), num_classes=14, **DECODERS[name]).eval()
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.yaml"))
    parser["network_def"] = network_def(name)
    return parser.get_parsed_content("network_def").eval()


def inputs(setting: str, net: TokenSegmenter) -> tuple[Tensor, list[Tensor]]:
    """An image and the patch grids that the decoder gets."""
    image, maps = torch.randn(1, 1, *SETTINGS[setting], generator=torch.Generator().manual_seed(0)), []
    hook = net.decoder.register_forward_pre_hook(lambda _, given: maps.extend(given[1]))
    net(image)
    hook.remove()
    return image, maps


def gmac(call: Callable[[], object]) -> float:
    """Multiply-adds of a call, in 1e9."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2e9


def measure_memory(name: str) -> None:
    """In a process of its own: MiB above the start at each call's peak, decoder and whole, setting by setting."""
    torch.set_num_threads(1)
    found = {}
    with torch.inference_mode():
        for setting in SETTINGS:
            net = segmenter(setting, name)
            image, maps = inputs(setting, net)
            found[setting] = [peak_mib(partial(net.decoder, image, maps)), peak_mib(partial(net, image))]
    print(json.dumps(found))


def peak_mib(call: Callable[[], object]) -> float:
    """Of the second call: the first one makes what stays."""
    call()
    return added_bytes(call) / MIB


def added_mib(name: str) -> dict[str, list[float]]:
    """What :func:`measure_memory` prints; malloc gives freed memory back, so that no peak hides in it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-W", "ignore", __file__, "--memory", name]
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def measure(setting: str, rounds: int) -> dict[str, dict]:
    """Cost of every decoder in one setting."""
    calls: dict[str, Callable[[], object]] = {}
    results: dict[str, dict] = {}
    for name in DECODERS:
        net = segmenter(setting, name)
        image, maps = inputs(setting, net)
        calls[name] = partial(net.decoder, image, maps)
        calls[f"{name}/whole"] = partial(net, image)
        results[name] = {
            "decoder_gmac": gmac(calls[name]),
            "gmac": gmac(calls[f"{name}/whole"]),
            "decoder_parameters_m": sum(p.numel() for p in net.decoder.parameters()) / 1e6,
        }
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    calls["limit"] = lambda: a @ b
    times = timed(calls, rounds)
    rate = 1024**3 / 1e9 / statistics.median(times["limit"])
    for name, row in results.items():
        for suffix, prefix in (("", "decoder_"), ("/whole", "")):
            mine, peer = times[name + suffix], times[PEER + suffix]
            row[f"{prefix}ms"] = statistics.median(mine) * 1000
            row[f"{prefix}ratio"] = statistics.median(p / m for p, m in zip(peer, mine))
        row["limit_ms"] = row["decoder_gmac"] / rate * 1000
    return results


def print_costs(setting: str, rows: dict[str, dict]) -> None:
    """One setting's table."""
    print(f"\n{setting}    (ratio: {PEER}'s time / its own)")
    print(f"{'':16s} {'-- the decoder alone':>49s} {'-- the whole segmenter':>35s}")
    heads = ("M param", "GMAC", "ms", "ratio", "limit", "MiB", "GMAC", "ms", "ratio", "MiB")
    print(f"{'decoder':16s}" + "".join(f" {h:>8s}" for h in heads))
    keys = ("decoder_parameters_m", "decoder_gmac", "decoder_ms", "decoder_ratio", "limit_ms", "decoder_mib")
    for name, row in rows.items():
        print(f"{name:16s}" + "".join(f" {row[k]:8.2f}" for k in (*keys, "gmac", "ms", "ratio", "mib")))


def measure_all(rounds: int, file: Path) -> None:
    """Costs with this process' allocator, printed and kept."""
    with torch.inference_mode():
        costs = {setting: measure(setting, rounds) for setting in SETTINGS}
    for name in DECODERS:
        for setting, mib in added_mib(name).items():
            costs[setting][name] |= dict(zip(("decoder_mib", "mib"), mib))
    for setting, rows in costs.items():
        print_costs(setting, rows)
    file.write_text(json.dumps(costs, indent=1))


def main() -> None:
    """Measure, train if asked, print."""
    parser = command_line(__doc__)
    parser.add_argument("--train", type=Path, metavar="DATA", help="the folder that holds Task04_Hippocampus")
    parser.add_argument("--show", action="store_true", help="measure and train nothing that is there")
    parser.add_argument("--decoders", nargs="+", choices=list(DECODERS), default=list(DECODERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "decoders", help="the folder of the runs")
    parser.add_argument("--picture", type=Path, help="default: decoders_pareto.png in --runs")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        measure_memory(args.memory)
        return
    runs = args.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    file = runs / "costs.json"
    if args.child:
        measure_all(args.rounds, file)
        return
    if args.train:
        train_all(args.decoders, args.seeds, args.epochs, args.train, runs)
    if not (args.show and file.is_file()):
        with_each_allocator()  # the costs that are kept are the last ones: huge pages, as vit3d has them
    results = read_results(runs, args.epochs)
    if results:
        costs = json.loads(file.read_text())[list(SETTINGS)[1]]
        picture = args.picture or runs / "decoders_pareto.png"
        print_pareto(results, costs)
        draw(results, costs, picture)
        print(picture)


if __name__ == "__main__":
    main()
