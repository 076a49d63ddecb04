"""Divide cases among the processes that torchrun started, and end together."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class TorchrunProcess:
    """This process, one of those that torchrun started or the only one.

    Each process records its own part of the cases in OUT, so one that dies takes no other's work with it. Only the end
    is shared: torchrun stops all processes when one ends with an error, so they count in its store how many have ended,
    and end together. Nothing else is exchanged, so there is no process group, neither gloo nor nccl.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        device: this process' GPU, or None.
    """

    rank: int = 0
    size: int = 1
    device: str | None = None

    @classmethod
    def from_environment(cls) -> TorchrunProcess:
        """Read RANK, WORLD_SIZE and LOCAL_RANK, which torchrun sets."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1 or "RANK" not in os.environ:
            return cls()
        import torch

        gpu = torch.cuda.is_available()
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}" if gpu else None
        return cls(int(os.environ["RANK"]), size, device)

    @property
    def shard(self) -> tuple[int, int]:
        """This process' part of the cases, from 1."""
        return self.rank + 1, self.size

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def all_reduce_sum(self, number: int) -> int:
        """All-reduce (sum); blocks until all processes have arrived."""
        if self.size == 1:
            return number
        from torch.distributed.rendezvous import rendezvous

        store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=5)))

        def wait_for_all(key: str) -> None:
            while store.add(key, 0) < self.size:
                time.sleep(POLL_SECONDS)

        store.add("sum", number)
        store.add("ended", 1)
        wait_for_all("ended")
        total = int(store.add("sum", 0))
        store.add("left", 1)
        if self.first:  # without torchrun the store is this process'
            wait_for_all("left")
        return total
