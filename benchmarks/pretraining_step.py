"""A step of our I-JEPA against one that encodes all tokens, and against nidl's, in turn.

    python benchmarks/pretraining_step.py --rounds 7 --widths 192 384

- ours: the context encoder gets the context's tokens alone.
- all: it gets all tokens, and the others are hidden afterwards.
- nidl: the I-JEPA of the package nidl (0.0.2, CeCILL-B) with the sizes, weights and masks of ours. Its first loss must
  be that of ours: the two do the same work.
- nidl*: the same with masks of its own, one draw with its defaults: targets are larger, and the context sees some.

Volumes are 64 cubed in patches of 8. A step is forward, backward and moving average, without an optimizer and without
the drawing of masks. The target encoder, which always sees all tokens, and the predictor are the same in ours and all,
so a step gains less than its context encoder, whose limit is that of the tokens (attention, whose cost is quadratic,
may pass it). A ratio is the other's seconds by ours, the median over rounds. pretraining_memory.py measures the memory.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from in_turn import timed
from torch import Tensor, nn

from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.pretraining import IJEPA, JEPAMasks, sample_jepa_masks

SIDE, PATCH, GRID = 64, 8, (8, 8, 8)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Sizes(NamedTuple):
    """Of the encoders, and the predictor's depth; its width is half of theirs."""

    width: int
    depth: int
    heads: int
    predictor_depth: int


CASES = [Sizes(192, 12, 3, 3), Sizes(384, 12, 6, 3), Sizes(384, 12, 6, 6), Sizes(768, 12, 12, 6)]


class Contender(NamedTuple):
    """A model, the masks it is given, and the parts of its step."""

    model: nn.Module
    masks: JEPAMasks
    encode: Callable[[], Tensor]
    loss: Callable[[], Tensor]
    average: Callable[[], None]


class EncodesAll(VisionTransformer3D):
    """A backbone whose visible tokens are chosen after the blocks: slower, and a leak."""

    def forward_masked(self, x: Tensor, ids_keep: Tensor) -> Tensor:
        """All tokens through the blocks, then the kept ones."""
        tokens = self.forward_features(x)
        return tokens.gather(1, ids_keep[..., None].expand(-1, -1, tokens.shape[2]))


def contender(name: str, sizes: Sizes, batch: int) -> Contender:
    """One of those named above; all have the same weights and the same volumes."""
    torch.manual_seed(0)
    masks = sample_jepa_masks(batch, GRID, generator=torch.Generator().manual_seed(0), device=DEVICE)
    kind = EncodesAll if name == "all" else VisionTransformer3D
    backbone = kind(
        (SIDE,) * 3,
        PATCH,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        class_token=False,
        global_pool="",
    )
    model = IJEPA(backbone, predictor_depth=sizes.predictor_depth).to(DEVICE)
    x = torch.randn(batch, 1, SIDE, SIDE, SIDE).to(DEVICE)
    if name.startswith("nidl"):
        return nidls(model, sizes, x, masks if name == "nidl" else None)
    return Contender(
        model,
        masks,
        lambda: model.context_encoder.forward_masked(x, masks.context),
        lambda: model(x, masks).loss,
        lambda: model.update_target(0.996),
    )


def nidls(ours: IJEPA, sizes: Sizes, x: Tensor, masks: JEPAMasks | None) -> Contender:
    """Nidl's I-JEPA with the weights of ours; None for masks of its own."""
    from nidl.estimators import ssl
    from nidl.volume.backbones import VisionTransformer3D as NidlTransformer

    vit = NidlTransformer(
        SIDE, PATCH, embed_dim=sizes.width, depth=sizes.depth, num_heads=sizes.heads, class_token=False, global_pool=""
    )
    width = ours.predictor.embed.out_features
    model = ssl.IJEPA(vit, predictor_embed_dim=width, predictor_depth_pred=sizes.predictor_depth).to(DEVICE)
    with torch.no_grad():
        for part in ("context_encoder", "target_encoder", "predictor"):
            theirs = [p for key, p in getattr(model, part).named_parameters() if key != "predictor_pos_embed"]
            for new, old in zip(theirs, getattr(ours, part).parameters(), strict=True):
                new.copy_(old.view_as(new))
        model.predictor.predictor_pos_embed.copy_(ours.predictor.pos_embed)
    if masks is None:
        context, targets = model.masker(len(x))
        masks = JEPAMasks(context.to(DEVICE), torch.stack(list(targets), 1).to(DEVICE))
    given = masks.context, masks.targets.transpose(0, 1)
    model.masker.forward = lambda batch_size: given
    return Contender(
        model,
        masks,
        lambda: model.context_encoder(x, given[0][None]),
        lambda: model._shared_step(x)["loss"],  # what its training_step logs and returns
        lambda: model.momentum_updater.update(model.context_encoder, model.target_encoder),
    )


def step(of: Contender) -> Tensor:
    """Forward, backward and moving average, without an optimizer; returns the loss."""
    of.model.zero_grad(set_to_none=True)
    loss = of.loss()
    loss.backward()
    of.average()
    return loss.detach()


def encode(of: Contender) -> None:
    """The context encoder alone, forward and backward."""
    of.model.zero_grad(set_to_none=True)
    of.encode().square().mean().backward()


def known_names() -> list[str]:
    """Who takes part; says so where nidl cannot."""
    try:
        import nidl.estimators.ssl  # noqa: F401
    except ImportError as error:
        print(
            f"nidl is left out ({error}). pip install nidl, in an environment of its own: it wants scikit-learn <= 1.7"
        )
        return ["ours", "all"]
    return ["ours", "all", "nidl", "nidl*"]


def print_head(names: list[str], batch: int) -> None:
    """What each is given, and the columns' names."""
    print(f"torch {torch.__version__}, {DEVICE}, {torch.get_num_threads()} thread(s), batch {batch}")
    for name in names:
        masks = contender(name, Sizes(48, 1, 3, 1), batch).masks
        seen, (_, blocks, count) = masks.context.shape[1], masks.targets.shape
        print(f"{name}: context {seen} of 512 tokens (limit {512 / seen:.2f}), {blocks} targets of {count}")
    columns = "".join(f" {name:>7s}" + " ratio" * (name != "ours") for name in names)
    print(f"width depth predictor {'':10s}{columns}")


def print_line(sizes: Sizes, what: str, times: dict[str, list[float]]) -> None:
    """Medians of each, and of their ratios to ours."""
    print(f"{sizes.width:5d} {sizes.depth:5d} {sizes.predictor_depth:9d} {what:10s}", end="")
    for name, spent in times.items():
        ratio = statistics.median(other / own for other, own in zip(spent, times["ours"]))
        print(f" {statistics.median(spent):7.3g}" + f" {ratio:5.2f}" * (name != "ours"), end="")
    print(flush=True)


def main() -> None:
    """Print two lines a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 384, 768])
    args = parser.parse_args()
    names = known_names()
    print_head(names, args.batch)
    for sizes in (case for case in CASES if case.width in args.widths):
        contenders = [contender(name, sizes, args.batch) for name in names]
        losses = dict(zip(names, map(step, contenders)))  # warms up, too
        torch.testing.assert_close(losses.get("nidl", losses["ours"]), losses["ours"])
        for what, call in {"encoder, s": encode, "step, s": step}.items():
            times = timed({name: partial(call, of) for name, of in zip(names, contenders)}, args.rounds, warm=0)
            print_line(sizes, what, times)


if __name__ == "__main__":
    main()
