"""End a training's error in one line that names the file or key; the traceback goes into the log."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monai_vit3d.data.errors import TrainingFailed, Vit3dError
from monai_vit3d.handlers.processes import error_chain
from monai_vit3d.memory_limits import out_of_memory

# not below this package's logger, whose lines are shown to the user
logger = logging.getLogger("vit3d.train")
_LONGEST = 300  # letters of another library's message
_REFERENCE = re.compile(r"__local_refs\['([^']*)'\]")  # how MONAI writes a reference @name of an expression


@contextmanager
def failing_in_one_line(config: Path, log: Path) -> Iterator[None]:
    """Turn errors within the ``with`` block into errors of this package.

    Args:
        config: the config that is run, for the message.
        log: where the traceback is, for the message.

    Raises:
        Vit3dError: an error of this package that came wrapped into MONAI's.
        TrainingFailed: any other error, quoted.
    """
    try:
        yield
    except Exception as error:
        logger.info("the training ended by an error", exc_info=error)
        chain = [*error_chain(error)]
        own = next((cause for cause in chain if isinstance(cause, Vit3dError)), None)
        if own is error:
            raise
        if own is not None:
            raise own from error
        raise TrainingFailed(f"{config}: {_text(chain)} The traceback is in {log}.") from error


def _text(chain: list[BaseException]) -> str:
    if any(out_of_memory(error) for error in chain):
        return "out of memory. Lower batch_size, or choose another device."
    outer, inner = chain[0], chain[-1]
    inner_text = f"{type(inner).__name__}: {_one_line(inner)}"
    # MONAI's messages go on with all keywords and advice for its debugger
    context = _one_line(outer).partition(" with keywords")[0]
    return f"{inner_text}." if inner is outer else f"{context}: {inner_text}."


def _one_line(error: BaseException) -> str:
    text = _REFERENCE.sub(r"@\1", " ".join(str(error).split()).rstrip("."))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
