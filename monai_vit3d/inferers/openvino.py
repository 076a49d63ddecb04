"""Run a network by OpenVINO: exported once, kept on disk under the SHA-256 of all that it was made from."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_vit3d.data.files import file_sha256, write_text_atomic
from monai_vit3d.memory_limits import out_of_memory

from .openvino_export import export_to_openvino, import_openvino

logger = logging.getLogger(__name__)

MAX_MODELS = 8  # that are kept: weights times sizes of the window

_FILES = ("model.xml", "model.bin")
_REFUSED = "refused"  # says why a network has no model
_PACKAGES = ("openvino", "torch", "timm", "monai", "monai-vit3d")
_PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}
_INTERNAL = ("_parameters", "_buffers", "_modules", "training")  # no settings


class OpenVINOEngine:
    """A network compiled by OpenVINO for one shape of input, on the CPU.

    Args:
        network: one tensor in, one tensor out; its weights are copied.
        shape: of the input, ``(B, C, H, W, D)``.
        precision: float32, or bfloat16 for matrix products (in float32 on processors without it).
        cache_dir: where the exported model is kept for the next time; None keeps none.

    Attributes:
        compared_file: the file to create after this engine's output was found to be PyTorch's; it lies beside the
            model, and holds for its files, the shape, the precision and the processor. None if no model is kept.
    """

    def __init__(
        self, network: nn.Module, shape: Sequence[int], precision: torch.dtype, cache_dir: str | Path | None = None
    ) -> None:
        model, folder = _load_or_export(network, tuple(shape), None if cache_dir is None else Path(cache_dir))
        self.compared_file = None if folder is None else _compared_file(folder, shape, precision)
        model.reshape(list(shape))
        # as many threads as PyTorch has; LATENCY: one input at a time
        config = {
            "INFERENCE_PRECISION_HINT": _PRECISION[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.model = import_openvino().Core().compile_model(model, "CPU", config)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the network on ``x``; the output is float32, and no later call overwrites it."""
        outputs = self.model(x.detach().contiguous().numpy(), share_inputs=True)
        return torch.from_numpy(outputs[0])


def _load_or_export(network: nn.Module, shape: tuple[int, ...], cache: Path | None) -> tuple[Any, Path | None]:
    """Load the exported model from the cache, or export it and keep it there.

    Returns:
        the model and its folder; None if it cannot be kept.
    """
    name = None if cache is None else fingerprint(network, shape)
    if cache is None or name is None:
        return export_to_openvino(network, shape), None
    folder = cache / name
    with suppress(OSError):
        os.utime(folder)  # before it is read: another process may remove old models
    if (folder / _REFUSED).is_file():
        raise RuntimeError((folder / _REFUSED).read_text())
    if not _is_whole(folder):
        logger.info("exporting the network for OpenVINO; later runs find it in %s", folder)
        model = _export_or_remember(network, shape, folder)
        try:
            _save(model, folder)
        except OSError as error:
            logger.warning("%s: no exported model can be kept there (%s)", cache, error.strerror or error)
            return model, None
        _remove_old_models(folder)
    return import_openvino().Core().read_model(folder / "model.xml"), folder


def _export_or_remember(network: nn.Module, shape: tuple[int, ...], folder: Path) -> Any:
    """Export a network; that it cannot be is written down, as finding it out may take half a minute each time."""
    try:
        return export_to_openvino(network, shape)
    except Exception as error:
        if not out_of_memory(error):
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                write_text_atomic(str(error).partition("\n")[0], folder / _REFUSED)
                _remove_old_models(folder)
        raise


