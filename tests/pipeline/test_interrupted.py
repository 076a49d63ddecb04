"""Runs that are killed, short of disk or spread over processes: no half file, and at the end the same bytes."""

import contextlib
import json
import os
import shutil
import struct
import subprocess

import pytest

from monai_vit3d.cli import progress
from tests.helpers import ROOT, run_warm, start_python
from tests.pipeline.kill_loop import check_whole
from tests.pipeline.tiny import arguments, leftovers, predict, products, records, statuses, write_bundle, write_images

fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed as POSIX does it")
KILLS = 8


def kill_loop(*command):
    """What tests/pipeline/kill_loop.py found; its children's complaints are its own."""
    code, said = run_warm(ROOT / "tests" / "pipeline" / "kill_loop.py", *command)
    assert code == 0, said[-3000:]
    return json.loads(said.splitlines()[-1])


@pytest.mark.slow
def test_killed_at_any_moment_every_file_is_whole_and_resume_ends_as_a_clean_run(tmp_path, cohort, tiny_bundle):
    other = write_bundle(tmp_path / "other", 0.3, 0.6)
    found = kill_loop(cohort, tmp_path, KILLS, tiny_bundle, other)
    assert found["kills"] >= KILLS
    # the moments were not all before the work or after it
    assert min(found["whole runs"], found["partly done"], found["parts left"]) >= 2, found


@pytest.mark.slow
def test_a_killed_shard_is_pending_until_resumed(tmp_path, cohort, tiny_bundle):
    assert kill_loop(cohort, tmp_path, "shard", tiny_bundle) == {"done": 4, "pending": 2, "done at last": 2}


# a full disk


@pytest.fixture
def disk(tmp_path):
    """A folder with a disk of its own and a function that sets its size in KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")

    def resize(kib, *options):
        command = [mount, "-t", "tmpfs", "-o", ",".join([*options, f"size={kib}k"]), "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    try:
        resize(64)
    except (TypeError, OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder, lambda kib: resize(kib, "remount")
    subprocess.run(["umount", str(folder)], check=True)


def whole(out):
    """Every file under a final name can be read to its end, and nothing else is there."""
    for path in out.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            check_whole(path)
    assert leftovers(out) == []


@pytest.mark.slow
@pytest.mark.parametrize("kib", [16, 192])
def test_a_full_disk_fails_files_and_leaves_no_half_ones(disk, cohort, clean_run, tiny_bundle, capsys, kib):
    folder, resize = disk
    resize(kib)
    assert predict(cohort, to=folder / "out", bundle=tiny_bundle) == 1
    assert "No space left on device" in capsys.readouterr().err
    whole(folder / "out")
    clean = products(clean_run)
    for one in records(folder / "out").values():
        if one["status"] == "failed":
            assert one["input"] in one["error"]
            assert f"No space left on device: '{folder / 'out'}" in one["error"]
        if one["status"] == "done":
            assert all(clean[path] == digest for path, digest in one["outputs"].items())
    resize(8000)
    assert predict(cohort, to=folder / "out", bundle=tiny_bundle, options=["--resume"]) == 0
    assert products(folder / "out") == clean
    assert leftovers(folder / "out") == []


@pytest.mark.slow
def test_a_disk_that_is_full_already_keeps_the_earlier_run(disk, cohort, clean_run, tiny_bundle, capsys):
    folder, resize = disk
    resize(8000)
    shutil.copytree(clean_run, folder / "out")
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    record = (folder / "out" / "run.json").read_bytes()
    for option in ("--resume", "--overwrite"):
        assert predict(cohort, to=folder / "out", bundle=tiny_bundle, options=[option]) == 1
        err = capsys.readouterr().err
        assert f"vit3d: [Errno 28] No space left on device: '{folder / 'out' / 'run.json'}'" in err
        assert (folder / "out" / "run.json").read_bytes() == record
        assert products(folder / "out") == products(clean_run)
    (folder / "filler").unlink()
    assert predict(cohort, to=folder / "out", bundle=tiny_bundle, options=["--resume"]) == 0
    assert set(statuses(folder / "out").values()) == {"skipped"}


# many processes


@pytest.mark.slow
def test_torchrun_does_all_files_and_ends_with_1_if_one_failed(tmp_path, cohort, clean_run, tiny_bundle):
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(cohort, scans)
    command = ["-m", "monai_vit3d.cli", *arguments(scans, to=out, bundle=tiny_bundle, options=["--overwrite"])]
    code, said = run_warm(*command, processes=2)
    assert code == 0, said
    assert products(out) == products(clean_run)
    assert set(statuses(out).values()) == {"done"}
    assert leftovers(out) == []
    (scans / "case00.nii.gz").write_bytes(b"")  # of the first process, which is the first to end
    code, said = run_warm(*command, processes=2)  # as torchrun does, it ends the other process when one has failed
    assert code == 1, said
    assert [name for name, status in statuses(out).items() if status != "done"] == ["case00"]
    assert "empty" in records(out)["case00"]["error"]
    assert products(out).keys() == products(clean_run).keys()
    assert "case00" not in (out / "stats.csv").read_text()
    assert "5 done" in (out / "report.html").read_text()


# a terminal


def on_a_terminal(command):
    """Exit code of the command, and all that it put on a terminal."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # lines, columns
    with start_python("-m", "monai_vit3d.cli", *command, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        said = b""
        with contextlib.suppress(OSError):  # the other end was closed
            while block := os.read(controller, 4096):
                said += block
    os.close(controller)
    return process.returncode, said.decode()


@pytest.mark.slow
def test_a_bar_and_any_name_on_a_terminal_of_ascii(tmp_path, tiny_bundle, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    scans, out = tmp_path / "scans", tmp_path / "größe"
    write_images(scans, 2)
    for name in ("bé", "b\udce9"):
        (scans / f"{name}.nii.gz").write_bytes(b"")
    code, said = on_a_terminal(arguments(scans, to=out, bundle=tiny_bundle))
    assert code == 1
    assert sorted(statuses(out).values()) == ["done", "done", "failed", "failed"]
    assert "4/4 [" in said
    assert "file/s" in said
    assert "1/4 done" not in said  # what stands where there is no terminal
    assert said.count("  failed: ") == 2
    assert "2 done (2 to look at: labels may be wrong), 0 skipped, 2 failed: " in said


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(tmp_path, cohort, tiny_bundle, clean_run, monkeypatch, capsys):
    def interrupted(progress, record):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "__call__", interrupted)
        assert predict(cohort, to=out, bundle=tiny_bundle) == 130
    assert "--resume" in capsys.readouterr().err
    whole(out)
    assert "done" in statuses(out).values()
    assert "pending" in statuses(out).values()
    assert predict(cohort, to=out, bundle=tiny_bundle, options=["--resume"]) == 0
    assert products(out) == products(clean_run)
