"""A bundle on another engine: what runs it, that the labels are PyTorch's, and that run.json and --resume know."""

import json
import os
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.cli.command import build_parser
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.nifti import read_nifti
from monai_vit3d.inferers import (
    BACKENDS,
    AutocastInferer,
    BackendNetwork,
    SpacingInferer,
    computes_in_bfloat16,
    openvino,
    unwrap_inferer,
)
from monai_vit3d.inferers.backends import cache_folder
from monai_vit3d.pipeline.acceleration import accelerate
from tests.pipeline.tiny import predict, products, records, statuses, write_bundle

OPENVINO = f"openvino {version('openvino')}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Exported models of a test are its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "monai_vit3d"


@pytest.fixture
def without_openvino(monkeypatch):
    def missing(package):
        if package == "openvino":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr("monai_vit3d.inferers.engines.version", missing)


@pytest.fixture
def loaded(tiny_bundle):
    return load_bundle(tiny_bundle, "cpu", safe=True)


def run_json(out):
    return json.loads((out / "run.json").read_text())


def engines(bundle):
    return [type(engine).__name__ for engine in bundle.network._engines.values()]


def labels(out, name):
    return read_nifti(records(out)[name]["output"]).voxels


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "compile"])
def test_labels_are_those_of_pytorch(tmp_path, tiny_bundle, cohort, clean_run, backend):
    out = tmp_path / "out"
    assert predict(cohort, to=out, bundle=tiny_bundle, options=["--backend", backend]) == 0
    assert len(products(out)) == 18  # five label files and their pictures, four tables of results, four of colours
    assert products(out) == products(clean_run)


@pytest.mark.slow
def test_bfloat16_labels_differ_in_few_voxels(tmp_path, tiny_bundle, cohort, clean_run):
    """Half the brightness' digits: a voxel next to the limit of 20.3 or 60.3 may fall on its other side."""
    out = tmp_path / "out"
    assert predict(cohort, to=out, bundle=tiny_bundle, options=["--bf16"]) == 0
    for name in records(clean_run):
        found, expected = labels(out, name), labels(clean_run, name)
        assert len(np.unique(found)) == 3
        assert (found == expected).mean() > 0.98


@pytest.mark.parametrize(
    ("options", "backend", "bf16"),
    [
        ([], OPENVINO, False),
        (["--backend", "auto"], OPENVINO, False),
        (["--backend", "openvino", "--bf16"], OPENVINO, True),
        (["--backend", "torch"], "torch", False),
        (["--backend", "torch", "--bf16"], "torch", True),
    ],
)
def test_run_json_says_which_and_why(tmp_path, tiny_bundle, cohort, caplog, options, backend, bf16):
    image = cohort / "case00.nii.gz"
    assert predict(image, to=tmp_path / "out", bundle=tiny_bundle, options=options) == 0
    slower = bf16 and backend == "torch" and not computes_in_bfloat16("cpu")
    assert ("no instructions for bfloat16" in caplog.text) == slower
    about = run_json(tmp_path / "out")
    assert (about["backend"], about["bf16"]) == (backend, bf16)
    chosen = not options or "auto" in options
    assert about["backend_reason"] == ("OpenVINO gives PyTorch's answer" if chosen else "asked for")
    assert backend.replace("torch", "PyTorch") in (tmp_path / "out" / "report.html").read_text()
    made_with = about["files"][0]["made_with"]
    assert (made_with["backend"], made_with["bf16"]) == (backend, bf16)


@pytest.mark.usefixtures("without_openvino")
def test_auto_is_pytorch_where_openvino_is_not_installed(tmp_path, tiny_bundle, cohort, cache):
    image = cohort / "case00.nii.gz"
    assert predict(image, to=tmp_path / "out", bundle=tiny_bundle) == 0
    about = run_json(tmp_path / "out")
    assert (about["backend"], about["backend_reason"]) == ("torch", "OpenVINO is not installed")
    assert not cache.exists()


