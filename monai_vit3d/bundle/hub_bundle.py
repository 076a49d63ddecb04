"""Bundles of Hugging Face's hub, as MONAI's model zoo has them there, pinned so that they stay what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from monai_vit3d.data.errors import BundleError
from monai_vit3d.data.files import file_sha256

from .content import content_files, content_sha256, copied_once

HUB_PREFIX = "hf:"
_NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?P<file>(?:/[\w.-]+)+\.zip)?(?P<pins>(?:@[^@]*)*)")
_PINS = {40: "revision", 64: "sha256"}  # by their number of hexadecimal digits
_EXPECTED = "expected hf:OWNER/NAME@COMMIT (40 hexadecimal digits), @SHA256 (64, of vit3d info), or both"


def fetch_bundle(name: str) -> Path:
    """Fetch a bundle from the hub, or find it in the hub's cache.

    Args:
        name: ``hf:OWNER/NAME@COMMIT``, ``hf:OWNER/NAME@SHA256`` or both pins; of a zip in the repository
            ``hf:OWNER/NAME/FILE.zip@...``. COMMIT fixes what is asked for, SHA256 what may come: that of the zip, or of
            the folder's content (:func:`~.content.content_sha256`).

    Returns:
        The zip; or a copy of the folder in the user's cache, as the hub's own holds links that lead out of it.

    Raises:
        BundleError: no such name, no pin, it can neither be found nor fetched, or it is another than the pinned one.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise BundleError(f"{name}: no name of a bundle on the hub; {_EXPECTED}. Correct it.")
    pins = _pins(name, match["pins"])
    repository, file = match["repository"], (match["file"] or "").removeprefix("/")
    path = _downloaded(name, repository, file, pins.get("revision"))
    if file:
        _check_pin(name, file_sha256(path), pins)
        return path
    files = content_files(path)
    _check_links(name, path, files)
    sha256 = content_sha256(files)
    _check_pin(name, sha256, pins)
    return copied_once(files, repository.partition("/")[2], sha256)


def _pins(name: str, text: str) -> dict[str, str]:
    pins: dict[str, str] = {}
    for pin in filter(None, text.split("@")):
        kind = _PINS.get(len(pin)) if re.fullmatch(r"[0-9a-fA-F]+", pin) else None
        if kind is None:
            raise BundleError(f"{name}: {pin} is no pin, as branches and tags move; {_EXPECTED}. Correct it.")
        pins[kind] = pin.lower()
    if not pins:
        raise BundleError(f"{name}: not pinned, so that it might be another tomorrow; {_EXPECTED}. Add a pin.")
    return pins


def _downloaded(name: str, repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if file:
            return Path(hf_hub_download(repository, file, revision=revision))
        return Path(snapshot_download(repository, revision=revision))
    except Exception as error:  # the library raises its own errors, Python's and those of its HTTP client
        first = str(error).strip().split("\n")[0]
        raise BundleError(
            f"{name}: neither in the hub's cache nor could it be fetched ({type(error).__name__}: {first}). Connect to "
            "the network, or copy a cache that has it to HF_HOME."
        ) from error


def _check_links(name: str, snapshot: Path, files: Mapping[str, Path]) -> None:
    """Refuse links that lead out of the repository's part of the hub's cache."""
    part = os.path.realpath(snapshot.parents[1])
    for path in files.values():
        target = os.path.realpath(path)
        if os.path.commonpath([part, target]) != part or not os.path.isfile(target):
            raise BundleError(
                f"{name}: {path} is a link to {target}, no file of the cache. Remove it, and fetch again."
            )


def _check_pin(name: str, sha256: str, pins: Mapping[str, str]) -> None:
    if pins.get("sha256", sha256) != sha256:
        raise BundleError(
            f"{name}: SHA-256 {sha256}; expected the pinned {pins['sha256']}. It was changed or damaged: do not run it "
            "before you know why."
        )
