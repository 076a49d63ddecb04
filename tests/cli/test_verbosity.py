"""How much the command says: on the screen by -q and -v, in the log file all of it, and as before without flags."""

import logging
import os
import re
import subprocess
import sys
import warnings

import pytest

from monai_vit3d.cli import main
from monai_vit3d.cli.command import VERBS, build_parser
from monai_vit3d.cli.verbosity import VERBOSITY, command_log
from tests.pipeline.tiny import arguments, write_bundle, write_images


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Predict a whole file, a damaged one and one that is no case; returns what was printed to standard error."""
    root = tmp_path_factory.mktemp("run")
    images = write_images(root / "in", 2, (24, 20, 18))
    images[1].write_bytes(images[1].read_bytes()[:-20])
    (root / "in" / "notes.txt").write_text("no image")
    bundle = write_bundle(root / "bundle")

    def predict(capsys, *flags):
        out = root / f"out{len([*root.iterdir()])}"
        capsys.readouterr()
        assert main(arguments(root / "in", to=out, bundle=bundle, options=flags)) == 1
        return capsys.readouterr().err.splitlines()

    return predict


def kinds(lines):
    """What kinds of lines there are, of those that are no part of a traceback."""
    found = {
        "note": r"vit3d: .*passed over", "progress": r"\d/2 (done|failed) ", "failure": r"  failed: ",
        "stages": r"  case00: read [\d.]+ s, preprocess ", "traceback": r"Traceback",
    }  # fmt: skip
    return {kind for kind, pattern in found.items() if any(re.match(pattern, line) for line in lines)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"note", "progress", "failure"}),
        (["-q"], {"failure"}),
        (["-qq"], {"failure"}),
        (["-v"], {"note", "progress", "failure", "stages"}),
        (["-q", "-v"], {"note", "progress", "failure"}),
    ],
)
def test_what_is_said(run, capsys, flags, expected):
    assert kinds(run(capsys, *flags)) == expected


@pytest.mark.slow
def test_the_log_file_has_all_with_times_and_levels(run, capsys, tmp_path):
    file = tmp_path / "logs" / "run.log"
    assert kinds(run(capsys, "-q", "--log-file", str(file))) == {"failure"}
    text = file.read_text(encoding="utf-8")
    lines = [
        re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+) vit3d.command: (.*)", line)
        for line in text.splitlines()
    ]
    assert {(match[1], *kinds([match[2]])) for match in lines if kinds([match[2]])} == {
        ("INFO", "note"), ("INFO", "progress"), ("ERROR", "failure"),
    }  # fmt: skip
    before = len(text)
    run(capsys, "-v", "--log-file", str(file))
    more = file.read_text(encoding="utf-8")[before:]
    assert "DEBUG monai_vit3d.pipeline.case_runner: case01 failed\nTraceback" in more
    assert "DEBUG vit3d.command:   case00: read" in more


@pytest.mark.slow
def test_loggers_are_left_as_they_were(run, capsys, tmp_path):
    logs = [command_log, *map(logging.getLogger, ("monai_vit3d", "py.warnings"))]
    before = [(log.level, [*log.handlers]) for log in logs]
    showing = warnings.showwarning
    run(capsys, "-vv", "--log-file", str(tmp_path / "x.log"))
    assert [(log.level, [*log.handlers]) for log in logs] == before
    assert warnings.showwarning is showing


def test_a_log_file_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["bundles", "--log-file", str(tmp_path / "file" / "x.log")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vit3d: --log-file: ")
    assert line.endswith(". Choose another file.")


def test_the_command_error_has_its_traceback_in_the_file(capsys, tmp_path):
    file = tmp_path / "x.log"
    words = ["info", str(tmp_path / "none"), "--log-file", str(file)]
    assert main([*words, "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert "DEBUG vit3d.command: The error's traceback:\nTraceback" in file.read_text()
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


WARNS = """
import logging, sys, warnings
from monai_vit3d.cli import command

def run(args):
    warnings.warn("of Python")
    logging.getLogger("monai_vit3d").warning("of the package")
    logging.getLogger("monai_vit3d").info("a note")
    return 0

command.info._run = run
command.run_process()
"""


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], {"of Python", "of the package", "a note"}),
        (["-q"], {"of Python", "of the package"}),
        (["-qq"], set()),
        (["-v"], {"of Python", "of the package", "a note"}),
    ],
)
def test_warnings_of_python_and_notes_of_the_package(tmp_path, flags, shown):
    words = [sys.executable, "-c", WARNS, "info", "x", *flags]
    plain = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    kept = subprocess.run([*words, "--log-file", tmp_path / "x.log"], capture_output=True, text=True, check=True).stderr
    for err in (plain, kept):
        assert {text for text in ("of Python", "of the package", "a note") if text in err} == shown
    assert plain == kept
    text = (tmp_path / "x.log").read_text()
    assert [text.count(one) for one in ("WARNING py.warnings", "of the package", "a note")] == [1, 1, 1]


def leaves(parser):
    ways = [one for action in parser._actions if isinstance(action.choices, dict) for one in action.choices.values()]
    return [leaf for way in ways for leaf in leaves(way)] if ways else [parser]


def test_every_verb_has_them():
    parsers = leaves(build_parser())
    assert len(parsers) > len(VERBS)
    assert all(set(VERBOSITY) <= {action.dest for action in parser._actions} for parser in parsers)


def test_shell_completion():
    pytest.importorskip("argcomplete")
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": "vit3d pre",
        "COMP_POINT": "9",
        "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout",
    }
    code = "from monai_vit3d.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.stdout.strip() == "predict"