@pytest.mark.usefixtures("without_openvino")
def test_openvino_by_name_must_be_installed(tmp_path, tiny_bundle, cohort, capsys):
    image = cohort / "case00.nii.gz"
    assert predict(image, to=tmp_path / "out", bundle=tiny_bundle, options=["--backend", "openvino"]) == 2
    assert "its 'cpu' extra" in capsys.readouterr().err
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", [["--backend", "torch"], ["--bf16"]])
def test_resume_does_not_mix_backends(tmp_path, tiny_bundle, cohort, change):
    out, images = tmp_path / "out", [cohort / "case00.nii.gz", cohort / "case01.nii.gz"]
    assert predict(*images, to=out, bundle=tiny_bundle) == 0
    assert predict(*images, to=out, bundle=tiny_bundle, options=["--resume"]) == 0
    assert set(statuses(out).values()) == {"skipped"}
    assert predict(*images, to=out, bundle=tiny_bundle, options=["--resume", *change]) == 0
    assert set(statuses(out).values()) == {"done"}


@pytest.mark.slow
def test_the_bundle_that_was_given_stays_as_it_is(loaded):
    network, inferer = loaded.network, loaded.inferer
    fast = accelerate(loaded, "openvino", bf16=True)
    assert (loaded.network, loaded.inferer) == (network, inferer)
    assert (loaded.backend, loaded.bf16, inferer.sw_batch_size) == ("torch", False, 4)
    assert isinstance(fast.network, BackendNetwork)
    assert isinstance(fast.inferer, AutocastInferer)
    assert unwrap_inferer(fast.inferer).sw_batch_size == 1


def test_torch_changes_nothing(loaded):
    assert accelerate(loaded, "torch") is loaded


@pytest.mark.slow
def test_the_engine_is_there_before_the_first_image(loaded, cache):
    fast = accelerate(loaded, "auto")
    assert engines(fast) == ["OpenVINOEngine"]
    assert len(list(cache.iterdir())) == 1
    image = torch.rand((1, 1, 20, 20, 16))
    with torch.no_grad():
        fast.inferer(image, fast.network)
    assert engines(fast) == ["OpenVINOEngine"]  # one window at a time: no other shape came


