"""What one option of the segmentation bundle changes, and that everything that depends on it follows."""

import json
import traceback

import pytest
import torch
import torch.distributed.fsdp
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from monai.inferers import sliding_window_inference
from monai.losses import DeepSupervisionLoss, DiceCELoss

from monai_vit3d import TokenSegmenter, VisionTransformer3D
from monai_vit3d.decoders import DECODERS, create_decoder
from tests.bundles.helpers import run_here, workflow
from tests.bundles.test_hippocampus import FLOAT32, SMALL
from tests.helpers import BUNDLES, HIPPOCAMPUS

MULTI = [
    ("hippocampus_segmentation", ("train", "multi_gpu_train")),
    ("hippocampus_segmentation", ("inference", "evaluate", "multi_gpu_evaluate")),
    ("medmnist3d_classification", ("train", "multi_gpu_train")),
    ("ijepa_pretraining", ("train", "multi_gpu_train")),
    ("mae_pretraining", ("train", "multi_gpu_train")),
]


def small_run(phantom_task, out, **options):
    data, split = phantom_task
    sizes = {"epochs": 1, "val_interval": 1, "limit": 2, "window": [16, 16, 16], **SMALL}
    return {"dataset_dir": data, "split_file": split, "output_dir": out, **sizes, **options}


@pytest.mark.parametrize(("name", "configs"), MULTI)
def test_the_rank_is_that_among_all_nodes(name, configs, monkeypatch):
    for key, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    parser = workflow(BUNDLES / name, *configs).parser
    assert parser.get_parsed_content("rank") == 5
    assert parser.get_parsed_content("device") == torch.device("cuda", 1)
    writers = [h for h in parser["train"]["handlers"] if "rank" in h] if "train" in parser.get() else []
    assert all(handler["rank"] == "@rank" for handler in writers)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("override", ["decoder", "network_def#decoder"])
def test_every_decoder_is_one_override(override, decoder, tmp_path):
    network = workflow(HIPPOCAMPUS, "train", **{override: decoder}).parser.get_parsed_content("network_def")
    assert isinstance(network.decoder, DECODERS[decoder])
    if decoder == "unetr":
        assert len(network.decoder.image_downs) == 2  # image_levels: 3, as the shipped weights
    torch.save(network.state_dict(), tmp_path / "model.pt")
    for option in ({override: decoder}, {}):  # inference needs none
        parser = workflow(HIPPOCAMPUS, "inference", ckpt_path=str(tmp_path / "model.pt"), **option).parser
        assert isinstance(parser.get_parsed_content("network_def").decoder, DECODERS[decoder])


def test_another_decoder_than_the_weights_is_refused():
    with pytest.raises(RuntimeError) as caught:
        workflow(HIPPOCAMPUS, "inference", decoder="light").parser.get_parsed_content("network_def")
    assert "decoder='unetr' came, 'light' is expected" in "".join(traceback.format_exception(caught.value))


def test_an_option_that_a_decoder_does_not_have_is_named():
    with pytest.raises(ValueError, match="'light' has no option image_levels; it has feature_size"):
        create_decoder("light", 1, 12, 8, 2, image_levels=3)
    assert isinstance(create_decoder("light", 1, 12, 8, 2, image_levels=None), DECODERS["light"])


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_number_of_classes_stands_in_one_place(num_classes):
    option = {"network_def#num_classes": num_classes}
    train, infer = workflow(HIPPOCAMPUS, "train", **option).parser, workflow(HIPPOCAMPUS, "inference", **option).parser
    scores = workflow(HIPPOCAMPUS, "inference", "evaluate", **option).parser
    label = torch.full((1, 4, 4, 4), num_classes - 1.0)
    logits = torch.zeros(num_classes, 4, 4, 4)
    logits[-1, :2] = 1
    found = train.get_parsed_content("train#postprocessing")({"pred": logits, "label": label})
    assert found["pred"].shape == found["label"].shape == (num_classes, 4, 4, 4)
    labels = torch.zeros(1, 9, 9, 9)
    labels[0, :4, :4, :4], labels[0, 8, 8, 8] = num_classes - 1, num_classes - 1
    assert infer.get_parsed_content("labelling#1")({"pred": labels})["pred"][0, 8, 8, 8] == 0
    assert scores.get_parsed_content("to_onehot")({"pred": label, "label": label})["pred"].shape[0] == num_classes
    checks = [train.get_parsed_content("check_label"), scores.get_parsed_content("check_label")]
    assert [check.num_classes for check in checks] == [num_classes, num_classes]


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["light", "pyramid"])
def test_another_decoder_and_more_classes_train_and_infer(decoder, phantom_task, tmp_path):
    option = {"decoder": decoder, "network_def#num_classes": 4}
    run_here(HIPPOCAMPUS, "train", **small_run(phantom_task, tmp_path, **option))
    infer = {"window": [16, 16, 16], "dataset_dir": phantom_task[0] / "imagesTr", "output_dir": tmp_path / "out"}
    run_here(HIPPOCAMPUS, "inference", ckpt_path=tmp_path / "model.pt", **infer, **option, **FLOAT32)
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 12


