"""Run by test_interrupted.py: cohorts killed at random moments, after each of which every file must be whole.

Importing torch and MONAI takes seconds, so one process does it once and forks a child for each run. No thread of
torch's has started by then, and none does: a pool of threads would not survive the fork.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from monai_vit3d import cli
from monai_vit3d.bundle import safety  # noqa: F401 - before the forks, not in each child
from monai_vit3d.pipeline import folder, run_cases  # noqa: F401
from monai_vit3d.pipeline.report import page  # noqa: F401
from tests.pipeline.tiny import arguments, leftovers, predict, products, records, statuses


def forked(command: Sequence[str], said: Path) -> int:
    """The command in a child, what it says going to a file; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        to = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(to, 1)
        os.dup2(to, 2)
        code = cli.main(list(command))
    except BaseException:  # a child must never go on as its parent
        traceback.print_exc()
    os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """Exit code of a child that ended by itself, None of one that was killed after so many seconds."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def check_whole(path: Path) -> None:
    """Raises unless a file can be read to its end."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        gzip.decompress(content)
    elif path.suffix == ".png":
        Image.open(io.BytesIO(content)).load()
    elif path.suffix == ".json":
        json.loads(content)
    elif path.suffix in (".csv", ".html"):
        assert content.endswith((b"\n", b"</html>")), path


def check(out: Path, *clean: dict[str, str]) -> Counter[str]:
    """All files under final names are whole and of one of these runs, and run.json calls done only what is."""
    for path in out.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            check_whole(path)
    found = products(out)
    wrong = {path: digest for path, digest in found.items() if all(run.get(path) != digest for run in clean)}
    assert not wrong, wrong
    if not (out / "run.json").exists():
        return Counter()
    for one in records(out).values():
        assert one["status"] in ("pending", "done", "skipped"), one
        if one["status"] != "pending":
            assert {path: found[path] for path in one["outputs"]} == one["outputs"], one
    return Counter(statuses(out).values())


def killed_often(scans: Path, bundles: Sequence[Path], work: Path, kills: int) -> dict[str, int]:
    """Runs with --resume, each killed, until so many were.

    When one gets through, the next is with the other bundle into the same OUT, over all that is there; then a new OUT.
    The time until a kill follows the machine: it grows with each kill and shrinks when a run gets through. It goes on
    until runs have been whole, partly done and cut off while they wrote, twice each.
    """
    clean, seconds = [], 0.0
    for bundle in bundles:
        start, out = time.perf_counter(), work / f"clean_{bundle.name}"
        assert os.waitpid(forked(arguments(scans, to=out, bundle=bundle), work / "said.txt"), 0)[1] == 0
        seconds = time.perf_counter() - start
        clean.append(products(out))
    rng = random.Random(0)
    seen = {"kills": 0, "whole runs": 0, "partly done": 0, "parts left": 0}
    while min(seen["kills"] - kills, *(seen[kind] - 2 for kind in seen if kind != "kills")) < 0:
        turn = seen["whole runs"] % 2
        out, allowed = work / f"out{seen['whole runs'] // 2}", clean[: turn + 1]
        options = ["--resume", "--jobs", str(rng.choice((1, 2)))]
        child = forked(arguments(scans, to=out, bundle=bundles[turn], options=options), work / "said.txt")
        code = ended(child, rng.uniform(0, 0.9 * seconds))
        seconds *= 1.02 if code is None else 0.9
        assert code in (None, 0), (work / "said.txt").read_text()[-2000:]
        states = check(out, *allowed)
        if code is None:
            seen["kills"] += 1
            seen["partly done"] += bool(states["pending"] and states["done"] + states["skipped"])
            seen["parts left"] += any(path.endswith(".part") for path in leftovers(out))
        else:
            check_ended(out, clean[turn])
            seen["whole runs"] += 1
    turn = seen["whole runs"] % 2
    out = work / f"out{seen['whole runs'] // 2}"
    assert predict(scans, to=out, bundle=bundles[turn], options=["--resume"]) == 0
    check_ended(out, clean[turn])
    return seen


def check_ended(out: Path, clean: dict[str, str]) -> None:
    """A run that has ended left what a clean run leaves, and nothing else."""
    assert products(out) == clean
    assert leftovers(out) == [], leftovers(out)
    assert not set(statuses(out).values()) - {"done", "skipped"}


def shard_killed(scans: Path, bundle: Path, work: Path) -> dict[str, int]:
    """The second of three shards is killed when it has begun; the others end, and --resume does what it left."""
    assert predict(scans, to=work / "clean", bundle=bundle) == 0
    out, clean = work / "shards", products(work / "clean")
    child = forked(arguments(scans, to=out, bundle=bundle, options=["--shard", "2/3"]), work / "said.txt")
    while not (out / ".run-2-of-3.json").exists():
        time.sleep(0.001)
    assert ended(child, 0) is None
    for part in ("1/3", "3/3"):
        assert predict(scans, to=out, bundle=bundle, options=["--shard", part]) == 0
    tables = {name: products(out)[name] for name in ("stats.csv", "volumes.csv")}
    states = check(out, {**clean, **tables})
    assert predict(scans, to=out, bundle=bundle, options=["--resume"]) == 0
    check_ended(out, clean)
    return {**states, "done at last": Counter(statuses(out).values())["done"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    scans, work = Path(sys.argv[1]), Path(sys.argv[2])
    bundles = list(map(Path, sys.argv[4:]))
    if sys.argv[3] == "shard":
        print(json.dumps(shard_killed(scans, bundles[0], work)))
    else:
        print(json.dumps(killed_often(scans, bundles, work, int(sys.argv[3]))))