WINDOWS = SlidingWindowInferer((16, 16, 16), sw_batch_size=4)
HALF = AutocastInferer(WINDOWS, "float16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inferer", "precision"),
    [
        (SpacingInferer(AutocastInferer(WINDOWS)), torch.bfloat16),
        (AutocastInferer(SpacingInferer(WINDOWS)), torch.bfloat16),
        (AutocastInferer(AutocastInferer(WINDOWS, "float16", enabled=False)), torch.bfloat16),
        (AutocastInferer(AutocastInferer(WINDOWS), "float16"), torch.bfloat16),  # the innermost is what counts
        (SpacingInferer(AutocastInferer(WINDOWS, enabled=False)), torch.float32),
        # PyTorch on a CPU knows no autocast to float64, warns and leaves it
        pytest.param(
            AutocastInferer(WINDOWS, "float64"), torch.float32, marks=pytest.mark.filterwarnings("ignore:.*autocast")
        ),
    ],
)
def test_the_engine_has_the_precision_of_the_wrappers(loaded, inferer, precision):
    fast = accelerate(replace(loaded, inferer=inferer), "openvino")
    assert [key[2] for key in fast.network._engines] == [precision]
    assert fast.backend == OPENVINO
    image = MetaTensor(torch.rand((1, 1, 20, 20, 16)), affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
    with torch.no_grad():
        fast.inferer(image, fast.network)
    assert [key[2] for key in fast.network._engines] == [precision]  # what ran is what was made ready


@pytest.mark.slow
@pytest.mark.parametrize("inferer", [HALF, SpacingInferer(HALF), AutocastInferer(HALF), SimpleInferer()])
def test_float16_stays_with_pytorch(loaded, inferer):
    bundle = replace(
        loaded, inferer=AutocastInferer(inferer, "float16") if unwrap_inferer(inferer) is inferer else inferer
    )
    plain = accelerate(bundle, "auto")
    assert (plain.network, plain.inferer, plain.backend) == (bundle.network, bundle.inferer, "torch")
    assert plain.backend_reason == "the network computes in torch.float16" or unwrap_inferer(inferer) is inferer
    for backend in ("openvino", "compile"):
        with pytest.raises(UsageError, match=f"backend={backend}: .* torch.float16; expected torch.float32 or torch.b"):
            accelerate(bundle, backend)
    fast = accelerate(bundle, "openvino", bf16=True)
    assert (fast.backend, fast.bf16) == (OPENVINO, True)


def test_openvino_is_for_the_cpu(loaded):
    with pytest.raises(UsageError, match="backend=openvino: for the CPU, the network runs on cuda"):
        accelerate(replace(loaded, device=torch.device("cuda")), "openvino")
    assert accelerate(replace(loaded, device=torch.device("cuda")), "auto").backend_reason == "the network runs on cuda"


def test_the_command_knows_every_backend():
    verb = build_parser().parse_args(["predict", "in", "-o", "out", "--bundle", "b"]).parser
    (action,) = [action for action in verb._actions if action.dest == "backend"]
    assert tuple(action.choices) == BACKENDS


@pytest.mark.slow
def test_an_engine_that_gives_another_answer_is_not_used(loaded, monkeypatch, caplog):
    call = openvino.OpenVINOEngine.__call__
    monkeypatch.setattr(openvino.OpenVINOEngine, "__call__", lambda self, x: 1.1 * call(self, x))
    plain = accelerate(loaded, "auto")
    assert (plain.network, plain.backend) == (loaded.network, "torch")  # run.json tells what it was
    assert "its answer differs from PyTorch's by 0.1" in plain.backend_reason
    assert "PyTorch runs it" in caplog.text
    with pytest.raises(UsageError, match="Use 'torch'"):
        accelerate(loaded, "openvino")


def test_a_network_for_other_channels_fails_case_by_case(tmp_path, cohort):
    root = write_bundle(tmp_path / "bundle")
    config = root / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("in_channels: 1", "in_channels: 2"))
    weight = torch.zeros(3, 2, 1, 1, 1)
    torch.save({"weight": weight, "bias": torch.zeros(3)}, root / "models" / "model.pt")
    out = tmp_path / "out"
    assert predict(cohort / "case00.nii.gz", to=out, bundle=root) == 1
    assert "case00.nii.gz" in records(out)["case00"]["error"]


def test_other_inferers_are_left_alone(loaded):
    plain = accelerate(replace(loaded, inferer=SimpleInferer()), "auto")
    assert (plain.backend, plain.backend_reason) == ("torch", "the network's input has no fixed size")
    fast = accelerate(replace(loaded, inferer=SimpleInferer()), "openvino")
    assert isinstance(fast.inferer, SimpleInferer)
    assert not engines(fast)


@pytest.mark.slow
@pytest.mark.parametrize("roi_size", [-1, (16, 16, -1), (16, 16, None)])
def test_windows_of_the_images_size_wait_for_the_image(loaded, roi_size):
    fast = accelerate(replace(loaded, inferer=SlidingWindowInferer(roi_size, sw_batch_size=4)), "openvino")
    assert not engines(fast)
    image = torch.rand((1, 1, 20, 18, 17))
    with torch.no_grad():
        torch.testing.assert_close(fast.inferer(image, fast.network), loaded.network(image), atol=1e-3, rtol=1e-4)
    assert engines(fast) == ["OpenVINOEngine"]


def test_the_cache_lies_in_the_users_own_folder(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache" / "monai_vit3d"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "monai_vit3d"
    assert os.environ["HOME"] == str(tmp_path)