def test_monais_deep_supervision_loss_takes_what_the_network_gives():
    torch.manual_seed(0)
    backbone = VisionTransformer3D((16, 16, 8), 4, embed_dim=12, depth=3, num_heads=2, dynamic_img_size=True)
    net = TokenSegmenter(backbone, "unetr", num_classes=3, feature_size=4, deep_supervision=True)
    x, target = torch.randn(2, 1, 16, 16, 8), torch.randint(0, 3, (2, 1, 16, 16, 8)).float()
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    maps = net(x)
    expected = loss(maps[0], target) + loss(maps[1], target) / 2
    torch.testing.assert_close(DeepSupervisionLoss(loss)(maps, target), expected)
    assert sliding_window_inference(x, (16, 16, 8), 1, net.eval()).shape == (2, 3, 16, 16, 8)


@pytest.mark.slow
def test_deep_supervision_is_one_option(phantom_task, tmp_path):
    options = {"network_def#deep_supervision": True}
    run_here(HIPPOCAMPUS, "train", **small_run(phantom_task, tmp_path, **options))
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert any(key.startswith("decoder.coarse_heads.") for key in weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrapper", ["$torch.compile(@started.to(@device), backend='eager')", "$torch.nn.DataParallel(@started.to(@device))"]
)
def test_a_wrapped_network_trains_into_weights_that_inference_takes(wrapper, phantom_task, tmp_path):
    run_here(HIPPOCAMPUS, "train", **small_run(phantom_task, tmp_path, network=wrapper))
    options = {"ckpt_path": tmp_path / "model.pt", "window": [16, 16, 16], **FLOAT32}
    network = workflow(HIPPOCAMPUS, "inference", **options).parser.get_parsed_content("network")
    held = torch.load(tmp_path / "last.pt", weights_only=True)
    assert list(held["network"]) == list(network.state_dict())


@pytest.mark.slow
def test_more_epochs_go_on_where_the_run_ended(phantom_task, tmp_path):
    run_here(HIPPOCAMPUS, "train", **small_run(phantom_task, tmp_path))
    run_here(HIPPOCAMPUS, "train", **small_run(phantom_task, tmp_path, epochs=3))
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (last["epoch"], last["length"]) == (3, [3, 1])


@pytest.mark.slow
def test_other_classes_start_from_the_whole_network(phantom_task, tmp_path):
    run_here(HIPPOCAMPUS, "train", **small_run(phantom_task, tmp_path / "old"))
    old = torch.load(tmp_path / "old" / "model.pt", weights_only=True)
    start = {"pretrained": tmp_path / "old" / "model.pt", "pretrained_decoder": True, "network_def#num_classes": 5}
    options = small_run(phantom_task, tmp_path / "new", **start)
    new = workflow(HIPPOCAMPUS, "train", **options).parser.get_parsed_content("started").state_dict()
    assert list(new) == list(old)
    assert {
        key for key in old if not torch.equal(old[key], new[key].cpu()) if old[key].shape == new[key].shape
    } == set()
    assert {key for key in old if old[key].shape != new[key].shape} == {
        "decoder.head.conv.conv.weight", "decoder.head.conv.conv.bias"
    }  # fmt: skip


