"""The lab's file vit3d.toml: as if its flags were typed, before what is typed; nothing of it is taken on trust."""

import json

import pytest

from monai_vit3d.cli import main
from monai_vit3d.cli.command import build_parser
from monai_vit3d.cli.lab_defaults import use_lab_defaults
from monai_vit3d.data.errors import UsageError
from tests.pipeline.tiny import write_bundle, write_images

PREDICT = "predict in -o out --bundle b"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Write the file into a folder, and parse a command line in a folder below it."""
    monkeypatch.delenv("VIT3D_CONFIG", raising=False)
    (tmp_path / "below" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "below" / "deep")

    def parse(content, line):
        (tmp_path / "vit3d.toml").write_text(content)
        parser = build_parser()
        found = use_lab_defaults(parser, line.split())
        args = parser.parse_args(line.split())
        found.settle(args)
        return args

    return parse


def plain(args):
    return {key: value for key, value in vars(args).items() if key not in ("run", "parser", "lab_defaults")}


@pytest.mark.parametrize(
    ("content", "line", "typed"),
    [
        ('device = "cuda:1"', PREDICT, f"{PREDICT} --device cuda:1"),
        ('device = "cuda:1"', "info b", "info b"),  # which has no such flag
        ('[predict]\ndevice = "cpu"\n', f"{PREDICT} --device cuda", f"{PREDICT} --device cuda"),
        ('device = "cuda"\n[predict]\ndevice = "cpu"\n', PREDICT, f"{PREDICT} --device cpu"),
        ("[predict]\njobs = 3\nresume = true\ntta = false\n", PREDICT, f"{PREDICT} --jobs 3 --resume"),
        ("[predict]\nresume = true\n", f"{PREDICT} --overwrite", f"{PREDICT} --overwrite"),
        ("[predict]\nno-seg = true\nmax_voxels = 5\n", PREDICT, f"{PREDICT} --no-seg --max-voxels 5"),
        ('[predict]\nonly = ["left", "right"]\n', PREDICT, f"{PREDICT} --only left,right"),
        ("[predict]\ntta = true\n", PREDICT, f"{PREDICT} --tta"),
        ("[predict]\ntta = [0, 1]\n", PREDICT, f"{PREDICT} --tta=0,1"),
        ('[predict]\ntta = "full"\n', PREDICT, f"{PREDICT} --tta full"),
        ("[predict]\ntta-axes = [0, 1]\n", PREDICT, f"{PREDICT} --tta-axes 0,1"),
        ('[predict]\nconfig = ["a", "b"]\n', PREDICT, f"{PREDICT} --config a b"),
        ('[predict]\nsuffix = ["T1w", "ce"]\n', PREDICT, f"{PREDICT} --suffix T1w --suffix ce"),
        ('[predict]\nsuffix = ["T1w"]\n', f"{PREDICT} --suffix x --suffix y", f"{PREDICT} --suffix x --suffix y"),
        ("[embed]\nsimilar = [-1, 2.5, 3]\n", "embed i -o o --model m", "embed i -o o --model m --similar=-1,2.5,3"),
        ("quiet = 2\n", "bundles", "bundles -qq"),
        ("[weights.list]\njson = true\n", "weights list", "weights list --json"),
        ("[train]\nfold = 1\n", PREDICT, PREDICT),
        ('[predict]\nbundle = "b"\noutput = "out"\n', "predict in", f"{PREDICT} --safe"),
        ('[predict]\nbundle = "c"\n', PREDICT, PREDICT),
    ],
)
def test_it_is_as_if_flags_were_typed(lab, content, line, typed):
    assert plain(lab(content, line)) == plain(build_parser().parse_args(typed.split()))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("devise = 'cpu'", "vit3d.toml: no flag --devise; expected one of "),
        ("[predcit]\njobs = 1", "vit3d.toml: no verb predcit; expected one of "),
        ("[predict]\ninputs = 'x'", "[predict]: no flag --inputs; "),
        ("[train]\nbundle = 'x'", "[train]: no flag --bundle"),
        ("[demo]\nbundle = 'x'", "[demo]: no flag --bundle"),
        ("[predict]\njobs = 'two'", "[predict]: --jobs: 'two' came; expected --jobs N (threads"),
        ("[predict]\nbackend = 'tensorrt'", "[predict]: --backend: invalid choice: 'tensorrt'"),
        ("[predict]\nsafe = 'yes'", "[predict]: safe = 'yes'; expected true or false."),
        ("[predict]\njobs = true", "[predict]: jobs = True; expected a text, a number or a list of them."),
        ("[predict]\nresume = true\noverwrite = true", "[predict]: resume and overwrite; expected one of the two."),
        ("[predict]\nset = ['x=$print(1)']", "[predict]: --set is taken from the command line alone."),
        ("[serve]\ntrust-bundles = true", "[serve]: --trust-bundles is taken from the command line alone."),
        ("jobs = ", "vit3d.toml: cannot be read as TOML: "),
    ],
)
def test_what_is_wrong_in_it_is_said(lab, content, said):
    with pytest.raises(UsageError) as error:
        lab(content, PREDICT)
    assert said in str(error.value)


def test_help_is_shown_whatever_the_file_says(lab, capsys):
    with pytest.raises(SystemExit) as end:
        lab("jobs = ", "predict --help")
    assert end.value.code == 0


def test_the_variable_names_the_file_or_none(lab, tmp_path, monkeypatch, capsys):
    (tmp_path / "other.toml").write_text("[predict]\njobs = 7\n")
    monkeypatch.setenv("VIT3D_CONFIG", str(tmp_path / "other.toml"))
    args = lab("[predict]\njobs = 3\n", PREDICT)
    assert (args.jobs, args.lab_defaults) == (7, tmp_path / "other.toml")
    monkeypatch.setenv("VIT3D_CONFIG", "")
    args = lab("[predict]\njobs = 3\n", PREDICT)
    assert (args.jobs, args.lab_defaults) == (None, None)
    monkeypatch.setenv("VIT3D_CONFIG", "nowhere.toml")
    assert main(["bundles"]) == 2
    said = "vit3d: VIT3D_CONFIG=nowhere.toml: no such file; expected a vit3d.toml. Correct it.\n"
    assert capsys.readouterr().err == said


@pytest.mark.slow
def test_run_json_names_it_and_its_bundle_runs_no_code(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VIT3D_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "in", 1, (24, 20, 18))
    write_bundle(tmp_path / "bundle")
    (tmp_path / "vit3d.toml").write_text('device = "cpu"\n[predict]\nbundle = "bundle"\nuncertainty = "entropy"\n')
    assert main(["predict", "in", "-o", "out"]) == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["lab_defaults"] == str(tmp_path / "vit3d.toml")
    assert run["options"]["uncertainty"] == "entropy"
    assert "vit3d.toml says\n" in capsys.readouterr().err
    config = tmp_path / "bundle" / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("in_channels: 1", "in_channels: $open('ran', 'w').close() or 1"))
    assert main(["predict", "in", "-o", "out2"]) == 2
    assert not (tmp_path / "ran").exists()
    assert main(["predict", "in", "-o", "out3", "--bundle", "bundle"]) == 0  # typed: trusted
    (tmp_path / "vit3d.toml").unlink()
    assert main(["predict", "in", "-o", "out4", "--bundle", "bundle"]) == 0
    assert json.loads((tmp_path / "out4" / "run.json").read_text())["lab_defaults"] is None
