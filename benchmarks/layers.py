"""Where a forward's time goes by kind of layer, how far each is from its limit, and other ways to run the same network.

    python benchmarks/layers.py --rounds 5
    python benchmarks/layers.py --only "hippocampus, batch 4" --no-ways

The shipped hippocampus network in windows of 32x48x32, four at once as its bundle has them, and one alone; and one
window of a UNETR of 96^3 with 14 classes and random weights. All in PyTorch's float32 on a CPU. A layer's time is that
of its module without the layers inside: attention's is that of the product of queries, keys and values. "rest" is what
no layer does: additions, concatenations, views. Seconds are of CPU, all threads together. The limit is the greater of
two: the layer's floating-point operations at a core's rate in a matrix product of 2,048 squared, and the bytes of its
input, output and weights at the rate of a copy as large as the network's largest output.

Ways: each in a process of its own that ends after five minutes, in turn with the plain network. The ratio is the plain
one's seconds over the way's; beside it the seconds of wall clock until its first answer, the greatest difference from
the plain one's output, as a part of the greatest value, and the part of the voxels whose label is the same.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from in_turn import command_line, with_each_allocator
from made_up_bundle import SHIPPED, WINDOW, segmenter
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from monai_vit3d.inferers import BackendNetwork
from monai_vit3d.weights import network_from


def hippocampus() -> nn.Module:
    """The shipped one."""
    return network_from(SHIPPED / "models" / "model.pt").eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "hippocampus, batch 4": (hippocampus, (4, 1, 32, 48, 32)),
    "hippocampus, batch 1": (hippocampus, (1, 1, 32, 48, 32)),
    "UNETR 96^3": (segmenter, (1, 1, *WINDOW)),
}
KINDS: dict[str, str] = {
    "Conv3d": "convolution",
    "ConvTranspose3d": "transposed convolution",
    "Linear": "linear",
    "LayerNorm": "layer norm",
    "InstanceNorm3d": "instance norm",
    "GELU": "activation",
    "LeakyReLU": "activation",
}
TIMEOUT_S = 300


def kind_of(name: str, module: nn.Module, output: Tensor) -> str | None:
    """The row of a module; convolutions have one for each size of kernel and of output."""
    if "patch_embed" in name:
        return "patch embedding"
    if name.endswith(".attn"):
        return "attention"
    kind = KINDS.get(type(module).__name__)
    if kind is not None and "convolution" in kind:
        return f"{kind} {module.kernel_size[0]}^3, {'x'.join(map(str, output.shape[2:]))}"
    return kind


class Ledger:
    """What a meter advances by within each kind of layer, without the layers inside.

    Args:
        network: gets hooks.
        meter: a number that grows.
    """

    def __init__(self, network: nn.Module, meter: Callable[[], float]) -> None:
        self.meter, self.open = meter, [[0.0, 0.0]]
        self.found: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, float] = defaultdict(float)
        self.largest, self.products = 0, 0
        self.hooks = []
        for name, module in network.named_modules():
            self.hooks.append(module.register_forward_pre_hook(self.enter))
            self.hooks.append(module.register_forward_hook(partial(self.leave, name)))

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """A module begins: remember when."""
        self.open.append([self.meter(), 0.0])

    def leave(self, name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        """A module ends: what it and the unnamed ones inside took is its own, if it has a row."""
        start, inside = self.open.pop()
        spent = self.meter() - start
        kind = kind_of(name, module, output) if isinstance(output, Tensor) else None
        if name == "":
            kind = "rest"
        if kind is None:
            self.open[-1][1] += inside
            return
        self.open[-1][1] += spent
        self.found[kind] += spent - inside
        if kind != "rest":
            weights = sum(p.numel() for p in module.parameters(recurse=False))
            given = sum(one.numel() for one in inputs if isinstance(one, Tensor))
            self.bytes[kind] += 4 * (weights + given * (3 if kind == "attention" else 1) + output.numel())
            self.largest = max(self.largest, output.numel())
            if kind == "attention":  # the CPU's fused product is unknown to the counter
                self.products += 4 * output.shape[1] * output.numel()

    def end(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()


def cpu_seconds(call: Callable[[], object], times: int = 1) -> float:
    """The least of some runs of so many calls, for one call."""

    def once() -> float:
        start = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - start) / times

    return min(once() for _ in range(6))


def matmul_rate() -> float:
    """Floating-point operations that a core does in a second."""
    a, b, out = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.empty(2048, 2048)
    return 2 * 2048**3 / cpu_seconds(lambda: torch.mm(a, b, out=out))


def copy_rate(numbers: int) -> float:
    """Bytes that a core reads and writes in a second, of a float32 tensor so long."""
    a, b = torch.zeros(numbers), torch.zeros(numbers)
    return 2 * 4 * numbers / cpu_seconds(lambda: b.copy_(a), 10)


@torch.inference_mode()
def shares(name: str, rounds: int, rate: float) -> None:
    """Print a row for each kind of layer, the longest first."""
    build, shape = NETWORKS[name]
    network, x = build(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    network(x)
    with FlopCounterMode(display=False) as counter:
        work = Ledger(network, counter.get_total_flops)
        network(x)
    work.end()
    work.found["attention"] = max(work.found["attention"], work.products)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        clock = Ledger(network, time.process_time)
        network(x)
        clock.end()
        for kind, value in clock.found.items():
            seconds[kind].append(value)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    whole, copied = sum(medians.values()), copy_rate(work.largest)
    print(f"\n{name}: {sum(work.found.values()) / 1e9:.1f} GFLOP; a core copies {copied / 1e9:.1f} GB/s")
    print(f"{'kind':>42s} {'share':>6s} {'ms':>8s} {'GFLOP':>7s} {'GFLOP/s':>8s} {'limit':>8s} {'ms/limit':>8s}")
    limits = {kind: max(work.found[kind] / rate, work.bytes[kind] / copied) for kind in medians}
    for kind, value in sorted(medians.items(), key=lambda item: -item[1]):
        flops, least = work.found[kind], limits[kind]
        print(f"{kind:>42s} {value / whole:6.1%} {1000 * value:8.2f} {flops / 1e9:7.3f}", end="")
        print(f" {flops / value / 1e9:8.1f} {1000 * least:8.2f} {value / least:8.1f}" if least else "", flush=True)
    print(f"{'all':>42s} {'':6s} {1000 * whole:8.1f} {'':16s} {1000 * sum(limits.values()):8.1f}", end="")
    print(f" {whole / sum(limits.values()):8.1f}", flush=True)


def packed(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Weights in oneDNN's own layout."""
    from torch.utils.mkldnn import to_mkldnn

    moved = to_mkldnn(network)
    return lambda: moved(x)


