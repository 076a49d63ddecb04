"""What trainers wrap around a network's state dict, taken off: entries of a checkpoint, and prefixes of its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ...data.errors import WeightsError

# an average of the network over the training: the teacher of DINO and iBOT, the target of JEPA, timm's and others' EMA
AVERAGED = ("teacher", "target_encoder", "ema_encoder", "ema", "model_ema", "state_dict_ema")
# each may be an entry that holds a state dict, or with a dot the prefix of all keys of one
WORDS = (
    *("state_dict", "model_state_dict", "network_weights", "model", "network", "net", "module", "_orig_mod"),
    *("backbone", "encoder", "vit", "student", "context_encoder", *AVERAGED),
)
_DEEPEST = 8  # steps that are tried

Way = tuple[str, ...]
Family = Callable[[Mapping[str, Tensor]], str]


class Unwrapped(NamedTuple):
    """A state dict, what was taken off it, outermost first, and the names of what lies beside it."""

    state: dict[str, Tensor]
    wrapping: Way
    beside: tuple[str, ...]


def unwrap(read: Any, family: Family, name: str, take: str = "teacher") -> Unwrapped:
    """The one known network in a checkpoint.

    Args:
        read: what a file held.
        family: the family of a state dict, by its keys; empty for none that is known.
        name: the file, for messages.
        take: where there are several: ``"teacher"`` takes the averaged one, ``"student"`` the one that is not
            averaged, another word the one that lies under it.

    Returns:
        Its tensors; of what lies beside it, an entry of the checkpoint is named once, as ``optimizer``, and a tensor
        of another prefix by its key.

    Raises:
        WeightsError: none is known, or ``take`` does not single one out; the message names what there is.
    """
    if not isinstance(read, Mapping):
        raise WeightsError(f"{name}: a {type(read).__name__}; a state dict, or a checkpoint that has one, is needed.")
    ways = _ways(read, family)
    if not ways:
        keys = [str(key) for key in read]
        more = f", and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise WeightsError(
            f"{name}: no Vision Transformer of a known family among its entries {', '.join(keys[:5]) or '(none)'}"
            f"{more}. Save the encoder's state_dict() alone, or name another file."
        )
    way = _chosen(ways, take, name)
    beside: list[str] = []
    for i, step in enumerate(way):
        path = "".join(part if part.endswith(".") else f"{part}." for part in way[:i])
        beside += [f"{path}{key}" for key in read if not _is_under(str(key), step)]
        read = _under(read, step)
    path = "".join(part if part.endswith(".") else f"{part}." for part in way)
    tensors = _tensors(read)
    beside += [f"{path}{key}" for key in read if key not in tensors]
    return Unwrapped(tensors, way, tuple(beside))


def _tensors(read: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in read.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _is_under(key: str, step: str) -> bool:
    return key.startswith(step) if step.endswith(".") else key == step


def _under(read: Mapping[Any, Any], step: str) -> Mapping[Any, Any]:
    """What is left when a step is taken off; nothing if it is not there."""
    if step.endswith("."):
        return {key[len(step) :]: value for key, value in _tensors(read).items() if key.startswith(step)}
    inner = read.get(step)
    return inner if isinstance(inner, Mapping) else {}


def _ways(read: Mapping[Any, Any], family: Family, way: Way = ()) -> list[Way]:
    """All ways that lead to a known state dict."""
    if family(_tensors(read)):
        return [way]
    if not read or len(way) == _DEEPEST:
        return []
    steps = [step for word in WORDS for step in (word, f"{word}.")]
    return [found for step in steps for found in _ways(_under(read, step), family, (*way, step))]


def _chosen(ways: list[Way], take: str, name: str) -> Way:
    averaged = [way for way in ways if any(step.rstrip(".") in AVERAGED for step in way)]
    others = [way for way in ways if way not in averaged]
    if take == "teacher":
        fit = averaged or others
    elif take == "student":
        fit = others
    else:
        fit = [way for way in ways if take in way or f"{take}." in way]
    if len(fit) != 1:
        there = ", ".join(repr(" ".join(way)) or "at the top" for way in ways)
        raise WeightsError(
            f"{name}: take={take!r} fits {len(fit)} of the networks that it holds, under {there}; one is needed. "
            "Pass take= 'teacher', 'student', or a word of the one that is meant."
        )
    return fit[0]