def _save(model: Any, folder: Path) -> None:
    """Write a model whole or not at all, in place of a damaged one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as temporary:
        written = Path(temporary) / "model"
        written.mkdir()
        import_openvino().save_model(model, written / "model.xml", compress_to_fp16=False)
        (written / "sha256").write_text(_files_sha256(written))
        with suppress(OSError):
            folder.rename(Path(temporary) / "damaged")
        try:
            written.rename(folder)
        except OSError:  # another process was faster: its model is the same
            if not _is_whole(folder):
                raise


def _remove_old_models(newest: Path) -> None:
    """Remove all models beside a new one but the last used few, and leftovers of killed processes."""
    models, leftovers = [], []
    for folder in newest.parent.iterdir():
        with suppress(OSError):
            last_used = folder.lstat().st_mtime
            if folder != newest and _is_model(folder):
                models.append((last_used, folder))
            elif re.fullmatch(r"\.part-[a-z0-9_]{8}", folder.name) and time.time() - last_used > 24 * 3600:
                leftovers.append(folder)
    models.sort(reverse=True)
    for folder in [*leftovers, *(folder for _, folder in models[MAX_MODELS - 1 :])]:
        shutil.rmtree(folder, ignore_errors=True)  # leaves links and files


def _is_model(folder: Path) -> bool:
    """Return whether a folder was written by :func:`_save`: users may have files of their own there."""
    return re.fullmatch("[0-9a-f]{64}", folder.name) is not None and all(
        path.name in (*_FILES, "sha256", _REFUSED) or path.name.startswith("checked-") for path in folder.iterdir()
    )


def _compared_file(folder: Path, shape: Sequence[int], precision: torch.dtype) -> Path:
    parts = [(folder / "sha256").read_text(), str(tuple(shape)), str(precision), _processor()]
    return folder / f"checked-{_sha256([part.encode() for part in parts])}"


def _processor() -> str:
    """Describe the processor that an engine's code is made for: its name and its instruction sets."""
    facts = {platform.machine(), platform.processor()}
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts |= {line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))}
    return "\n".join(sorted(facts))


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / "sha256").read_text() == _files_sha256(folder)
    except OSError:
        return False


def _files_sha256(folder: Path) -> str:
    return "\n".join(file_sha256(folder / name) for name in _FILES)


class _UnstableSettingError(Exception):
    """A setting has no text that is the same in every process and differs from all other settings' texts."""


def fingerprint(network: nn.Module, shape: Sequence[int]) -> str | None:
    """Compute the SHA-256 of all that a network's output depends on: weights, settings, code, versions, input shape.

    Args:
        network: any module.
        shape: of the input; its batch does not count.

    Returns:
        64 hexadecimal digits; None if a module has a setting that cannot be written as text, so that nothing may be
        kept.
    """
    lines = [f"{package} {version(package)}" for package in _PACKAGES] + [str(tuple(shape)[1:])]
    classes: set[type] = set()
    try:
        for name, module in network.named_modules():
            settings = {key: value for key, value in vars(module).items() if key not in _INTERNAL}
            lines.append(f"{name} {_qualified_name(type(module))} {_as_text(settings)}")
            classes |= set(type(module).__mro__)
        lines += [_sha256([path.read_bytes()]) for path in _source_files(classes)]
    except (_UnstableSettingError, RecursionError):  # as of objects that hold each other
        return None
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return _sha256(["\n".join(lines).encode(), *(part for pair in tensors.items() for part in _bytes_of(*pair))])


def _source_files(classes: set[type]) -> list[Path]:
    """List this package's files, and all beside the files of other classes."""
    folders, package = set(), Path(__file__).parents[1]
    for cls in classes:
        # the versions of these packages are in the fingerprint already
        if cls.__module__.partition(".")[0] in ("builtins", "torch", "timm", "monai"):
            continue
        try:
            folders.add(Path(inspect.getfile(cls)).parent)
        except (OSError, TypeError) as error:  # a class typed into an interpreter has no file
            raise _UnstableSettingError from error
    return sorted({*package.rglob("*.py"), *(path for folder in folders for path in folder.glob("*.py"))})


def _as_text(value: Any) -> str:
    """Write a value as text that is the same in every process."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(_as_text, value))})"
    if isinstance(value, (set, frozenset)):
        return f"set({', '.join(sorted(map(_as_text, value)))})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{_as_text(k)}: {_as_text(v)}' for k, v in value.items())})"
    if isinstance(value, partial):
        return f"partial({_as_text(value.func)}, {_as_text(value.args)}, {_as_text(value.keywords)})"
    if isinstance(value, Tensor):
        return _sha256(_bytes_of("", value))
    # an object that says what of it a pickle keeps, as a cache that keeps nothing
    if getattr(type(value), "__getstate__", None) is not getattr(object, "__getstate__", None):
        return f"{_qualified_name(type(value))}({_as_text(value.__getstate__())})"
    return _qualified_name(value)


def _qualified_name(value: Any) -> str:
    """Name where a class or function is defined."""
    name = getattr(value, "__qualname__", "<")
    bound = getattr(value, "__self__", None)
    if "<" in name or not (bound is None or inspect.ismodule(bound)):  # an object, a lambda, an object's method
        raise _UnstableSettingError
    return f"{value.__module__}.{name}"


def _bytes_of(name: str, value: Tensor) -> tuple[bytes, memoryview]:
    value = value.detach().cpu().contiguous()
    return f"{name} {value.dtype} {tuple(value.shape)}".encode(), value.flatten().view(torch.uint8).numpy().data


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
