"""How far a run is: files, and the windows of the file that the network works on."""

import os
import re
import select
import struct
import subprocess
import sys
from argparse import Namespace

import pytest

from monai_vit3d.cli.progress import Progress
from monai_vit3d.cli.verbosity import heeding_verbosity
from monai_vit3d.pipeline.folder import plan_folder, predict_folder
from tests.helpers import ONE_THREAD, ROOT
from tests.pipeline.tiny import arguments, write_bundle, write_images

pytestmark = pytest.mark.slow
fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")
pty = pytest.importorskip("pty", reason="POSIX's terminals")
TORCH = ("--backend", "torch")


def test_windows_are_told_batch_by_batch(tmp_path):
    write_images(tmp_path / "in", 2, (48, 40, 36))
    told = []
    options = {"device": "cpu", "backend": "torch", "on_window": lambda done, total: told.append((done, total))}
    predict_folder(tmp_path / "in", tmp_path / "out", write_bundle(tmp_path / "bundle"), **options)
    (total,) = {total for _, total in told}
    batches = [min(4 * i, total) for i in range(1, -(-total // 4) + 1)]
    assert [done for done, _ in told] == 2 * batches


def test_runs_one_after_the_other_are_counted_anew(tmp_path, capsys):
    """As the folds of a bundle are that ``vit3d evaluate`` predicts."""
    record = {"status": "done", "name": "a", "seconds": 1.0, "warnings": []}
    bundle = write_bundle(tmp_path / "bundle")
    with heeding_verbosity(Namespace(quiet=0, verbose=0, log_file=None)), Progress() as progress:
        for cases in (2, 3):
            write_images(tmp_path / str(cases), cases)
            progress.begin(plan_folder(tmp_path / str(cases), tmp_path / "out", bundle))
            for _ in range(cases):
                progress(record)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["1/2", "2/2", "1/3", "2/3", "3/3"]


def test_a_terminal_shows_files_and_windows(tmp_path):
    write_images(tmp_path / "in", 2, (48, 40, 36))
    words = arguments(tmp_path / "in", to=tmp_path / "out", bundle=write_bundle(tmp_path / "bundle"), options=TORCH)
    terminal, of_command = pty.openpty()
    fcntl.ioctl(of_command, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environment = {**os.environ, **ONE_THREAD, "COLUMNS": "100"}
    command = [sys.executable, "-m", "monai_vit3d", *words]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=of_command) as process:
        os.close(of_command)
        said = b""
        while process.poll() is None or select.select([terminal], [], [], 0)[0]:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    said += os.read(terminal, 65536)
                except OSError:  # Linux' word for the end
                    break
    os.close(terminal)
    assert process.wait() == 0
    text = said.decode()
    assert re.search(r"this file: +\d+%.*/\d+ \[[\d:]+<", text)  # with the time that is left
    assert re.search(r"100%.* 2/2 \[", text)
