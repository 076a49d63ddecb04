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
    assert capsys.readouterr().err.count(f" Did you mean {meant}? ") == 1


@pytest.mark.parametrize(
    "words", [["predict", "in"], ["xyz"], [], ["predict", "in", "-o", "out", "--bundle", "b", "--zzz"]]
)
def test_nothing_is_guessed_where_nothing_is_near(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "Did you mean" not in capsys.readouterr().err


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


def line_of(capsys, words):
    """The one line that a command line which cannot be parsed ends in."""
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("name", "verb"), {**verbs_of(build_parser()), "vit3d": build_parser()}.items(), ids=str)
def test_each_missing_argument_is_named_with_its_meaning_and_an_example(name, verb, capsys):
    required = [action for action in verb._actions if action.required]
    if not required:
        return
    line = line_of(capsys, name.split()[1:])
    assert line.startswith(f"{name}: missing: ")
    assert line.endswith(f". {name} --help says more.")
    for action in required:
        assert (action.option_strings or [action.metavar])[0] in line
        assert action.metavar is None or action.metavar in line
        assert action.help is None or action.help in line
    example = line.partition("For example: ")[2].partition(f". {name} --help")[0]
    build_parser().parse_args(shlex.split(example)[1:])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--jobs", "two"], "--jobs: 'two' came; expected --jobs N (threads that read ahead"),
        (["--folds", "a"], "--folds: 'a' came; expected --folds 0,2 (which trained folds"),
        (["--mesh"], "--mesh: no value came; expected --mesh MESH (a surface of each label"),
        (["--mesh", "obj"], "--mesh: invalid choice: 'obj' (choose from"),
        (["--resume", "--overwrite"], "not allowed with argument --resume"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(words, said, capsys):
    line = line_of(capsys, ["predict", "in", "-o", "out", "--bundle", "b", *words])
    assert line.startswith("vit3d predict: ")
    assert said in line


def test_more_than_a_verb_takes_is_said_with_an_example(capsys):
    line = line_of(capsys, ["info", "head_hippocampus", "and", "more"])
    assert line.startswith("vit3d info: and more: more than it takes. For example: vit3d info head_hippocampus.")


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "monai_vit3d", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"vit3d {monai_vit3d.__version__}\n"), done.stderr
