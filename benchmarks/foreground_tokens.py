"""What leaving out the tokens of background saves, and what it costs a network that was trained with all of them.

    python benchmarks/foreground_tokens.py --rounds 3
    python benchmarks/foreground_tokens.py --dice            # needs MONAI_DATA_DIRECTORY with Task04_Hippocampus

The first: nilearn's MNI152 head (1 mm, z-scored), patches of 16, six blocks of width 384, a class token and random
weights. Ours is tokens="foreground", the peer the same network with tokens="all", in turn on the same volume; a forward
pass, and a training step (forward and backward). A ratio is the median over rounds of the peer's seconds by ours. The
limit is the share of tokens that is kept: what is linear in them (all but attention itself and the patch embedding)
cannot take less, and 1 / limit is the ratio that it alone would have. Memory is what a forward pass keeps for the
backward pass, weights apart. The kept tokens are compared with those of attention whose keys of background are masked.

The second: Dice of bundles/hippocampus_segmentation on its validation part, 20 cases, by its evaluate.yaml, with its
shipped weights, which were trained with all tokens: `foreground`, and -0.75 standard deviations, above which a patch
needs a voxel.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from hippocampus import bundle_run, read_scores
from in_turn import timed
from nilearn.datasets import load_mni152_template
from torch import Tensor

from monai_vit3d.networks import VisionTransformer3D

PATCH = 16
OPTIONS = {"embed_dim": 384, "depth": 6, "num_heads": 6}
TOKENS = ("foreground", "all")


def head() -> Tensor:
    """The head ``(1, 1, H, W, D)``, z-scored."""
    voxels = torch.from_numpy(load_mni152_template(resolution=1).get_fdata()).float()
    return ((voxels - voxels.mean()) / voxels.std())[None, None].contiguous()


def network(volume: Tensor, tokens: str) -> VisionTransformer3D:
    """The network, its weights the same for each ``tokens``."""
    torch.manual_seed(0)
    size = [-(-n // PATCH) * PATCH for n in volume.shape[2:]]
    return VisionTransformer3D(size, PATCH, **OPTIONS, dynamic_img_pad=True, tokens=tokens).eval()


def training_step(net: VisionTransformer3D, volume: Tensor) -> None:
    """Forward and backward."""
    net(volume).square().sum().backward()
    net.zero_grad()


@torch.no_grad()
def forward(net: VisionTransformer3D, volume: Tensor) -> None:
    """Forward."""
    net(volume)


def mib_for_backward(net: VisionTransformer3D, volume: Tensor) -> float:
    """MiB of the tensors that a forward pass keeps for the backward pass, without weights and the volume."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (volume, *net.parameters())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = net(volume)  # as long as it is there, so are they
    total = sum(size for address, size in kept.items() if address not in known)
    del output
    return total / 2**20


@torch.no_grad()
def largest_difference(ours: VisionTransformer3D, peer: VisionTransformer3D, volume: Tensor) -> float:
    """Of the kept tokens from those of masked attention, by the largest of these."""
    valid = ours.foreground_patches(volume)
    keys = torch.cat([torch.ones(1, 1, dtype=torch.bool), valid], 1)
    expected = peer.forward_features(volume, keys[:, None, None])[keys]
    return float((ours.forward_features(volume)[keys] - expected).abs().max() / expected.abs().max())


def time_and_memory(rounds: int) -> None:
    """Print two lines."""
    volume = head()
    nets = {tokens: network(volume, tokens) for tokens in TOKENS}
    valid = nets["foreground"].foreground_patches(volume)
    share = float(valid.float().mean())
    size = " x ".join(map(str, volume.shape[2:]))
    print(f"MNI152 {size}, patch {PATCH}: {int(valid.sum())} of {valid.numel()} tokens are kept ({share:.1%})")
    print(
        f"largest difference from masked attention: {largest_difference(nets['foreground'], nets['all'], volume):.1e}"
    )
    print(f"{'':14s} {'ours s':>8s} {'peer s':>8s} {'ratio':>6s} {'1/limit':>8s}")
    calls: dict[str, Callable[..., None]] = {"forward": forward, "training step": training_step}
    for name, call in calls.items():
        times = timed({tokens: partial(call, net, volume) for tokens, net in nets.items()}, rounds)
        ours, peer = (times[tokens] for tokens in TOKENS)
        ratio = statistics.median(b / a for a, b in zip(ours, peer))
        medians = statistics.median(ours), statistics.median(peer)
        print(
            f"{name:14s} {medians[0]:8.2f} {medians[1]:8.2f} {ratio:6.2f} {1 / share:8.2f}",
            flush=True,
        )
    ours_mib, peer_mib = (mib_for_backward(nets[tokens], volume) for tokens in TOKENS)
    ratio = peer_mib / ours_mib
    print(f"{'backward, MiB':14s} {ours_mib:8.0f} {peer_mib:8.0f} {ratio:6.2f} {1 / share:8.2f}")


def dice(threads: int) -> None:
    """Print a line for each choice of tokens."""
    print(f"{'tokens':12s} {'anterior':>9s} {'posterior':>10s} {'mean':>8s}")
    for tokens in ("all", "foreground", -0.75):
        with tempfile.TemporaryDirectory() as folder:
            overrides = {"tokens": tokens, "section": "validation", "output_dir": folder}
            bundle_run(["inference.yaml", "evaluate.yaml"], overrides, threads, Path(folder) / "log")
            scores = read_scores(Path(folder))
        print(f"{tokens!s:12s} {scores['anterior']:9.4f} {scores['posterior']:10.4f} {scores['mean']:8.4f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dice", action="store_true", help="Dice of the hippocampus bundle instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.dice:
        dice(args.threads)
    else:
        print(f"torch {torch.__version__}, cpu, {args.threads} thread(s), median of {args.rounds} rounds")
        time_and_memory(args.rounds)


if __name__ == "__main__":
    main()