@pytest.mark.slow
def test_a_decathlon_task_trains_by_its_own_list(phantom_task, tmp_path):
    data, _ = phantom_task
    root = tmp_path / "Task99"
    root.mkdir()
    for folder, target in (("imagesTr", "scans"), ("labelsTr", "truth")):
        (root / target).symlink_to(data / folder)
    cases = [{"image": f"./scans/phantom_{i:02d}.nii.gz", "label": f"./truth/phantom_{i:02d}.nii.gz"} for i in range(6)]
    labels = {"0": "background", "1": "front", "2": "back", "3": "none"}
    (root / "dataset.json").write_text(json.dumps({"training": cases, "test": [], "labels": labels}))
    options = {**small_run(phantom_task, tmp_path / "out"), "dataset_dir": root, "limit": None}
    del options["split_file"]
    parser = workflow(HIPPOCAMPUS, "train", "decathlon", **options).parser
    sections = [
        [case["image"] for case in parser.get_parsed_content(f"{s}#dataset#data")] for s in ("train", "validate")
    ]
    assert [len(section) for section in sections] == [4, 2]
    assert not set(sections[0]) & set(sections[1])
    run_here(HIPPOCAMPUS, "train", "decathlon", **options)
    weights = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert len(weights["decoder.head.conv.conv.bias"]) == 4


@pytest.mark.slow
def test_federated_rounds(phantom_task, tmp_path):
    options = {"bundle_root": str(HIPPOCAMPUS)}
    for key, value in small_run(phantom_task, tmp_path).items():
        options[key] = str(value) if key.endswith(("dir", "file")) else value

    def client():
        made = MonaiAlgo(
            str(HIPPOCAMPUS), config_train_filename="configs/train.yaml", config_evaluate_filename="configs/train.yaml",
            eval_workflow_name="train", local_epochs=1, send_weight_diff=False,
            train_kwargs=dict(options), eval_kwargs=dict(options),
        )  # fmt: skip
        made.initialize({})
        return made

    first, name = client(), "backbone.blocks.0.attn.qkv.weight"
    weights = {key: value.clone() for key, value in first.get_weights().weights.items()}
    for epoch in (1, 2):
        first.train(ExchangeObject(weights=weights))
        assert first.trainer.state.epoch == epoch
        weights = {key: value.clone() for key, value in first.get_weights().weights.items()}
    assert 0 <= first.evaluate(ExchangeObject(weights=weights)).metrics["val_dice"] <= 1
    again = client()  # a restarted client, with last.pt of round 2 in its folder, is sent what the server has
    of_server = {key: torch.zeros_like(value) for key, value in weights.items()}
    again.train(ExchangeObject(weights=of_server))
    sent = again.get_weights().weights
    assert sent[name].abs().max() < 0.1 * weights[name].abs().max()  # a step or two from zero


@pytest.mark.slow
def test_another_network_is_trained_and_scored_with_its_own_weights(phantom_task, tmp_path):
    """As benchmarks/hippocampus.py trains its peers; an inference that left them as initialised would score noise."""
    peer = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8]}
    peer |= {"strides": [2]}
    options = {"network_def": peer, "num_classes": 3, "ckpt_path": tmp_path / "model.pt"}
    shared = small_run(phantom_task, tmp_path, **options)
    shared = {key: value for key, value in shared.items() if not key.startswith("network_def#")}
    run_here(HIPPOCAMPUS, "train", **shared)
    scoring = {key: shared[key] for key in ("dataset_dir", "split_file", "window", "network_def", "num_classes")}
    started = workflow(HIPPOCAMPUS, "inference", "evaluate", ckpt_path=tmp_path / "model.pt", **scoring)
    state = started.parser.get_parsed_content("network").state_dict()
    trained = torch.load(tmp_path / "model.pt", weights_only=True)
    assert trained.keys() == state.keys()
    assert all(torch.equal(trained[key], state[key]) for key in state)
