"""A bundle's inference config: which files it is made of, and what the user sets in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.errors import BundleError, UsageError

from .config_file import read_config
from .metadata import METADATA_FILE

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser

CONFIG_SUFFIXES = ("yaml", "yml", "json")
DEFAULT_CONFIGS = ("inference",)
TOKENS = "network_def#tokens"  # which patches get a token, of a network_def that network_from builds
FOLDS = "folds"  # which of the trained folds are run, of a bundle that has several
# may be set where the config has no such entry
OPTIONAL_ENTRIES = (
    "ckpt_path",
    "class_names",
    "task",
    "flip_axes",
    "tta_degrees",
    "tta_scales",
    "inferer",
    "postprocessing",
)
_SET_BY_ARGUMENT = {"bundle_root": "bundle=", "device": "device=", "dataset_dir": "inputs", "output_dir": "output="}


@dataclass(frozen=True)
class Choice:
    """Which config files of a bundle are read, and what is set in them.

    Args:
        names: config files of the bundle's ``configs``, with or without suffix, merged from the first to the last as
            ``monai.bundle run --config_file "[...]"`` does.
        overrides: values by id, as ``--id value`` of ``monai.bundle run``; they win over the files.
    """

    names: tuple[str, ...] = DEFAULT_CONFIGS
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The choice as one line, for hashes; empty for the bundle as it is shipped."""
        if self == AS_SHIPPED:
            return ""
        values = [f"{key}={value!r}" for key, value in sorted(self.overrides.items())]
        return " ".join([",".join(self.names), *values])


AS_SHIPPED = Choice()


def choice_of(
    config: str | Sequence[str] | None,
    overrides: Mapping[str, Any] | None,
    folds: Sequence[int] | None = None,
    tokens: str | float | None = None,
) -> Choice:
    """Make a :class:`Choice` of a function's arguments.

    Args:
        config: one name, or several; None is ``inference``.
        overrides: values by id.
        folds: which of the trained folds are run; None leaves it to the config.
        tokens: which patches get a token; None leaves it to the config.
    """
    names = DEFAULT_CONFIGS if not config else (config,) if isinstance(config, str) else tuple(config)
    chosen: dict[str, Any] = {} if folds is None else {FOLDS: list(folds)}
    chosen |= {} if tokens is None else {TOKENS: tokens}
    return Choice(names, {**(overrides or {}), **chosen})


def config_files(root: Path, names: Sequence[str] = DEFAULT_CONFIGS) -> list[Path]:
    """Find the config files of a bundle.

    Args:
        root: the bundle's folder.
        names: as :class:`Choice` has them.

    Raises:
        BundleError: there is no such file, or it lies outside the bundle.
    """
    return [_config_file(root, name) for name in names]


def has_inference(root: Path) -> bool:
    """Return whether a bundle has the config file that is run by default."""
    return any((root / "configs" / f"{DEFAULT_CONFIGS[0]}.{suffix}").is_file() for suffix in CONFIG_SUFFIXES)


def _config_file(root: Path, name: str) -> Path:
    folder = root / "configs"
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(f"config={name}: expected the name of a file in the bundle's configs, such as inference.")
    given = folder / name
    paths = (
        [given] if given.suffix[1:] in CONFIG_SUFFIXES else [folder / f"{name}.{suffix}" for suffix in CONFIG_SUFFIXES]
    )
    for path in paths:
        if path.is_file():
            return path
    if name == DEFAULT_CONFIGS[0]:
        raise BundleError(f"{root}: no configs/inference.yaml or .json here. Give the folder of a MONAI bundle.")
    there = sorted(path.stem for path in folder.glob("*") if path.suffix[1:] in CONFIG_SUFFIXES)
    raise UsageError(f"config={name}: no such file in {folder}. Expected one of {', '.join(there) or 'none'}.")


def read_parser(root: Path, choice: Choice, device: torch.device | str) -> ConfigParser:
    """Read and merge the chosen files and set what the pipeline and the user set; nothing is evaluated.

    Raises:
        BundleError: a file that cannot be read.
        UsageError: an id that cannot be set, or no such file.
    """
    paths = config_files(root, choice.names)
    where = paths[-1]
    contents = [read_config(path) for path in paths]  # refused, if it must be, before MONAI takes its time to load
    is_named = _names_metadata([contents, dict(choice.overrides)])
    metadata = read_config(root / METADATA_FILE) if is_named and (root / METADATA_FILE).is_file() else {}
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    from .components import DeferredLocator

    try:
        merged = ConfigParser(config={})
        for content in contents:
            for key, value in content.items():
                merge_kv(merged, key, value)
        config = merged.get()
        if is_named:
            config[ConfigParser.meta_key] = metadata
        parser = ConfigParser(config)
    except Exception as error:
        raise BundleError(f"{where}: not a readable config ({one_line(error)}). Fetch the bundle again.") from error
    parser.locator = DeferredLocator()
    parser["bundle_root"] = str(root.resolve())
    for name in ("dataset_dir", "output_dir"):  # files come from the pipeline and go to it
        if name in config:
            parser[name] = str(root.resolve())
    parser["device"] = f"$torch.device('{device}')"
    for name, value in choice.overrides.items():
        _check_override(name, config)
        try:
            parser.set(value, name, recursive=False)
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UsageError(
                f"overrides={name}: no such entry in {where.name} ({reason}). Expected an id of the config, such as "
                "inferer::overlap."
            ) from error
    return parser


def _names_metadata(content: Any) -> bool:
    """Return whether a config refers to ``_meta_``, under which MONAI's workflows have the content of metadata.json."""
    if isinstance(content, Mapping):
        return _names_metadata([*content.keys(), *content.values()])
    if isinstance(content, list | tuple):
        return any(map(_names_metadata, content))
    return isinstance(content, str) and "_meta_" in content


def _check_override(name: str, config: Mapping[str, Any]) -> None:
    first = name.replace("#", "::").partition("::")[0]
    if first == FOLDS and first not in config:
        raise UsageError("folds=: the bundle has one set of weights and no folds to choose from. Leave it out.")
    if first in _SET_BY_ARGUMENT:
        raise UsageError(f"overrides={name}: set by {_SET_BY_ARGUMENT[first]}. Leave it out.")
    if first not in config and first not in OPTIONAL_ENTRIES:
        close = ", ".join(key for key in config if not key.startswith("_"))
        raise UsageError(f"overrides={name}: no such entry; expected one of {close}.")


def one_line(error: BaseException) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())
