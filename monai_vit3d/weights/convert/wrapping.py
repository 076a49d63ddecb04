"""What trainers wrap around a network's state dict, taken off: entries of a checkpoint, and prefixes of its keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ...data.errors import WeightsError

# an average of the network over the training: the teacher of DINO and iBOT, the target of JEPA, timm's and others' EMA
AVERAGED = (
    *("teacher", "target_encoder", "ema_encoder", "ema", "model_ema", "state_dict_ema", "ema_model", "net_ema"),
    *("backbone_momentum", "momentum_encoder", "teacher_backbone"),
)
# each may be an entry that holds a state dict, or with a dot the prefix of all keys of one
WORDS = (
    *("state_dict", "model_state_dict", "network_weights", "model", "network", "net", "module", "_orig_mod"),
    *("_fsdp_wrapped_module", "_forward_module"),
    *("backbone", "encoder", "vit", "student", "context_encoder", *AVERAGED),
)
_DEEPEST = 8  # steps that are tried
_START = re.compile(r"(?:^|\.)(?=patch_embed(ding)?\.)")  # of the keys of a network's patch embedding

# of DINOv2's blocks in chunks for FSDP: chunk, block, part of a block; the parts tell them from UNETR's decoder
_CHUNK = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.(?=(?:norm[12]|attn|mlp|ls[12])\.)")

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
        WeightsError: none is known, ``take`` does not single one out, or another whole network lies under a word
            that is not known; the message names what there is.
    """
    if not isinstance(read, Mapping):
        raise WeightsError(f"{name}: a {type(read).__name__}; a state dict, or a checkpoint that has one, is needed.")
    read = _without_chunks(read)
    ways = _ways(read, family, take)
    if not ways:
        keys = [str(key) for key in read]
        more = f", and {len(keys) - 5} more" if len(keys) > 5 else ""
        unknown = [word for word in map(_unknown_part, _strangers(read, family)) if word]
        advice = "Save the encoder's state_dict() alone, or name another file"
        if unknown:
            advice = f"One lies under {' and '.join(map(repr, unknown))}: pass take={unknown[0]!r}"
        elif take not in ("teacher", "student"):
            advice += f"; nothing known lies under take={take!r}"
        raise WeightsError(
            f"{name}: no Vision Transformer of a known family among its entries {', '.join(keys[:5]) or '(none)'}"
            f"{more}. {advice}."
        )
    way = _chosen(ways, take, name)
    if take in ("teacher", "student"):
        _refuse_strangers(read, family, way, name)
    beside: list[str] = []
    for i, step in enumerate(way):
        path = "".join(part if part.endswith(".") else f"{part}." for part in way[:i])
        beside += [f"{path}{key}" for key in read if not _is_under(str(key), step)]
        read = _under(read, step)
    path = "".join(part if part.endswith(".") else f"{part}." for part in way)
    tensors = _tensors(read)
    beside += [f"{path}{key}" for key in read if key not in tensors]
    return Unwrapped(tensors, way, tuple(beside))


def holds_known(read: Any, family: Family, take: str = "teacher") -> bool:
    """Whether a checkpoint holds a known network at all."""
    return isinstance(read, Mapping) and bool(_ways(_without_chunks(read), family, take))


def _without_chunks(read: Mapping[Any, Any]) -> dict[Any, Any]:
    """A checkpoint with blocks numbered from first to last; DINOv2 numbers the chunks, too, in which FSDP has them."""
    return {
        _CHUNK.sub(r"\1blocks.\2.", key) if isinstance(key, str) else key: (
            _without_chunks(value) if isinstance(value, Mapping) else value
        )
        for key, value in read.items()
    }


def _refuse_strangers(read: Mapping[Any, Any], family: Family, way: Way, name: str) -> None:
    """Refuse another whole network under a word that says neither that it is averaged nor that it is not."""
    chosen: Mapping[Any, Any] = read
    for step in way:
        chosen = _under(chosen, step)
    own = "".join(f"{step.rstrip('.')}." for step in way)
    for path in _strangers(read, family):
        inside = path.removeprefix(own)
        rest = {key: value for key, value in _tensors(chosen).items() if not key.startswith(inside)}
        if path != own and path.startswith(own) and not family(rest):
            continue  # the same network: by these keys it was known
        words = path.strip(".").split(".")
        if not {*words} <= {*WORDS}:
            word = _unknown_part(path)
            raise WeightsError(
                f"{name}: it holds several networks, under {' '.join(way) or 'no word'!r} and {path!r}; one is needed. "
                f"Pass take={word!r}, or take= a word of the other; or name a file with one alone."
            )


def _unknown_part(path: str) -> str:
    """What of a path ``take=`` must name: from its first unknown word to its last, with the dots between."""
    words = path.strip(".").split(".")
    places = [i for i, word in enumerate(words) if word not in WORDS]
    return ".".join(words[places[0] : places[-1] + 1]) if places else ""


def _strangers(read: Mapping[Any, Any], family: Family, path: str = "") -> list[str]:
    tensors = _tensors(read)
    starts = dict.fromkeys(key[: found.end()] for key in tensors for found in _START.finditer(key))
    paths = [f"{path}{start}" for start in starts if start and family(_under(read, start))]
    inner = [(key, value) for key, value in read.items() if isinstance(key, str) and isinstance(value, Mapping)]
    deep = [(key, value) for key, value in inner if path.count(".") < _DEEPEST]
    for key, value in deep:
        paths += [f"{path}{key}."] if family(_tensors(value)) else []
        paths += _strangers(value, family, f"{path}{key}.")
    return paths


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


def _ways(read: Mapping[Any, Any], family: Family, take: str, way: Way = ()) -> list[Way]:
    """All ways that lead to a known state dict, by the words that are known and the one that is asked for."""
    if not read or len(way) == _DEEPEST:
        return []
    words = dict.fromkeys((*WORDS, take))
    here = [way] if family(_tensors(read)) else []
    # beside a network: entries and averages; a UNETR's own parts begin with vit.
    steps = [step for word in words for step in (word, *([] if here and word not in AVERAGED else [f"{word}."]))]
    return here + [found for step in steps for found in _ways(_under(read, step), family, take, (*way, step))]


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
