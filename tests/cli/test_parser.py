"""What the command says of misspelt verbs and flags, and of itself."""

import argparse
import shlex
import subprocess
import sys

import pytest

import monai_vit3d
from monai_vit3d import cli
from monai_vit3d.cli.command import build_parser


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


def verbs_of(parser, name="vit3d"):
    ways = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not ways:
        return {name: parser}
    return {key: one for way, sub in ways[0].items() for key, one in verbs_of(sub, f"{name} {way}").items()}


@pytest.mark.parametrize(("name", "verb"), verbs_of(build_parser()).items(), ids=lambda one: one)
def test_each_verbs_help_ends_with_examples_that_it_takes(name, verb):
    title, *lines = verb.format_help().rpartition("\n\n")[2].splitlines()
    assert title == ("Example:" if len(lines) == 1 else "Examples:")
    for line in lines:
        assert len(line) <= 110
        assert line.startswith(f"  {name}")
        build_parser().parse_args(shlex.split(line)[1:])


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "monai_vit3d", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"vit3d {monai_vit3d.__version__}\n"), done.stderr
