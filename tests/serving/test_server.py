"""The tools as a client of the protocol sees them: over the streams of ``vit3d serve``, answers as of the verbs."""

import json
import sys

import numpy as np
import pytest
import torch

from monai_vit3d import VisionTransformer3D
from monai_vit3d.bundle.info import describe_bundle, list_bundles
from monai_vit3d.pipeline.check import check_files
from monai_vit3d.pipeline.embedder import Embedder
from monai_vit3d.serving.server import call_served
from monai_vit3d.weights import save_backbone
from tests.helpers import ONE_THREAD, ROOT
from tests.pipeline.tiny import predict, records, write_bundle, write_images

mcp = pytest.importorskip("mcp", reason="the extra `serve` is not installed")
anyio = pytest.importorskip("anyio")
pytestmark = pytest.mark.slow
RECIPE = {"orientation": "RAS", "steps": [{"z_score": {"nonzero": False}}]}


def converse(folder, calls, *flags):
    """Start the server in a folder, list its tools and make calls in turn; returns tools, answers, progress, errors."""
    from mcp.client.stdio import StdioServerParameters, stdio_client

    server = StdioServerParameters(
        command=sys.executable, args=["-m", "monai_vit3d", "serve", "--stdio", *flags], cwd=folder,
        env={**ONE_THREAD, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    progress = []

    async def follow(done, total, message):
        progress.append((done, total, message))

    async def talk():
        with open(folder / "stderr.txt", "w") as errors:
            async with mcp.Client(stdio_client(server, errors)) as client:
                tools = (await client.list_tools()).tools
                answers = [await client.call_tool(*call, progress_callback=follow) for call in calls]
        return tools, answers

    tools, answers = anyio.run(talk)
    return {tool.name: tool for tool in tools}, answers, progress, (folder / "stderr.txt").read_text()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with three images, one of them cut off, two bundles, one that would leave a file, and a backbone."""
    root = tmp_path_factory.mktemp("world")
    images = write_images(root / "scans", 3)
    images[1].write_bytes(images[1].read_bytes()[:-20])
    write_bundle(root / "bundle")
    code = write_bundle(root / "code") / "configs" / "inference.yaml"
    ran = str(root / "ran")
    code.write_text(code.read_text().replace("in_channels: 1", f"in_channels: $open({ran!r}, 'w').close() or 1"))
    torch.manual_seed(0)
    network = VisionTransformer3D(16, 8, embed_dim=24, depth=1, num_heads=2, class_token=False, global_pool="avg")
    save_backbone(network, root / "backbone.safetensors")
    return root


@pytest.fixture(scope="module")
def talk(world):
    case = "scans/case00.nii.gz"
    calls = {
        "predict": ("predict", {"inputs": "scans", "output": "out", "bundle": "bundle", "backend": "torch"}),
        "again": ("predict", {"inputs": "scans", "output": "out", "bundle": "bundle"}),
        "code": ("predict", {"inputs": case, "output": "out2", "bundle": "code"}),
        "check": ("check", {"inputs": ["scans"], "bundle": "bundle", "volume": None}),
        "info": ("info", {"bundle": "bundle"}),
        "bundles": ("bundles", {}),
        "embed": ("embed", {"inputs": [case], "output": "vectors", "model": "backbone.safetensors",
                            "recipe": RECIPE, "device": "cpu"}),
        "misspelt": ("predict", {"inputs": case, "output": "out2", "bundel": "bundle"}),
        "text": ("check", {"inputs": case, "volume": "two"}),
        "nothing": ("check", {"inputs": "nowhere"}),
        "unknown": ("segment", {}),
    }  # fmt: skip
    tools, answers, progress, errors = converse(world, calls.values())
    return {"tools": tools, "progress": progress, "errors": errors, **dict(zip(calls, answers))}


def test_a_schema_names_types_and_meanings_of_the_functions_arguments(talk):
    assert {*talk["tools"]} == {"predict", "check", "info", "embed", "bundles"}
    for tool in talk["tools"].values():
        for name, argument in tool.input_schema["properties"].items():
            assert {*argument} - {"default", "description"} in ({"type"}, {"type", "items"}, {"anyOf"}), name
            assert len(argument["description"]) > 10
            assert not argument["description"].startswith("see there")
            assert ":func:" not in argument["description"]
    schema = talk["tools"]["predict"].input_schema
    assert schema["required"] == ["inputs", "output", "bundle"]
    assert schema["properties"]["jobs"] | {"description": ""} == {"type": "integer", "description": ""}
    assert schema["properties"]["strict"] | {"description": ""} == {
        "type": "boolean", "default": False, "description": ""
    }  # fmt: skip
    assert not {"safe", "on_case", "on_plan"} & {*schema["properties"]}
    assert talk["tools"]["check"].annotations.read_only_hint
    assert not talk["tools"]["embed"].annotations.read_only_hint


def test_predict_writes_the_labels_of_the_verb(world, talk, tmp_path):
    assert predict(world / "scans", to=tmp_path / "out", bundle=world / "bundle", options=["--backend", "torch"]) == 1
    answer = talk["predict"].structured_content
    assert talk["predict"].is_error  # as of the exit code
    assert (answer["done"], answer["failed"]) == (2, 1)
    assert answer["report"] == str(world / "out" / "report.html")
    cases, expected = {case["name"]: case for case in answer["cases"]}, records(tmp_path / "out")
    for name, record in expected.items():
        assert cases[name]["status"] == record["status"]
        assert cases[name].get("error") == (record["error"] or None)
        volumes = {row["name"]: row["volume_ml"] for row in record.get("stats", [])}
        assert cases[name].get("volumes_ml", {}) == volumes
    for path in (tmp_path / "out").rglob("*_seg.nii.gz"):
        assert path.read_bytes() == (world / "out" / path.relative_to(tmp_path / "out")).read_bytes()
    assert [(done, total) for done, total, _ in talk["progress"]][:3] == [(1, 3), (2, 3), (3, 3)]


def test_what_the_verbs_refuse_is_refused_in_the_same_words(world, talk, tmp_path, capsys):
    assert talk["again"].is_error
    assert predict(world / "scans", to=world / "out", bundle=world / "bundle") == 2
    said = capsys.readouterr().err.strip().removeprefix("vit3d: ")
    with_flags = talk["again"].structured_content["error"].replace('existing="resume"', "--resume")
    assert talk["again"].content[0].text == talk["again"].structured_content["error"]
    assert said.split(":")[-1].split(".")[0].split(";")[0].strip() in with_flags
    assert talk["nothing"].structured_content["error"].startswith("nowhere: ")


def test_a_bundle_with_code_is_refused_unless_the_server_trusts_bundles(world, talk):
    assert talk["code"].is_error
    assert "open" in talk["code"].structured_content["error"]
    assert not (world / "ran").exists()
    assert not (world / "out2").exists()
    call = {"inputs": str(world / "scans" / "case00.nii.gz"), "output": str(world / "out3"), "device": "cpu"}
    answer, failed = call_served("predict", {**call, "bundle": str(world / "code")}, trust_bundles=True)
    assert (answer.get("done"), failed) == (1, False)
    assert (world / "ran").exists()


def test_check_info_and_bundles_answer_as_their_functions(world, talk, monkeypatch):
    monkeypatch.chdir(world)
    assert talk["check"].structured_content["verdicts"] == check_files(["scans"], bundle="bundle", safe=True)
    assert talk["info"].structured_content == describe_bundle("bundle")
    assert talk["bundles"].structured_content == {"bundles": list_bundles()}
    assert json.loads(talk["bundles"].content[0].text) == {"bundles": list_bundles()}


def test_embed_answers_with_the_embedders_vector(world, talk):
    assert not talk["embed"].is_error
    embedder = Embedder(world / "backbone.safetensors", recipe=RECIPE, device="cpu")
    expected = embedder(world / "scans" / "case00.nii.gz")
    features = np.load(world / "vectors" / "features.npz")
    np.testing.assert_allclose(features["vectors"][0], np.asarray(expected), rtol=0, atol=1e-5)
    assert talk["embed"].structured_content["features"].endswith("features.csv")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("misspelt", "bundel=: no such argument; expected some of inputs, output, bundle"),
        ("text", "volume=: 'two' is not of type 'integer'"),
        ("unknown", "segment: no such tool; expected one of predict, check, info, embed, bundles."),
    ],
)
def test_wrong_calls_say_what_was_meant(talk, call, words):
    assert talk[call].is_error
    assert talk[call].structured_content["error"].startswith(words)


def test_nothing_but_the_protocol_goes_to_standard_output(talk):
    """The client reads each line of it as JSON, and its log would complain."""
    assert "Traceback" not in talk["errors"]
    assert "JSON" not in talk["errors"]
