"""A bundle's weights: find their file, load or compare them, and hash the file that was read."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.confinement import check_confined
from monai_vit3d.data.errors import BundleError, WeightsError
from monai_vit3d.data.files import file_identity, file_sha256

if TYPE_CHECKING:
    from monai.bundle import ConfigParser
    from torch import Tensor, nn

logger = logging.getLogger(__name__)
_CHECKPOINT_KEYS = ("model", "network")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, hashed before anything reads it.

    Args:
        path: where it lies.
        sha256: of its bytes; "" if there is no file.
        identity: device, inode, size and times, which change with the file or its bytes.
    """

    path: Path
    sha256: str
    identity: tuple[int, ...]

    @classmethod
    def of(cls, path: Any, config: Path) -> WeightsFile:
        """Hash a file.

        Raises:
            BundleError: not a path, or one outside the folder that reading is confined to.
        """
        if not isinstance(path, str | os.PathLike) or "\0" in str(path):
            raise BundleError(
                f"{config}: weights {path!r}; the path of a file, or a list of such, is expected. Correct ckpt_path."
            )
        path = Path(path)
        check_confined(path)
        identity = file_identity(path)
        return cls(path, file_sha256(path) if path.is_file() else "", identity)

    @property
    def written(self) -> str:
        """When its bytes were last written, local time as ISO 8601; "" if there is no file."""
        return datetime.fromtimestamp(self.identity[3] / 1e9).isoformat(" ", "minutes") if self.identity else ""

    def check_unchanged(self) -> None:
        """Raise :class:`WeightsError` if the file is no longer the one that was hashed."""
        if file_identity(self.path) != self.identity:
            raise WeightsError(
                f"{self.path}: changed while it was being loaded. Start again when nothing writes to it."
            )

    def state(self, keys: tuple[str, ...]) -> Any:
        """Read the file; of a checkpoint, return what it has under the first of these keys that it has."""
        from monai_vit3d.networks.checkpoints import read_checkpoint

        if not self.sha256:
            raise WeightsError(f"{self.path}: no such file. Fetch the bundle's weights, or train it.")
        state = read_checkpoint(self.path)
        key = next((key for key in keys if isinstance(state, dict) and key in state), None)
        return state if key is None else state[key]


