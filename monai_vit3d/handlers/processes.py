"""The end of a run in several processes."""

from time import sleep

import torch.distributed as dist

SECONDS_TO_LET_GO = 0.2


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
