"""Choose how many threads read and write beside the network: as many as it waits for, cores and memory allow."""

from __future__ import annotations

import os

from monai_vit3d.data.errors import UsageError
from monai_vit3d.memory_limits import available_bytes

MOST = 8  # threads, unless more are asked for: further ones wait for the disk


class Jobs:
    """The number of threads that read cases ahead of the network, and of those that write behind it.

    Args:
        given: the number, which then stays; None begins with 1 and adds one each time that the network had to wait,
            up to the cores of this process, while half of the memory that was free at the start still is.

    Raises:
        UsageError: less than 1.
    """

    def __init__(self, given: int | None = None) -> None:
        check_jobs(given)
        self.most = given or min(MOST, usable_cores())
        self.count = given or 1
        self._reserve = available_bytes() // 2

    def network_waited(self) -> None:
        """Add a thread, if one may be added."""
        if self.count < self.most and available_bytes() > self._reserve:
            self.count += 1


def check_jobs(given: int | None) -> None:
    """Refuse a number of threads that is less than 1; None leaves the choice to :class:`Jobs`.

    Raises:
        UsageError: it is.
    """
    if given is not None and given < 1:
        raise UsageError(f"jobs={given}; expected 1 or more, or nothing, for as many as the network waits for.")


def usable_cores() -> int:
    """Count the cores that this process may use, which a container or job may hold below the machine's."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
