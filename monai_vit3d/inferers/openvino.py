"""OpenVINO: a network exported once, kept on disk under the SHA-256 of all that it was made from."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import platform
import re
import shutil
import sys
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
from torch.export import Dim
from torch.nn.functional import avg_pool3d

from ..data.files import file_sha256

logger = logging.getLogger(__name__)

MAX_MODELS = 8  # that are kept: weights times sizes of the window

_FILES = ("model.xml", "model.bin")
_PACKAGES = ("openvino", "torch", "timm", "monai", "monai-vit3d")
_PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}
_INTERNAL = ("_parameters", "_buffers", "_modules", "training")


class OpenVINOEngine:
    """A network compiled by OpenVINO for one shape of input, on the CPU.

    Args:
        network: one tensor in, one tensor out; its weights are copied.
        shape: of the input, ``(B, C, H, W, D)``.
        precision: float32, or bfloat16 for the products (what the processor does not have is done in float32).
        cache_dir: where the exported model is kept for the next time; None keeps none.

    Attributes:
        mark: the file that is made once this engine's answer was seen to be PyTorch's; it lies beside the model, and
            holds for its files, the shape, the precision and the processor. None where no model is kept.
    """

    def __init__(
        self, network: nn.Module, shape: Sequence[int], precision: torch.dtype, cache_dir: str | Path | None = None
    ) -> None:
        model, place = _kept(network, tuple(shape), None if cache_dir is None else Path(cache_dir))
        self.mark = None if place is None else _mark(place, shape, precision)
        model.reshape(list(shape))
        # as many threads as PyTorch has; LATENCY: one input at a time
        config = {
            "INFERENCE_PRECISION_HINT": _PRECISION[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.model = _openvino().Core().compile_model(model, "CPU", config)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the network on ``x``; the output is float32 and the caller's own."""
        found = self.model(x.detach().contiguous().numpy(), share_inputs=True)
        return torch.from_numpy(found[0])


def _openvino() -> Any:
    """OpenVINO, without the package by which it tells its makers of every import and export."""
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # not to be had: OpenVINO does without
        try:
            import openvino
        finally:
            del sys.modules["openvino_telemetry"]
    import openvino

    return openvino


def _kept(network: nn.Module, shape: tuple[int, ...], cache: Path | None) -> tuple[Any, Path | None]:
    """The exported model and its folder: from the cache if it is there whole; None where nothing can be kept."""
    name = None if cache is None else fingerprint(network, shape)
    if cache is None or name is None:
        return _exported(network, shape), None
    place = cache / name
    with suppress(OSError):
        os.utime(place)  # before it is read: another process may tidy up
    if not _is_whole(place):
        logger.info("exporting the network for OpenVINO; later runs find it in %s", place)
        model = _exported(network, shape)
        try:
            _keep(model, place)
        except OSError as error:
            logger.warning("%s: no exported model can be kept there (%s)", cache, error.strerror or error)
            return model, None
        _tidy(place)
    return _openvino().Core().read_model(place / "model.xml"), place


