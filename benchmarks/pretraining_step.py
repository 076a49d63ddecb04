"""A step of I-JEPA whose context encoder sees the context's tokens alone, against one that encodes all tokens and hides
the others afterwards; in turn.

    python benchmarks/pretraining_step.py --rounds 7

The limit of the encoder's ratio is that of the tokens (attention, whose cost is quadratic, may pass it); the target
encoder, which always sees all tokens, and the predictor are the same in both, so the whole step gains less.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.pretraining import IJEPA, JEPAMasks, sample_jepa_masks

CASES = [  # width, depth, heads, predictor depth
    (192, 12, 3, 3),
    (384, 12, 6, 3),
    (384, 12, 6, 6),
    (768, 12, 12, 6),
]


class EncodesAll(VisionTransformer3D):
    """A backbone whose visible tokens are chosen after the blocks: slower, and a leak."""

    def forward_visible(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """All tokens through the blocks, then the kept ones."""
        tokens = self.forward_features(x)
        return tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[2]))


def step(model: IJEPA, x: torch.Tensor, masks: JEPAMasks) -> None:
    """Forward, backward and moving average, without an optimizer."""
    model.zero_grad(set_to_none=True)
    model(x, masks).loss.backward()
    model.update_target(0.996)


def encode(model: IJEPA, x: torch.Tensor, masks: JEPAMasks) -> None:
    """The context encoder alone, forward and backward."""
    model.zero_grad(set_to_none=True)
    model.context_encoder.forward_visible(x, masks.context).square().mean().backward()


def seconds(call, *arguments) -> float:
    """One call, timed."""
    start = time.perf_counter()
    call(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, {torch.get_num_threads()} thread(s), 64 cubed in patches of 8, batch {args.batch}")
    print("seconds                                encoder                      step")
    print("width depth predictor   tokens seen       ours   all   ratio  limit    ours   all   ratio")
    for width, depth, heads, predictor_depth in CASES:
        generator = torch.Generator().manual_seed(0)
        masks = sample_jepa_masks(args.batch, (8, 8, 8), generator=generator, device=device)
        x = torch.randn(args.batch, 1, 64, 64, 64, device=device)
        options = {"embed_dim": width, "depth": depth, "num_heads": heads, "class_token": False, "global_pool": ""}
        models = [
            IJEPA(kind((64, 64, 64), 8, **options), predictor_depth=predictor_depth).to(device)
            for kind in (VisionTransformer3D, EncodesAll)
        ]
        for model in models:  # warm up
            step(model, x, masks)
        times = [
            [seconds(call, model, x, masks) for call in (encode, step) for model in models] for _ in range(args.rounds)
        ]
        ours, everything, ours_step, all_step = (statistics.median(column) for column in zip(*times))
        encoder_ratio = statistics.median(b / a for a, b, _, _ in times)
        step_ratio = statistics.median(b / a for _, _, a, b in times)
        seen = masks.context.shape[1]
        print(
            f"{width:5d} {depth:5d} {predictor_depth:9d}  {seen:5d} of 512    {ours:7.2f} {everything:5.2f} "
            f"{encoder_ratio:7.2f} {512 / seen:6.2f} {ours_step:7.2f} {all_step:5.2f} {step_ratio:7.2f}"
        )


if __name__ == "__main__":
    main()
