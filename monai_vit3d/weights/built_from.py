"""Remember which file a network was built from, so that its weights are not read twice."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import nn

from monai_vit3d.data.files import file_identity
from monai_vit3d.networks import FoldEnsemble
from monai_vit3d.networks.checkpoints import load_weights

FileIdentity = tuple[int, ...]
_records: WeakKeyDictionary[nn.Module, tuple[FileIdentity, list[tuple[int, int]]]] = WeakKeyDictionary()


def record_built_from(network: nn.Module, identity: FileIdentity) -> None:
    """Note on a network the file that its tensors came from.

    Args:
        network: just built from the file.
        identity: of the file before it was read, as :func:`~monai_vit3d.data.files.file_identity` returns it.
    """
    _records[network] = (identity, _tensors(network))


def is_built_from(network: nn.Module, identities: Sequence[FileIdentity]) -> bool:
    """Return whether a network's tensors are still those that were read from a file, or a fold ensemble's from several.

    Args:
        network: any network; one whose tensors were moved, copied or written to since is not known any more.
        identities: of the files as they are now.
    """
    members = list(network.members) if isinstance(network, FoldEnsemble) else [network]
    return len(members) == len(identities) and all(
        bool(identity) and _records.get(member) == (identity, _tensors(member))
        for member, identity in zip(members, identities)
    )


def ensure_weights(network: nn.Module, path: str | Path | Sequence[str | Path], average: str = "softmax") -> nn.Module:
    """Load a file into a network, unless :func:`network_from` has just built the network from it.

    A config's ``network_def`` that was replaced on the command line gets its weights by this; its own one, which
    ``network_from`` builds, is not read a second time.

    Args:
        network: the network that the weights were made with.
        path: as for :func:`load_weights`. Of a list of several files each is loaded into a copy of the network, and
            the copies are averaged as :class:`FoldEnsemble` does; a list of one file is that file.
        average: of several files, as for :class:`FoldEnsemble`.

    Returns:
        ``network``, or the ensemble.

    Raises:
        WeightsError: as :func:`load_weights`.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if is_built_from(network, [file_identity(file) for file in paths]):
        return network
    if len(paths) == 1:
        return load_weights(network, paths[0])
    return FoldEnsemble([load_weights(copy.deepcopy(network), file) for file in paths], average)


def _tensors(network: nn.Module) -> list[tuple[int, int]]:
    """Return address and version of each tensor; writing to one raises its version."""
    tensors = network.state_dict(keep_vars=True).values()
    return [(tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors]
