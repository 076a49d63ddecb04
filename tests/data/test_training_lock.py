"""Two trainings cannot write one folder; one that ended, or crashed, leaves it free."""

import os
import subprocess
import sys

import pytest

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.training_lock import lock_training, unlock_training

OTHER = """
import os, sys
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.training_lock import lock_training

try:
    lock_training(sys.argv[1])
except UsageError as error:
    sys.exit(str(error))
os.kill(os.getpid(), int(sys.argv[2]))
"""


def other(path, number=0):
    """Another process that trains into it, and is killed by a signal; what it said."""
    return subprocess.run([sys.executable, "-c", OTHER, str(path), str(number)], capture_output=True, text=True)


@pytest.mark.slow
def test_another_process_is_refused_until_this_one_has_ended(tmp_path):
    path = tmp_path / "new" / "last.pt"
    lock_training(path)
    lock_training(path)  # as a notebook does after an error
    try:
        done = other(path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert f"{path}: another training is writing here" in done.stderr
        (tmp_path / "link").symlink_to(tmp_path / "new")
        assert other(tmp_path / "link" / "last.pt").returncode == 1
        assert other(tmp_path / "elsewhere" / "last.pt").returncode == 0
    finally:
        unlock_training(path)
    assert other(path).returncode == 0


def test_a_crash_leaves_it_free(tmp_path):
    assert other(tmp_path / "last.pt", 9).returncode == -9
    lock_training(tmp_path / "last.pt")
    unlock_training(tmp_path / "last.pt")


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".last.pt.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match="a link where a lock file is expected"):
        lock_training(tmp_path / "last.pt")
    assert (tmp_path / "victim").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == [".last.pt.lock", "victim"]


def test_unlocking_what_was_never_locked_is_nothing(tmp_path):
    unlock_training(tmp_path / "last.pt")
