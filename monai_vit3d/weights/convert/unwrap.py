"""Unwrap the one network in a checkpoint from the entries and name prefixes that trainers put around it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.networks.model_args import args_in_state

from .refused import reason_to_refuse
from .shapes import COMBINER_SIGN

# an average of the network over the training: the teacher of DINO and iBOT, the target of JEPA, timm's and others' EMA
AVERAGED = (
    *("teacher", "target_encoder", "ema_encoder", "ema", "model_ema", "state_dict_ema", "ema_model", "net_ema"),
    *("backbone_momentum", "momentum_encoder", "teacher_backbone"),
    *("ema_state_dict", "ema_weights", "params_ema", "shadow"),
)
# each may be an entry that holds a state dict, or with a dot the prefix of all names of one
WORDS = (
    *("state_dict", "model_state_dict", "network_weights", "model", "network", "net", "module", "_orig_mod"),
    *("checkpoint", "weights", "params", "model_state", "model_weights"),
    *("_fsdp_wrapped_module", "_forward_module"),
    *("backbone", "encoder", "vit", "student", "context_encoder", *AVERAGED),
    # the image's network in one of images and text, or with a decoder of its own
    *("vision_encoder", "image_encoder", "vision_tower", "vision_model", "visual"),
    # transformers' networks with a head
    *("dinov2", "dinov2_with_registers", "dinov3_vit", "videomae", "vjepa2"),
    # open_clip's word for timm's network, and SPECTRE's for its second one
    *("trunk", "feature_combiner"),
)
_DEEPEST = 8  # entries inside entries
_PATCH_EMBEDDING = re.compile(
    r"(?:^|\.)(?=patch_embed(?:ding|_3D)?\.|embeddings\.patch_embeddings\.|down_projection\.|patch_proj\.)"
)
# DINOv2's blocks in chunks for FSDP: chunk, block, part of a block; the parts tell them from UNETR's decoder
_CHUNK = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.(?=(?:norm[12]|attn|mlp|ls[12])\.)")

IdentifyFamily = Callable[[Mapping[str, Tensor]], str]


class Unwrapped(NamedTuple):
    """A state dict, the wrappings removed from it, outermost first, the names of everything beside it, its record."""

    state: dict[str, Tensor]
    wrapping: tuple[str, ...]
    beside: tuple[str, ...]
    args: dict[str, Any]


class Network(NamedTuple):
    """A network of a known family: the entries around it, the prefix of its tensors' names, the dict that has them."""

    entries: tuple[str, ...]
    prefix: str
    items: dict[Any, Any]

    @property
    def wrapping(self) -> tuple[str, ...]:
        """Entries and the prefix's parts, outermost first; the latter end in a dot."""
        return (*self.entries, *(f"{word}." for word in self.prefix.split(".")[:-1]))

    @property
    def words(self) -> list[str]:
        """The wrapping without dots."""
        return [word for step in self.wrapping for word in step.split(".") if word]

    @property
    def unknown(self) -> str:
        """The words from the first that is not in ``WORDS`` to the last such, joined by dots; "" if all are known."""
        places = [i for i, word in enumerate(self.words) if word not in WORDS]
        return ".".join(self.words[places[0] : places[-1] + 1]) if places else ""

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names without the prefix."""
        return _under(self.items, self.prefix)


def unwrap(
    checkpoint: Any, family: IdentifyFamily, name: str, take: str = "teacher", combiner: bool = False
) -> Unwrapped:
    """Return the one known network in a checkpoint.

    Args:
        checkpoint: the content of a file.
        family: the family of a state dict, by its keys; "" for none that is known.
        name: the file, for messages.
        take: where there are several: ``"teacher"`` takes the averaged one, ``"student"`` the one that is not
            averaged, another word the one under that word.
        combiner: whether the network over another one's vectors is meant, where there are both.

    Returns:
        Its tensors; of what lies beside it, an entry of the checkpoint is named once, as ``optimizer``, and a tensor
        of another prefix by its name.

    Raises:
        WeightsError: none is known, ``take`` does not single one out, or another whole network lies under a word
            that is not known; the message names them.
    """
    if not isinstance(checkpoint, Mapping):
        kind = type(checkpoint).__name__
        raise WeightsError(f"{name}: a {kind}; expected a state dict, or a checkpoint that has one.")
    networks = _networks(checkpoint, family)
    if take in ("teacher", "student"):
        networks = [one for one in networks if (COMBINER_SIGN in one.tensors()) == combiner] or networks
    candidates = [network for network in networks if network.unknown in ("", take)]
    if not candidates:
        raise WeightsError(_nothing_known(checkpoint, networks, name, take))
    chosen = _chosen(candidates, take, name)
    stranger = next((network for network in networks if network.unknown), None)
    if take in ("teacher", "student") and stranger is not None:
        raise WeightsError(
            f"{name}: it holds several networks, under {' '.join(chosen.wrapping) or 'no word'!r} and "
            f"{'.'.join([*stranger.words, ''])!r}; expected one. Pass take={stranger.unknown!r}, or take= a word of "
            "the other; or name a file with one alone."
        )
    innermost = checkpoint
    for entry in chosen.entries:
        innermost = innermost[entry]
    args = args_in_state(innermost, chosen.prefix)
    return Unwrapped(chosen.tensors(), chosen.wrapping, tuple(_beside(checkpoint, chosen)), args)


def holds_known(checkpoint: Any, family: IdentifyFamily) -> bool:
    """Return whether a checkpoint holds a network of a known family, in known wrappings.

    Args:
        checkpoint: the content of a file.
        family: as for :func:`unwrap`.
    """
    return isinstance(checkpoint, Mapping) and any(not one.unknown for one in _networks(checkpoint, family))


def _networks(checkpoint: Mapping[Any, Any], family: IdentifyFamily) -> list[Network]:
    """List all networks of known families, the outermost first, without parts of one (a UNETR's encoder)."""
    networks: list[Network] = []
    for entries, items in _dicts(checkpoint):
        inside: list[Network] = []
        for prefix in _prefixes(items):
            network = Network(entries, prefix, items)
            if family(network.tensors()) and not any(_is_part(network, outer, family) for outer in inside):
                inside.append(network)
        networks += inside
    return networks


def _dicts(checkpoint: Mapping[Any, Any]) -> list[tuple[tuple[str, ...], dict[Any, Any]]]:
    """List all dicts in a checkpoint, itself first, with the entries that lead to each."""
    collected: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), checkpoint)]
    for entries, content in collected:  # it grows
        inner = content.items() if len(entries) < _DEEPEST else ()
        collected += [
            ((*entries, key), value) for key, value in inner if isinstance(key, str) and isinstance(value, Mapping)
        ]
    return [(entries, {_plain(key): value for key, value in content.items()}) for entries, content in collected]


