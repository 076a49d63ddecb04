"""Begin and end a run of several processes, and end one by an error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.dummy import DummyProcess
from time import sleep
from types import TracebackType

import torch
import torch.distributed as dist
from monai.utils import MONAIEnvVars

from monai_vit3d.data.errors import Vit3dError

RELEASE_SECONDS = 0.2  # for Gloo's threads to release their tensors
LOADING_SECONDS = 30.0  # for CacheDataset's threads to finish loading


_kept = False  # whether a caller has several runs in one process group


def join_process_group() -> None:
    """Open the process group of torchrun's environment, unless it is open; for a bundle's ``initialize``."""
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


@contextmanager
def one_process_group() -> Iterator[None]:
    """Let all runs in the ``with`` block use one process group; one that they open is left at the end of the block.

    A group that is opened again after it was destroyed reads the addresses of the first one from torchrun's store, and
    may wait for them for ever.
    """
    global _kept
    _kept, was_open = True, dist.is_initialized()
    try:
        yield
    finally:
        _kept = False
    if dist.is_initialized() and not was_open:
        leave_process_group()


def leave_process_group() -> None:
    """Wait until every process is done, then destroy the process group; for a bundle's ``finalize``.

    ``torch.distributed.destroy_process_group`` alone loses files. ``torchrun`` stops all processes if one of them
    fails, and the first to end may: Gloo's threads live on under DistributedDataParallel, and one that still holds a
    tensor of the last exchange when Python shuts down aborts the process (pytorch/pytorch#190489). So no process leaves
    before the one that writes the last files, and the threads get time to release their tensors. Within
    :func:`one_process_group` the processes wait for each other, and the group stays.

    Raises:
        RuntimeError: another process ended, or did not arrive within the group's timeout (of torch.distributed).
    """
    threaded = dist.get_backend() == "gloo"
    dist.barrier()
    if _kept:
        return
    dist.destroy_process_group()
    if threaded:
        sleep(RELEASE_SECONDS)


def end_with_one_line() -> None:
    """Print only the message when an error of this package ends the process; for a bundle's ``initialize``.

    MONAI wraps errors in its transforms, engines and configs, so that the message which names the file stands in the
    middle of a long traceback. All other errors print their traceback, and these, too, with ``MONAI_DEBUG=true``.
    """
    sys.excepthook = _print_error


def _print_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    own = None if MONAIEnvVars.debug() else next((e for e in error_chain(error) if isinstance(e, Vit3dError)), None)
    if own is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        sys.stderr.write(f"{type(own).__name__}: {own}\n")
    for thread in threading.enumerate():
        if isinstance(thread, DummyProcess):  # of CacheDataset's pool: one that still loads would abort the process
            thread.join(LOADING_SECONDS)


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that it was raised from, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
