"""Find the memory that this process may still take: the machine's, or what a container, job or shell leaves of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

# files of a control group: limit, use, and those entries of memory.stat that are given back if needed
_CGROUP2 = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_CGROUP1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
_MIB = 2**20


def available_bytes() -> int:
    """Return the least of what the machine, control groups (v1 and v2), SLURM and ``ulimit -v`` leave."""
    import psutil

    process = psutil.Process()
    free = [int(psutil.virtual_memory().available), *cgroup_bytes(Path("/"))]
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            free.append(limit - int(process.memory_info().vms))
    job_limit = slurm_bytes(os.environ)
    if job_limit is not None:
        free.append(job_limit - int(process.memory_info().rss))
    return max(0, min(free))


def cgroup_bytes(root: Path) -> Iterator[int]:
    """Yield what each control group of this process leaves, the groups around it included.

    A container may see its own group as the root, or the host's path of it, which is not there: then the mount's root
    counts.

    Args:
        root: ``/``, where ``proc`` and ``sys`` lie.
    """
    for mount, kind, inside in _mounts(root):
        names = _CGROUP2 if kind == "cgroup2" else _CGROUP1
        group = _own_group(root, kind)
        with contextlib.suppress(ValueError):
            group = group.relative_to(inside) if group.is_absolute() and inside != PurePosixPath("/") else group
        parts = [part for part in group.parts if part not in ("/", "..")]
        for count in range(len(parts), -1, -1):
            left = _left(mount.joinpath(*parts[:count]), *names)
            if left is not None:
                yield left


def slurm_bytes(environment: Mapping[str, str]) -> int | None:
    """Read what SLURM gave this job on this node, in bytes; None outside of a job, or without a limit.

    Args:
        environment: with SLURM_MEM_PER_NODE, or SLURM_MEM_PER_CPU and SLURM_CPUS_ON_NODE, or SLURM_MEM_PER_GPU and
            SLURM_GPUS_ON_NODE, in MiB (https://slurm.schedmd.com/sbatch.html). 0 is all of the node's.
    """

    def number(name: str) -> int:
        text = environment.get(name, "").strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0

    if "SLURM_JOB_ID" not in environment:
        return None
    limits = [
        number("SLURM_MEM_PER_NODE"),
        number("SLURM_MEM_PER_CPU") * number("SLURM_CPUS_ON_NODE"),
        number("SLURM_MEM_PER_GPU") * number("SLURM_GPUS_ON_NODE"),
    ]
    return min((limit * _MIB for limit in limits if limit), default=None)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a lack of memory; PyTorch's own allocator for CPUs raises a RuntimeError."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _mounts(root: Path) -> Iterator[tuple[Path, str, PurePosixPath]]:
    """Yield mount points of hierarchies that count memory, their kind, and the group that each shows as its root."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/mountinfo").read_text(errors="replace").splitlines():
            fields, _, more = line.partition(" - ")
            _, _, _, inside, place, *_ = [*fields.split(), "", "", "", "", ""]
            kind, _, options = [*more.split(), "", "", ""][:3]
            if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
                yield root / place.lstrip("/"), kind, PurePosixPath(inside)


def _own_group(root: Path, kind: str) -> PurePosixPath:
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(errors="replace").splitlines():
            number, controllers, path = [*line.split(":", 2), "", ""][:3]
            if (number == "0" and not controllers) if kind == "cgroup2" else "memory" in controllers.split(","):
                return PurePosixPath(path)
    return PurePosixPath("/")


def _left(group: Path, limit_name: str, used_name: str, cached_names: tuple[str, ...]) -> int | None:
    """Limit less use; None where there is no limit ("max"), no such group, or numbers that cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((group / name).read_text()) for name in (limit_name, used_name))
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        sizes = {fields[0]: int(fields[1]) for fields in lines if len(fields) == 2}
        return limit - used + sum(sizes.get(name, 0) for name in cached_names)
    return None