def _plain(key: Any) -> Any:
    return _CHUNK.sub(r"\1blocks.\2.", key) if isinstance(key, str) else key


def _prefixes(items: Mapping[Any, Any]) -> list[str]:
    """List possible prefixes of all names of a network, shortest first: known words, or what a patch embedding has."""
    collected = {""}
    for name in _under(items, ""):
        collected.update(name[: start.end()] for start in _PATCH_EMBEDDING.finditer(name))
        end = 0
        while (dot := name.find(".", end)) >= 0 and name[end:dot] in WORDS:
            end = dot + 1
            collected.add(name[:end])
    return sorted(collected, key=len)


def _is_part(network: Network, outer: Network, family: IdentifyFamily) -> bool:
    """Return whether a network is part of one with a shorter prefix, which may have averages of itself beside it."""
    if not network.prefix.startswith(outer.prefix):
        return False
    inner = network.prefix[len(outer.prefix) :]
    words = inner.split(".")[:-1]
    if {*words} <= {*WORDS}:
        return words[0] not in AVERAGED
    return not family({key: value for key, value in outer.tensors().items() if not key.startswith(inner)})


def _under(items: Mapping[Any, Any], prefix: str) -> dict[str, Tensor]:
    return {
        key[len(prefix) :]: value
        for key, value in items.items()
        if isinstance(value, Tensor) and isinstance(key, str) and key.startswith(prefix)
    }


def _chosen(networks: list[Network], take: str, name: str) -> Network:
    if take in ("teacher", "student"):
        others = [network for network in networks if {*AVERAGED}.isdisjoint(network.words)]
        averaged = [network for network in networks if not {*AVERAGED}.isdisjoint(network.words)]
        fit = (averaged or others) if take == "teacher" else others
    else:
        fit = [network for network in networks if take in (*network.words, network.unknown)]
    if len(fit) != 1:
        there = ", ".join(repr(" ".join(network.wrapping)) or "at the top" for network in networks)
        raise WeightsError(
            f"{name}: take={take!r} fits {len(fit)} of the networks that it holds, under {there}; expected one. "
            "Pass take= 'teacher', 'student', or a word of the one that is meant."
        )
    return fit[0]


def _nothing_known(checkpoint: Mapping[Any, Any], networks: list[Network], name: str, take: str) -> str:
    keys = [str(key) for key in checkpoint]
    more = f", and {len(keys) - 5} more" if len(keys) > 5 else ""
    unknown = [network.unknown for network in networks]
    reason = reason_to_refuse(key for _, items in _dicts(checkpoint) for key in _under(items, ""))
    advice = "Use its own package" if reason else "Save the encoder's state_dict() alone, or name another file"
    if unknown:
        advice = f"One lies under {' and '.join(map(repr, unknown))}: pass take={unknown[0]!r}"
    elif take not in ("teacher", "student"):
        advice += f"; nothing known lies under take={take!r}"
    nothing = f"no Vision Transformer of a known family among its entries {', '.join(keys[:5]) or '(none)'}{more}"
    return f"{name}: {reason or nothing}. {advice}."


def _beside(checkpoint: Mapping[Any, Any], network: Network) -> list[str]:
    """Name everything in a checkpoint but a network's tensors, each entry once."""
    beside: list[str] = []
    path, content = "", checkpoint
    for entry in network.entries:
        beside += [f"{path}{key}" for key in content if key != entry]
        path, content = f"{path}{entry}.", content[entry]
    own = {f"{network.prefix}{key}" for key in network.tensors()}
    return beside + [f"{path}{key}" for key in network.items if key not in own]
