"""The end of a run: in several processes, and by an error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from multiprocessing.dummy import DummyProcess
from time import sleep
from types import TracebackType

import torch.distributed as dist
from monai.utils import MONAIEnvVars

from ..data.errors import Vit3dError

SECONDS_TO_LET_GO = 0.2
SECONDS_TO_LOAD = 30.0


def leave_process_group() -> None:
    """Wait until every process is done, then destroy the process group; for a bundle's ``finalize``.

    ``torch.distributed.destroy_process_group`` alone loses files. ``torchrun`` stops all processes where one of them
    ends badly, and the first to end may: Gloo's threads live on under DistributedDataParallel, and one that still
    holds a tensor of the last exchange when Python shuts down aborts the process (pytorch/pytorch#190489). So no
    process leaves before the one that writes the last files, and the threads get time to let go.

    Raises:
        RuntimeError: another process ended, or did not come within the group's timeout (of torch.distributed).
    """
    threaded = dist.get_backend() == "gloo"
    dist.barrier()
    dist.destroy_process_group()
    if threaded:
        sleep(SECONDS_TO_LET_GO)


def end_with_one_line() -> None:
    """Let an error of this package that ends the process show its message alone; for a bundle's ``initialize``.

    MONAI wraps what its transforms, engines and configs meet, so that the message which names the file stands in the
    middle of a long traceback. All other errors, and with ``MONAI_DEBUG=true`` these, too, show theirs.
    """
    sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    own = None if MONAIEnvVars.debug() else next((e for e in _causes(error) if isinstance(e, Vit3dError)), None)
    if own is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        sys.stderr.write(f"{type(own).__name__}: {own}\n")
    for thread in threading.enumerate():
        if isinstance(thread, DummyProcess):  # of CacheDataset's pool: one that still loads would abort the process
            thread.join(SECONDS_TO_LOAD)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