@dataclass(frozen=True)
class BundleWeights:
    """The files of a bundle's weights: one, or one for each member of an ensemble.

    Args:
        files: one or more, of the bundle's network.
        others: of further networks that the config builds, such as a localizer.
    """

    files: tuple[WeightsFile, ...]
    others: tuple[WeightsFile, ...] = ()

    @classmethod
    def of(cls, paths: Any, config: Path) -> BundleWeights:
        """Hash a file, or each of several.

        Raises:
            BundleError: an empty list, or as :meth:`WeightsFile.of`.
        """
        listed = list(paths) if isinstance(paths, list | tuple) and paths else [paths]
        return cls(tuple(WeightsFile.of(path, config) for path in listed))

    @property
    def sha256(self) -> str:
        """SHA-256 of the file; of several, that of the lines that ``sha256sum`` prints for them."""
        if len(self.all_files) == 1:
            return self.files[0].sha256
        lines = [f"{file.sha256}  {file.path.name}" for file in self.all_files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def all_files(self) -> tuple[WeightsFile, ...]:
        """The files of all networks."""
        return (*self.files, *self.others)

    @property
    def names(self) -> str:
        """Paths of the files of the bundle's network, for messages."""
        return ", ".join(str(file.path) for file in self.files)

    def check_unchanged(self) -> None:
        """Raise :class:`WeightsError` if a file is no longer the one that was hashed."""
        for file in self.all_files:
            file.check_unchanged()

    def state(self, keys: tuple[str, ...]) -> Any:
        """Read the file, as :meth:`WeightsFile.state`; of several, a state dict of their ensemble."""
        states = [file.state(keys) for file in self.files]
        if len(states) == 1:
            return states[0]
        members = [state if isinstance(state, Mapping) else {} for state in states]
        return {f"members.{i}.{key}": value for i, state in enumerate(members) for key, value in state.items()}


def load_bundle_network(
    build: Callable[..., Any], parser: ConfigParser, config: Path, default: Path
) -> tuple[nn.Module, BundleWeights]:
    """Build a bundle's network with the weights that its config names.

    A CheckpointLoader's file is loaded, as MONAI does. Else, a network whose entry refers to ``ckpt_path`` has loaded
    it already, and is compared with the file unless ``network_from`` built it from that; into any other one it is
    loaded.

    Args:
        build: builds an entry of the config.
        parser: of the config.
        config: the config's file, for messages.
        default: the file where the config has no ``ckpt_path``.

    Raises:
        BundleError: an entry that is not a network, or not a path.
        WeightsError: weights that are missing, damaged, of another network, or not those that the network has.
    """
    from torch import nn

    from monai_vit3d.networks.checkpoints import load_state
    from monai_vit3d.weights.built_from import is_built_from

    loader = checkpoint_loader(parser.get())
    weights = BundleWeights.of(build(f"{loader}::load_path") if loader else build("ckpt_path", default), config)
    weights = replace(weights, others=_files_of_others(build, parser, config, weights))
    entry = "network" if parser.get("network") is not None else "network_def"
    network = build(entry)
    if not isinstance(network, nn.Module):
        raise BundleError(f"{config}: {entry!r} is {type(network).__name__}; a network of torch.nn is expected.")
    if loader:
        keys = parser.get(f"{loader}::load_dict", {})
        load_state(network, weights.state(tuple(keys) if isinstance(keys, dict) else ()), weights.names)
    elif refers_to(parser, entry, "ckpt_path"):
        if not is_built_from(network, [file.identity for file in weights.files]):
            _check_loaded(network, weights)
    else:
        load_state(network, weights.state(_CHECKPOINT_KEYS), weights.names)
    weights.check_unchanged()
    return network, weights


def _files_of_others(
    build: Callable[..., Any], parser: ConfigParser, config: Path, weights: BundleWeights
) -> tuple[WeightsFile, ...]:
    """Hash the files that ``network_from`` reads for other networks than the bundle's."""
    paths = (build(f"{entry}::path") for entry in entries_of(parser.get(), "network_from"))
    files = (WeightsFile.of(path, config) for path in paths if isinstance(path, str | os.PathLike))
    return tuple(file for file in files if file.path not in [own.path for own in weights.files])


def checkpoint_loader(config: Any) -> str | None:
    """Return the id of MONAI's CheckpointLoader in a config; None where there is none."""
    return next(entries_of(config, "CheckpointLoader"), None)


def entries_of(config: Any, name: str, entry: str = "") -> Iterator[str]:
    """List the ids of a config's entries whose ``_target_`` has this name.

    Args:
        config: a part of it, not resolved.
        name: the last part of the target's path.
        entry: the part's id.
    """
    if isinstance(config, dict) and str(config.get("_target_", "")).rpartition(".")[2] == name:
        yield entry
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        yield from entries_of(value, name, f"{entry}::{key}" if entry else str(key))


def refers_to(parser: ConfigParser, entry: str, target: str) -> bool:
    """Return whether MONAI resolves one entry of a config to build another; descriptions do not count.

    Args:
        parser: of the config.
        entry: what is built.
        target: the entry that may be needed for it.
    """
    from monai.bundle import ConfigParser

    unresolved = ConfigParser(copy.deepcopy(parser.get()))  # what was resolved has no references any more
    unresolved.parse()
    resolver = unresolved.ref_resolver
    waiting, seen = [entry], {entry}
    while waiting:
        where = waiting.pop()
        if where == target:
            return True
        if where not in resolver.items:
            continue
        content = _without_descriptions(resolver.items[where].get_config())
        needed = set(resolver.find_refs_in_config(content, where)) - seen
        seen |= needed
        waiting += needed
    return False


def _without_descriptions(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_descriptions(value) for key, value in content.items() if key != "_desc_"}
    return [_without_descriptions(value) for value in content] if isinstance(content, list) else content


def _check_loaded(network: nn.Module, weights: BundleWeights) -> None:
    """Compare a network that loaded its own weights with the file that is recorded for it."""
    try:
        state = weights.state(_CHECKPOINT_KEYS)
    except WeightsError:
        if not all(file.sha256 for file in weights.files):
            raise
        state = {}  # in another project's format, which the bundle's own code reads
    loaded = network.state_dict()
    common = [key for key, value in loaded.items() if _same_shape(value, state, key)]
    for key in common:
        if not bool(
            (loaded[key].cpu() == state[key].to(loaded[key].dtype)).logical_or(loaded[key].cpu().isnan()).all()
        ):
            raise WeightsError(
                f"{weights.names}: the network that the config builds from it holds other weights ({key} differs), so "
                "this is not the file that would run. Correct the network's entry, or ckpt_path."
            )
    if not common and len(weights.files) > 1:
        raise WeightsError(
            f"{weights.names}: several files, but the config builds no ensemble of them. Name one, or build the "
            "network by monai_vit3d.weights.network_from."
        )
    if not common:
        logger.warning("%s: no tensor of it has a name of the network's, so the two cannot be compared", weights.names)


def _same_shape(value: Tensor, state: Any, key: str) -> bool:
    other = state.get(key) if isinstance(state, Mapping) else None
    return other is not None and getattr(other, "shape", None) == value.shape
