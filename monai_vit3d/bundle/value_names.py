"""Name label values: find the channels that each stands for, by running the bundle's steps on made-up outputs.

metadata.json names the network's channels. A bundle's steps may give labels other values: the model zoo's BraTS
bundle turns three overlapping masks into the labels 1, 2 and 4. So the steps are run over small volumes of one output
each: in some the k-th channel is the largest, in some a set of channels is above any threshold. A value that comes out
exactly where one channel is the largest, or is above, has this channel's name; one that comes out exactly for several
has all of theirs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, LabelToContourd
from torch import Tensor

from .postprocessing import KEEP_LABELS, PRED, Postprocessing
from .voxelwise import whole_numbers

PROBE_SIDE = 5  # voxels; the middle one is read
MAX_EXHAUSTIVE_CHANNELS = 5  # up to which all sets of channels are tried
PROBES_PER_SET = 4  # which of its channels is the largest differs
RANDOM_SETS = 64
MAX_NAME_LENGTH = 64  # characters; DICOM allows no more


@dataclass(frozen=True)
class ValueNames:
    """Names of label values.

    Args:
        names: value to name; of masks, channel c is value c + 1.
        followed: values of which the channels are known, with a name or without one.
        background: the name of the value 0, which is no label; "" where it has none.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    followed: frozenset[int] = frozenset()
    background: str = ""


def value_names(postprocessing: Postprocessing, classes: int, channel_names: Mapping[int, str]) -> ValueNames:
    """Name the label values that a bundle writes.

    Args:
        postprocessing: the bundle's.
        classes: channels of the network's output.
        channel_names: of metadata.json. Where a key is not a channel, they are names of label values.
    """
    if not channel_names or not set(channel_names) <= set(range(classes)):
        return ValueNames(dict(channel_names), frozenset(channel_names))
    outputs = _outputs(classes)
    try:
        results = [_middle(postprocessing, output) for output in outputs]
    except Exception:  # steps are any code: an error on a made-up output says nothing about a real one
        return ValueNames()
    if len({len(result) for result in results}) != 1:
        return ValueNames()
    table = torch.stack(results)
    present = {c + 1: table[:, c] != 0 for c in range(table.shape[1])}  # masks
    if table.shape[1] == 1:
        present = {int(value): table[:, 0] == value for value in table.unique()}
    stands_for = {value: _channels(where, outputs) for value, where in present.items()}
    names = {value: _name(channels, channel_names) for value, channels in stands_for.items() if channels}
    background = names.pop(0, None)
    return ValueNames(
        {value: name for value, name in names.items() if name},
        frozenset(value for value, channels in stands_for.items() if channels and value),
        background or "",
    )


def interpolates_labels(before: Sequence[Any], after: Sequence[Any], classes: int) -> bool:
    """Return whether an interpolating Invertd gets labels, and no step behind it rounds the fractions it makes of them.

    Args:
        before: the steps before it.
        after: those behind it.
        classes: channels of the network's output.
    """
    rng = torch.Generator().manual_seed(0)
    outputs = torch.randn(8, classes, generator=rng)  # near 0, where softmax and sigmoid give fractions
    try:
        labels = [_values(before, output) for output in outputs]
        if not all(torch.equal(value, value.round()) for value in labels):
            return False
        mixed = [_values(after, value.flatten(1)[:, 0] + 0.3) for value in labels]
    except Exception:  # as above
        return False
    return not all(torch.equal(value, value.round()) for value in mixed)


def _outputs(classes: int) -> Tensor:
    """Make (N, classes) outputs of one voxel: above 0 for a set of channels, below 0 for the others."""
    rng = torch.Generator().manual_seed(0)
    if classes <= MAX_EXHAUSTIVE_CHANNELS:
        sets = torch.tensor(list(product((False, True), repeat=classes)))
    else:
        sets = torch.rand(RANDOM_SETS, classes, generator=rng) < torch.rand(RANDOM_SETS, 1, generator=rng)
    sets = torch.cat([torch.eye(classes).bool(), sets.repeat(PROBES_PER_SET, 1)])
    size = 10 + 10 * torch.rand(sets.shape, generator=rng)
    return torch.where(sets, size, -size)


def _middle(postprocessing: Postprocessing, output: Tensor) -> Tensor:
    """Return the (C,) label, or masks, of one output."""
    values = _values(postprocessing.steps, output, postprocessing.key)
    labels, _ = whole_numbers(values, postprocessing)
    return labels[:, PROBE_SIDE // 2, PROBE_SIDE // 2, PROBE_SIDE // 2].long()


def _values(steps: Iterable[Any], output: Tensor, key: str = PRED) -> Tensor:
    """Run the steps on a small volume of one output; (C, side, side, side)."""
    pred = output.float()[:, None, None, None].expand(-1, PROBE_SIDE, PROBE_SIDE, PROBE_SIDE).contiguous()
    data: dict[Hashable, Any] = {PRED: MetaTensor(pred)}
    for step in steps:
        if isinstance(step, LabelToContourd):  # the contours of all labels are 1
            data = {**data, **{k: data[k].clamp(0, 1) for k in step.key_iterator(data)}}
        elif not isinstance(step, (Invertd, *KEEP_LABELS)):
            data = step(data)
    return torch.as_tensor(data[key]).as_subclass(Tensor)


def _channels(where: Tensor, outputs: Tensor) -> tuple[list[int], list[int]] | None:
    """Return the channels that ``where`` (N,) stands for, and those that must be below 0; None where it is unclear."""
    largest = torch.nn.functional.one_hot(outputs.argmax(1), outputs.shape[1]).bool()
    above = outputs > 0
    for present in (largest, above):
        inside = [c for c in range(present.shape[1]) if bool(where[present[:, c]].all())]
        if inside and torch.equal(present[:, inside].any(1), where) and not bool(where.all()):
            return inside, []
    for channel in range(above.shape[1]):
        others = [c for c in range(above.shape[1]) if c != channel and not bool((where & above[:, c]).any())]
        if others and torch.equal(above[:, channel] & ~above[:, others].any(1), where):
            return [channel], others
    return None


def _name(channels: tuple[list[int], list[int]], names: Mapping[int, str]) -> str | None:
    """Join the channels' names; None where one of them has none, or the name gets too long."""
    inside, outside = channels
    if any(channel not in names for channel in [*inside, *outside]):
        return None
    name = " or ".join(names[channel] for channel in inside)
    if outside:
        name += " without " + ", ".join(names[channel] for channel in outside)
    return name if len(name) <= MAX_NAME_LENGTH or channels == (inside[:1], []) else None
