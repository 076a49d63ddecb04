"""What the command does to its process: PyTorch's tensors in huge pages, and out at once, with nothing lost."""

import gc
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from monai_vit3d.bundle.load import collecting_no_garbage
from tests.helpers import HIPPOCAMPUS

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CODE = """
import resource
from monai_vit3d.cli import main

main(["bundles"])  # whatever the verb
import torch

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**26)  # 256 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not PAGES.is_file() or "[madvise]" not in PAGES.read_text(), reason="Linux with madvised huge pages"
)
@pytest.mark.parametrize("wanted", [None, "0"])
def test_tensors_lie_in_huge_pages(wanted):
    env = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
    env |= {} if wanted is None else {"THP_MEM_ALLOC_ENABLE": wanted}
    command = [sys.executable, "-c", CODE]
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    small = 2**28 // 2**12
    faults = int(out.split()[-1])
    assert faults > 0.9 * small if wanted == "0" else faults < 0.5 * small


LAST_WORDS = """
import atexit, sys
from monai_vit3d.cli import run_process

class Freed:
    def __del__(self):
        print("freed")

freed = Freed()
atexit.register(print, "at exit")
sys.argv[1:] = ["info", sys.argv[1]]
run_process()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("bundle", "code"), [(HIPPOCAMPUS, 0), (HIPPOCAMPUS.parent, 2)])
def test_out_at_once_with_all_that_was_said(bundle, code):
    command = [sys.executable, "-c", LAST_WORDS, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True)  # standard output is a pipe, so it is buffered
    assert done.returncode == code
    assert ("hippocampus" in done.stdout) == (code == 0)
    assert done.stdout.endswith("at exit\n")
    assert "freed" not in done.stdout
    assert ("none of configs/inference.json" in done.stderr) == (code == 2)


def test_the_log_goes_to_standard_error():
    code = (
        "import logging; from monai_vit3d.cli import command\n"
        "command.main = lambda: logging.getLogger('monai_vit3d.inferers').info('exporting') or 3\n"
        "command.run_process()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "vit3d: exporting\n")


@pytest.mark.slow
def test_a_reader_that_has_gone_gets_no_traceback(tmp_path):
    (tmp_path / "image.nii.gz").write_bytes(b"")
    command = [sys.executable, "-m", "monai_vit3d.cli", "check", str(tmp_path / "image.nii.gz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


STREAMS = """
import logging, os, sys, warnings
from monai_vit3d.cli import command

def main():
    print("a\\x1b[31m\\u202eb")
    warnings.warn("c\\x1b]0;d\\x07")
    logging.getLogger("monai_vit3d").warning("e\\x9b2J")
    print("written", file=open(sys.argv[1], "w"))
    return 3

command.main = main
command.run_process()
"""


def test_nothing_raw_reaches_a_terminal(tmp_path):
    done = subprocess.run([sys.executable, "-c", STREAMS, str(tmp_path / "end")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "a\\x1b[31m\\u202eb\n")
    assert "c\\x1b]0;d\\x07" in done.stderr
    assert "vit3d: e\\x9b2J\n" in done.stderr
    assert not {"\x1b", "\x07", "\x9b"} & set(done.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are closed as a POSIX shell does it")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_end_no_run_and_are_not_written_into_files(tmp_path, closed):
    shell = f'"$@" {closed}'
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", STREAMS, str(tmp_path / "end")]
    assert subprocess.run(command, capture_output=True).returncode == 3
    assert (tmp_path / "end").read_text() == "written\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes as POSIX has them")
def test_readers_that_have_gone_end_no_run(tmp_path):
    command = [sys.executable, "-c", STREAMS, str(tmp_path / "end")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stderr.close()
        assert process.wait() == 3
    assert (tmp_path / "end").read_text() == "written\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full, as Linux has it")
def test_an_answer_that_could_not_be_written_is_no_success(tmp_path):
    code = STREAMS.replace("return 3", "return 0")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "end")], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert "standard output is not whole: [Errno 28]" in done.stderr
    assert (tmp_path / "end").exists()


SIGNALS = """
import os, sys, time
from monai_vit3d import cli
from monai_vit3d.cli import info
from monai_vit3d.data.files import replacing

def run(args):
    with replacing(args.bundle / "a.txt", "w") as file:
        file.write("half")
        os.kill(os.getpid(), NUMBER)
        time.sleep(SECONDS)
    return 0

info._run = run
sys.argv[1:] = ["info", *sys.argv[1:]]
cli.run_process()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
@pytest.mark.parametrize(("number", "ignored"), [(15, False), (1, False), (1, True)])
def test_a_signal_cleans_up(tmp_path, number, ignored):
    code = SIGNALS.replace("NUMBER", str(number)).replace("SECONDS", "0" if ignored else "600")
    command = [sys.executable, "-c", code, str(tmp_path)]
    # whatever the tests themselves were started with, as nohup
    heard = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=heard)
    if ignored:  # as under nohup
        assert (done.returncode, os.listdir(tmp_path)) == (0, ["a.txt"])
    else:
        assert done.returncode == 128 + number, done.stderr
        assert done.stderr == f"vit3d: ended by signal {number}; rerun with --resume to do what is left\n"
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again(enabled):
    def fail():
        with collecting_no_garbage():
            assert not gc.isenabled()
            raise ImportError

    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError):
            fail()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
