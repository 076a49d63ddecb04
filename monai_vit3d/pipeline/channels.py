"""Match the images of a case to the inputs of a bundle: by the names that a list gives, else by order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from monai_vit3d.data.case_files import holds_channels
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.printable import printable

from .prepare import keys_needed

if TYPE_CHECKING:
    from monai_vit3d.bundle.load import BundleSteps

    from .case import Case


def order_channels(cases: Sequence[Case], bundle: BundleSteps) -> tuple[tuple[Case, ...], list[str]]:
    """Put each case's images into the order of the bundle's inputs.

    A bundle names its inputs by the keys that its LoadImaged has, if there are several, or by ``channel_def`` of the
    image in metadata.json. A list names them by its columns: ``image_flair`` is ``flair``, upper and lower case alike.

    Args:
        cases: of the run.
        bundle: what is run.

    Returns:
        The cases with their images in that order, and a line for each order that occurs.

    Raises:
        UsageError: a case has another number of images than the bundle has keys, or names of which only some fit.
    """
    names = _input_names(bundle)
    ordered: list[Case] = []
    orders: dict[str, None] = {}
    for case in cases:
        order = _order(case, names, by_key=len(bundle.preprocessing.load_keys) > 1)
        if len(order) > 1:
            given = case.channels or [f"image {i + 1}" for i in range(len(order))]
            inputs = names or [str(i) for i in range(len(order))]
            orders[", ".join(f"{name} = {printable(given[i])}" for name, i in zip(inputs, order))] = None
        ordered.append(replace(case, images=tuple(case.images[i] for i in order), channels=()))
    return tuple(ordered), [f"inputs of the bundle: {line}" for line in orders]


def _input_names(bundle: BundleSteps) -> list[str]:
    """List the names of the inputs, in order; empty where the bundle does not name each."""
    if len(bundle.preprocessing.load_keys) > 1:
        return list(bundle.preprocessing.load_keys)
    names = bundle.metadata.input_names
    count = bundle.metadata.channels
    return [names[i] for i in range(count)] if count > 1 and set(names) == set(range(count)) else []


def _order(case: Case, names: Sequence[str], by_key: bool) -> list[int]:
    given = list(range(len(case.images)))
    if by_key and len(given) != len(names) and not holds_channels(case.images[0], len(names)):
        raise UsageError(keys_needed(case.source, len(given), names))
    if not case.channels or not names:
        return given
    places = {_plain(channel): i for i, channel in enumerate(case.channels)}
    fitting = [name for name in names if _plain(name) in places]
    if len(fitting) == len(names) == len(given):
        return [places[_plain(name)] for name in names]
    if fitting or by_key:
        came = ", ".join(f"image_{printable(channel)}" for channel in case.channels)
        expected = ", ".join(f"image_{name}" for name in names)
        raise UsageError(
            f"{case.source}: columns {came}; the bundle's inputs are named otherwise. Expected {expected}."
        )
    return given


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()
