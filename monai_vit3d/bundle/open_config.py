"""Open a bundle's inference config: read and check it, let it import from the bundle, and build its entries."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.confinement import reading_only_below
from monai_vit3d.data.errors import BundleError, Vit3dError
from monai_vit3d.data.files import file_sha256
from monai_vit3d.deferred_imports import run_all_deferred
from monai_vit3d.distributed import TorchrunProcess

from .config import Choice, config_files, one_line, read_parser
from .kinds import refuse_unserved
from .metadata import Metadata, read_metadata
from .scripts import add_to_sys_path, python_files
from .search_path import without_folders
from .weights import checkpoint_loader

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser

logger = logging.getLogger(__name__)

_ROOTS = ("network", "network_def", "preprocessing", "inferer", "postprocessing")
_VALUES = ("ckpt_path", "class_names", "task", "flip_axes", "tta_degrees", "tta_scales", "evaluator::amp")


class OpenConfig:
    """A config whose entries can be built; errors name the file and the entry.

    Args:
        parser: of the config.
        path: the config's file; the last one if several were merged.
        metadata: what the bundle says of itself.
        sha256: of the bundle's ``configs`` and Python files, on any of which the labels may depend.
    """

    def __init__(self, parser: ConfigParser, path: Path, metadata: Metadata, sha256: str) -> None:
        self.parser, self.path, self.metadata, self.sha256 = parser, path, metadata, sha256

    def build(self, entry: str, *default: Any) -> Any:
        """Build an entry.

        Args:
            entry: its id.
            default: returned where the config has no such entry; without a default, the entry is required.

        Raises:
            BundleError: the entry is missing, or cannot be built.
        """
        if entry not in self.parser:
            if default:
                return default[0]
            raise BundleError(f"{self.path}: no {entry!r}; expected a MONAI inference config with one.")
        try:
            return self.parser.get_parsed_content(entry)
        except Exception as error:
            cause: BaseException = error
            while not isinstance(cause, Vit3dError) and cause.__cause__ is not None:
                cause = cause.__cause__
            if isinstance(cause, Vit3dError):
                raise cause from error
            reason = f"{type(cause).__name__}: {one_line(cause)}"
            raise BundleError(f"{self.path}: {entry!r} cannot be built: {reason}") from error

    @contextmanager
    def naming_file(self) -> Iterator[None]:
        """Put the name of the config's file before this package's errors."""
        try:
            yield
        except Vit3dError as error:
            raise BundleError(f"{self.path}: {error}") from error


@contextmanager
def open_config(root: Path, device: torch.device | str, safe: bool, choice: Choice) -> Iterator[OpenConfig]:
    """Open a bundle's inference config within the ``with`` block.

    Args:
        root: the bundle's folder.
        device: the config's ``device`` is set to it.
        safe: whether to refuse a config that is more than settings; see :mod:`monai_vit3d.bundle.safety`.
        choice: config files other than ``inference``, and values that are set in them.

    Raises:
        BundleError: no bundle, one of a kind that is not served, one that is not safe, or one whose files changed
            meanwhile.
        UsageError: a config file or entry that is not there.
    """
    from .reader_options import without_itk

    hashes = _config_hashes(root, choice)
    parser = read_parser(root, choice, device)
    metadata = read_metadata(root)
    refuse_unserved(root, parser.get(), metadata)
    loader = checkpoint_loader(parser.get())
    roots = [name for name in (*_ROOTS, *_VALUES) if name in parser] + ([f"{loader}::load_path"] if loader else [])
    with _trusted(root, _is_settings_only(parser.get(), roots, safe), safe):
        without_itk(parser.get())
        sha256 = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
        config = OpenConfig(parser, config_files(root, choice.names)[-1], metadata, sha256)
        config.build("imports", None)
        yield config
    if _config_hashes(root, choice) != hashes:
        raise BundleError(f"{root}: its configs or scripts changed while they were being loaded. Start again.")


def _config_hashes(root: Path, choice: Choice) -> list[str]:
    """List SHA-256 and name of each file in ``configs`` and each Python file of the bundle, and the choice if any."""
    configs = root / "configs"
    files = sorted(path for path in configs.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    lines = [f"{file_sha256(path)}  {path.relative_to(configs).as_posix()}" for path in files]
    lines += [f"{file_sha256(path)}  {path.relative_to(root).as_posix()}" for path in python_files(root)]
    return lines + ([choice.text] if choice.text else [])


def _is_settings_only(config: dict[str, Any], roots: list[str], safe: bool) -> bool:
    """Return whether a config holds settings only; if so, remove the imports that settings do not need.

    Raises:
        BundleError: with ``safe``, where the config is more than settings.
    """
    from .safety import check_config, drop_imports

    without_imports = copy.deepcopy(config)
    drop_imports(without_imports)
    try:
        check_config(without_imports, roots)
    except BundleError:
        if safe:
            raise
        return False
    drop_imports(config)
    return True


@contextmanager
def _trusted(root: Path, settings_only: bool, safe: bool) -> Iterator[None]:
    """Let a bundle that is more than settings import from its folder, and warn; with ``safe``, confine reading."""
    if not settings_only:
        if TorchrunProcess.from_environment().first:
            logger.warning("%s is code that runs here; safe=True takes settings only", root)
        run_all_deferred("monai")  # its code may do anything with MONAI
        add_to_sys_path(root)
    with ExitStack() as stack:
        if safe:
            stack.enter_context(reading_only_below(root))
            stack.enter_context(without_folders(root))
        yield