def _keep(model: Any, place: Path) -> None:
    """Write a model whole or not at all; what lies there is damaged, and makes room."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".part-") as folder:
        made = Path(folder) / "model"
        made.mkdir()
        _openvino().save_model(model, made / "model.xml", compress_to_fp16=False)
        (made / "sha256").write_text(_files_sha256(made))
        with suppress(OSError):
            place.rename(Path(folder) / "damaged")
        try:
            made.rename(place)
        except OSError:  # another process was faster: its model is the same
            if not _is_whole(place):
                raise


def _tidy(newest: Path) -> None:
    """Remove the models beside a new one but the last used, and what processes that were killed have left."""
    used, left = [], []
    for folder in newest.parent.iterdir():
        with suppress(OSError):
            since = folder.lstat().st_mtime
            if folder != newest and _is_model(folder):
                used.append((since, folder))
            elif re.fullmatch(r"\.part-[a-z0-9_]{8}", folder.name) and time.time() - since > 24 * 3600:
                left.append(folder)
    used.sort(reverse=True)
    for folder in [*left, *(folder for _, folder in used[MAX_MODELS - 1 :])]:
        shutil.rmtree(folder, ignore_errors=True)  # leaves links and files


def _is_model(folder: Path) -> bool:
    """Whether a folder was written by :func:`_keep`: users may have files of their own there."""
    return re.fullmatch("[0-9a-f]{64}", folder.name) is not None and all(
        path.name in (*_FILES, "sha256") or path.name.startswith("checked-") for path in folder.iterdir()
    )


def _mark(place: Path, shape: Sequence[int], precision: torch.dtype) -> Path:
    said = [(place / "sha256").read_text(), str(tuple(shape)), str(precision), _processor()]
    return place / f"checked-{_sha256([part.encode() for part in said])}"


def _processor() -> str:
    """What an engine's code is made for: the processor's name and what it can do."""
    said = {platform.machine(), platform.processor()}
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said |= {line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))}
    return "\n".join(sorted(said))


def _exported(network: nn.Module, shape: tuple[int, ...]) -> Any:
    # 2: a batch of 1 would be taken for a constant
    example = torch.zeros((2, *shape[1:]))
    with torch.autocast("cpu", enabled=False):  # both steps trace, and would take its casts for the network's
        program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},))
        program = program.run_decompositions({torch.ops.aten.instance_norm.default: _instance_norm})
        return _openvino().convert_model(program)


def _instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, *options: Any
) -> Tensor:
    """Means of up to 8 neighbours along each axis, then of these: OpenVINO loses digits in one sum of many voxels.

    Sides without a divisor up to 8 are summed as they are.
    """
    by_itself, _, eps, _ = options
    if not by_itself or x.dim() != 5:
        return NotImplemented
    kernel = [max(n for n in range(1, 9) if size % n == 0) for size in x.shape[2:]]

    def average(values: Tensor) -> Tensor:
        return avg_pool3d(values, kernel).mean((2, 3, 4), keepdim=True)

    x = x - average(x)
    x = x / torch.sqrt(average(x * x) + eps)
    shape = (-1, 1, 1, 1)
    return x if weight is None or bias is None else x * weight.reshape(shape) + bias.reshape(shape)


def _is_whole(place: Path) -> bool:
    try:
        return (place / "sha256").read_text() == _files_sha256(place)
    except OSError:
        return False


def _files_sha256(place: Path) -> str:
    return "\n".join(file_sha256(place / name) for name in _FILES)


class _Unreadable(Exception):
    """A setting that cannot be told apart from another one."""


def fingerprint(network: nn.Module, shape: Sequence[int]) -> str | None:
    """SHA-256 of all that a network's answer depends on: weights, settings, code, versions, the input's shape.

    Args:
        network: any module.
        shape: of the input; its batch does not count.

    Returns:
        64 hexadecimal digits; None if a module has a setting that cannot be read, so that nothing may be kept.
    """
    said = [f"{package} {version(package)}" for package in _PACKAGES] + [str(tuple(shape)[1:])]
    kinds: set[type] = set()
    try:
        for name, module in network.named_modules():
            settings = {key: value for key, value in vars(module).items() if key not in _INTERNAL}
            said.append(f"{name} {_name(type(module))} {_plainly(settings)}")
            kinds |= set(type(module).__mro__)
        said += [_sha256([path.read_bytes()]) for path in _sources(kinds)]
    except _Unreadable:
        return None
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return _sha256(["\n".join(said).encode(), *(part for pair in tensors.items() for part in _bytes_of(*pair))])


def _sources(kinds: set[type]) -> list[Path]:
    """This package's code, and that of classes and of all that lies beside them."""
    folders, own = set(), Path(__file__).parents[1]
    for kind in kinds:
        # what has a version is named by it
        if kind.__module__.partition(".")[0] in ("builtins", "torch", "timm", "monai"):
            continue
        try:
            folders.add(Path(inspect.getfile(kind)).parent)
        except (OSError, TypeError) as error:  # of a class that was typed in, no code can be read
            raise _Unreadable from error
    return sorted({*own.rglob("*.py"), *(path for folder in folders for path in folder.glob("*.py"))})


def _plainly(value: Any) -> str:
    """A value in words that are the same in every process."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(_plainly, value))})"
    if isinstance(value, (set, frozenset)):
        return f"set({', '.join(sorted(map(_plainly, value)))})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{_plainly(k)}: {_plainly(v)}' for k, v in value.items())})"
    if isinstance(value, partial):
        return f"partial({_plainly(value.func)}, {_plainly(value.args)}, {_plainly(value.keywords)})"
    if isinstance(value, Tensor):
        return _sha256(_bytes_of("", value))
    return _name(value)


def _name(value: Any) -> str:
    """Where a class or function is defined."""
    name = getattr(value, "__qualname__", "<")
    bound = getattr(value, "__self__", None)
    if "<" in name or not (bound is None or inspect.ismodule(bound)):  # an object, a lambda, an object's method
        raise _Unreadable
    return f"{value.__module__}.{name}"


def _bytes_of(name: str, value: Tensor) -> tuple[bytes, memoryview]:
    value = value.detach().cpu().contiguous()
    return f"{name} {value.dtype} {tuple(value.shape)}".encode(), memoryview(value.flatten().view(torch.uint8).numpy())


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