def frozen(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """TorchScript's: a trace, frozen, its convolutions in oneDNN's layout."""
    made = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(network, x, check_trace=False)))
    return lambda: made(x)


def in_precision(name: str, network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Float32 products and convolutions of oneDNN in a lesser precision within."""

    def run() -> Tensor:
        settings = torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
        for setting in settings:
            setting.fp32_precision = name
        try:
            return network(x)
        finally:
            for setting in settings:
                setting.fp32_precision = "ieee"

    return run


def half(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Autocast, for comparison."""

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(x).float()

    return run


def channels_last(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Channels innermost."""
    moved, given = network.to(memory_format=torch.channels_last_3d), x.to(memory_format=torch.channels_last_3d)
    return lambda: moved(given)


def compiled(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """By inductor, with the weights frozen into the graph."""
    run: Any = torch.compile(network, options={"freezing": True})
    return lambda: run(x)


def grouped(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Instance norms computed as group norms with a group for each channel."""
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm3d):
            given = {"num_groups": module.num_features, "weight": module.weight, "bias": module.bias, "eps": module.eps}
            module.forward = partial(F.group_norm, **given)  # type: ignore[method-assign]
    return lambda: network(x)


def up_by_product(module: nn.ConvTranspose3d, x: Tensor) -> Tensor:
    """A transposed convolution whose stride is its kernel: a product over channels, and the voxels put into place."""
    batch, _, height, width, depth = x.shape
    a, b, c = module.kernel_size
    found = module.weight.flatten(1).t() @ x.flatten(2)
    found = found.view(batch, -1, a, b, c, height, width, depth).permute(0, 1, 5, 2, 6, 3, 7, 4)
    found = found.reshape(batch, -1, height * a, width * b, depth * c)
    return found if module.bias is None else found + module.bias.view(-1, 1, 1, 1)


def products(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """The row before, and transposed convolutions by :func:`up_by_product`."""
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose3d) and module.stride == module.kernel_size:
            module.forward = partial(up_by_product, module)  # type: ignore[method-assign]
    return grouped(network, x)


WAYS: dict[str, Callable[[nn.Module, Tensor], Callable[[], Tensor]]] = {
    "instance norms as group norms": grouped,
    "and transposed convolutions as products": products,
    "channels last": channels_last,
    "torch.jit, frozen": frozen,
    "torch.utils.mkldnn.to_mkldnn": packed,
    "fp32_precision tf32": partial(in_precision, "tf32"),
    "fp32_precision bf16": partial(in_precision, "bf16"),
    "autocast bfloat16": half,
    "torch.compile, frozen": compiled,
    "OpenVINO": lambda network, x: partial(BackendNetwork(network, "openvino"), x),
}


@torch.inference_mode()
def one_way(name: str, way: str, rounds: int) -> dict[str, float]:
    """Time one way in turn with the plain network."""
    build, shape = NETWORKS[name]
    plain, x = build(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = plain(x)
    start = time.perf_counter()
    call = WAYS[way](build(), x)
    found = call()
    first = time.perf_counter() - start
    times: dict[str, list[float]] = {"plain": [], "way": []}
    for _ in range(rounds):
        for key, one in (("plain", lambda: plain(x)), ("way", call)):
            since = time.process_time()
            one()
            times[key].append(time.process_time() - since)
    return {
        "first": first,
        "plain": statistics.median(times["plain"]),
        "way": statistics.median(times["way"]),
        "ratio": statistics.median(p / w for p, w in zip(times["plain"], times["way"])),
        "off": float((found - expected).abs().max() / expected.abs().max()),
        "labels": float((found.argmax(1) == expected.argmax(1)).float().mean()),
    }


def ways(name: str, rounds: int) -> None:
    """Print a row for each way, or why there is none."""
    print(f"{'way':>42s} {'plain ms':>9s} {'way ms':>8s} {'ratio':>6s} {'first s':>8s} {'off':>8s} {'labels':>9s}")
    for way in WAYS:
        words = [sys.executable, "-W", "ignore", __file__, "--way", name, way, "--rounds", str(rounds)]
        words += ["--threads", str(torch.get_num_threads())]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print(f"{way:>42s} not done after {TIMEOUT_S} s", flush=True)
            continue
        if done.returncode:
            print(f"{way:>42s} {done.stderr.strip().splitlines()[-1][:100]}", flush=True)
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        print(f"{way:>42s} {1000 * row['plain']:9.1f} {1000 * row['way']:8.1f} {row['ratio']:6.2f}", end="")
        print(f" {row['first']:8.1f} {row['off']:8.1g} {row['labels']:9.5%}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--only", choices=list(NETWORKS))
    parser.add_argument("--no-ways", action="store_true", help="the layers alone")
    parser.add_argument("--way", nargs=2, help="print one row's figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.way:
        print(json.dumps(one_way(*args.way, args.rounds)))
        return
    if not args.child:
        print(f"torch {torch.__version__}, {args.threads} threads")
        with_each_allocator()
        return
    rate = matmul_rate()
    print(f"{rate / 1e9:.0f} GFLOP/s")
    for name in NETWORKS:
        if args.only in (None, name):
            shares(name, args.rounds, rate)
            if not args.no_ways:
                ways(name, args.rounds)


if __name__ == "__main__":
    main()
