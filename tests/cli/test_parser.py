"""What the command says of misspelt verbs and flags, and of itself."""

import subprocess
import sys

import pytest

import monai_vit3d
from monai_vit3d import cli


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["predcit", "in"], "predict"),
        (["predict", "in", "-o", "out", "--bundel", "b"], "--bundle"),
        (["predict", "in", "-o", "out", "--bundle", "b", "--uncertanty=entropy"], "--uncertainty"),
        (["train", "b", "--fould", "1"], "--fold"),
        (["--versoin"], "--version"),
    ],
)
def test_what_was_meant_is_said(words, meant, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"(did you mean {meant}?)\n")


@pytest.mark.parametrize(
    "words", [["predict", "in"], ["xyz"], [], ["predict", "in", "-o", "out", "--bundle", "b", "--zzz"]]
)
def test_nothing_is_guessed_where_nothing_is_near(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "did you mean" not in capsys.readouterr().err


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "monai_vit3d", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"vit3d {monai_vit3d.__version__}\n"), done.stderr
