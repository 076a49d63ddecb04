"""How far a run is: files, and the windows of the file that the network works on."""

import os
import re
import select
import struct
import subprocess
import sys

import pytest

from monai_vit3d.pipeline.folder import predict_folder
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
