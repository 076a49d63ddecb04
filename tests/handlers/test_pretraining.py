"""Pretraining in MONAI's trainer: schedules by step, masks by iteration, resume, two processes, collapse."""

import itertools
import json
import logging
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader, MetaTensor, list_data_collate
from monai.engines import SupervisedTrainer
from monai.handlers import StatsHandler
from monai.transforms import RandGaussianNoised
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from monai_vit3d.data.errors import TrainingCollapsed, UsageError
from monai_vit3d.handlers import AtomicCheckpoint, EpochSeed, FeatureMonitor, PrepareBatchMasked, StepSchedule
from monai_vit3d.layers import set_spacing
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.pretraining import (
    IJEPA,
    MAE,
    CollapseAlarm,
    learning_rate_at,
    momentum_at,
    sample_block_masks,
    sample_jepa_masks,
    sample_random_masks,
    weight_decay_at,
)
from tests.helpers import run_processes

TINY = {"img_size": (16, 16, 16), "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
NO_HEAD = {"class_token": False, "global_pool": ""}
DROP = {"proj_drop_rate": 0.1, "drop_path_rate": 0.2}
EPOCHS, LENGTH = 4, 4  # 7 volumes in batches of 2: the last batch is of 1
RATE = partial(learning_rate_at, warmup=2, peak=3e-3, start=1e-3, end=1e-4)
DECAY = partial(weight_decay_at, start=0.05, end=0.5)
MOMENTUM = partial(momentum_at, start=0.5, end=1.0)


def volumes(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(1, 16, 16, 16, generator=generator).to(dtype) for _ in range(count)]


def cases(count, transform=None, dtype=torch.float32):
    return CacheDataset([{"image": v} for v in volumes(count, dtype)], transform or [], progress=False)


def make_network(kind="ijepa", seed=0, **options):
    torch.manual_seed(seed)
    backbone = VisionTransformer3D(**{**TINY, **NO_HEAD, **options})
    return IJEPA(backbone, 12, 1, 2) if kind == "ijepa" else MAE(backbone, 12, 1, 2)


def make_optimizer(network):
    """Matrices with decay and half the learning rate, biases and norms without decay."""
    groups = param_groups_weight_decay(network, 0.05, no_weight_decay_list=network.no_weight_decay())
    for group in groups:
        group["lr_scale"] = 0.5 if group["weight_decay"] else 1.0
    return torch.optim.AdamW(groups, 1.0)


def make_trainer(network, loader, optimizer, handlers, *, kind="ijepa", accumulation=1, epochs=EPOCHS, **mask):
    sampler = sample_jepa_masks if kind == "ijepa" else sample_random_masks
    masks = PrepareBatchMasked(sampler, 4, seed=5, **mask)
    target = {"model": network, "momentum": MOMENTUM} if kind == "ijepa" else {}
    schedule = StepSchedule(optimizer, RATE, DECAY, **target, accumulation_steps=accumulation)
    return SupervisedTrainer(
        torch.device("cpu"),
        epochs,
        loader,
        network,
        optimizer,
        lambda output, _: output.loss,
        prepare_batch=masks,
        decollate=False,
        accumulation_steps=accumulation,
        train_handlers=[masks, schedule, *handlers],
    )


def make_run(folder, *, kind="ijepa", accumulation=1, seed=0, watch=True, alarm=None):
    """A whole run, with everything that may differ after an interruption: dropout, noise, shuffling, masks."""
    network = make_network(kind, seed, **DROP)
    dataset = cases(7, RandGaussianNoised("image", prob=0.7))
    optimizer = make_optimizer(network)
    encoder = network.encoder if kind == "ijepa" else network.backbone
    monitor = FeatureMonitor(encoder, DataLoader(cases(5), batch_size=2), alarm or CollapseAlarm())
    objects = {"network": network, "optimizer": optimizer, "monitor": monitor}
    handlers = [EpochSeed(3, dataset), *([monitor] if watch else []), AtomicCheckpoint(folder, objects)]
    loader = DataLoader(dataset, batch_size=2, shuffle=True)
    return make_trainer(network, loader, optimizer, handlers, kind=kind, accumulation=accumulation), objects


def assert_same(one, two, where=""):
    """Bit for bit, through dictionaries and lists."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
    if isinstance(one, (dict, list)):
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


# ---- StepSchedule


@pytest.mark.slow
@pytest.mark.parametrize(("accumulation", "a_epoch"), [(1, 4), (3, 2), (4, 1), (9, 1)])
def test_each_optimizer_step_has_its_values_and_moves_the_target(accumulation, a_epoch, tmp_path):
    network = make_network()
    optimizer = make_optimizer(network)
    total, seen = EPOCHS * a_epoch, []
    target = {name: value.double() for name, value in network.target_encoder.named_parameters()}

    def before(*_):
        seen.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])

    def after(*_):
        share = MOMENTUM(len(seen) - 1, total)
        for name, value in network.context_encoder.named_parameters():
            target[name] = share * target[name] + (1 - share) * value.detach().double()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    loader = DataLoader(cases(7), batch_size=2)
    trainer = make_trainer(network, loader, optimizer, [], accumulation=accumulation)
    trainer.run()
    assert trainer.state.epoch_length == LENGTH
    expected = [[(RATE(s, total), 0.0), (0.5 * RATE(s, total), DECAY(s, total))] for s in range(total)]
    assert seen == expected
    for name, value in network.target_encoder.named_parameters():
        torch.testing.assert_close(value.double(), target[name], atol=1e-6, rtol=0)
        if value.numel() > 100:
            assert (value - dict(network.context_encoder.named_parameters())[name]).abs().max() > 1e-4, name


@pytest.mark.slow
def test_metrics_hold_the_values_of_the_step():
    network = make_network()
    optimizer, found = make_optimizer(network), []
    trainer = make_trainer(network, DataLoader(cases(7), batch_size=2), optimizer, [], accumulation=3, epochs=2)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: found.append(dict(engine.state.metrics)))
    trainer.run()
    steps = [0, 0, 0, 1, 2, 2, 2, 3]
    assert found == [
        {"learning_rate": RATE(s, 4), "weight_decay": DECAY(s, 4), "momentum": MOMENTUM(s, 4)} for s in steps
    ]


def test_learning_rate_alone_leaves_weight_decay_and_has_no_target():
    network = make_network("mae")
    optimizer = make_optimizer(network)
    engine = Engine(lambda *_: None)
    StepSchedule(optimizer, RATE).attach(engine)
    engine.run([0] * 3, max_epochs=2)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]
    assert engine.state.metrics == {"learning_rate": RATE(5, 6)}


def test_decay_that_was_scheduled_to_zero_comes_back():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "weight_decay": 0.1}], 1.0)
    seen, engine = [], Engine(lambda *_: seen.append(optimizer.param_groups[0]["weight_decay"]))
    StepSchedule(optimizer, RATE, lambda step, total: float(step != 1)).attach(engine)
    engine.run([0] * 3, max_epochs=1)
    assert seen == [1.0, 0.0, 1.0]


def test_schedule_refuses_what_cannot_be_counted():
    network = make_network()
    optimizer = make_optimizer(network)
    for arguments in ({"model": network}, {"momentum": MOMENTUM}, {"model": nn.Linear(1, 1), "momentum": MOMENTUM}):
        with pytest.raises(UsageError, match="update_target"):
            StepSchedule(optimizer, RATE, **arguments)
    with pytest.raises(UsageError, match="accumulation_steps=0"):
        StepSchedule(optimizer, RATE, accumulation_steps=0)
    trainer = make_trainer(network, DataLoader(cases(4), batch_size=2), optimizer, [], accumulation=3)
    trainer.accumulation_steps = 2
    with pytest.raises(UsageError, match="accumulation_steps=3, the trainer has 2"):
        trainer.run()
    endless = make_trainer(network, ({"image": v[None]} for v in volumes(2)), optimizer, [])
    with pytest.raises(UsageError, match="epoch_length=None"):
        endless.run()


# ---- PrepareBatchMasked


def attached(iteration, sampler=sample_jepa_masks, **options):
    engine, masks = Engine(lambda *_: None), PrepareBatchMasked(sampler, (4, 4, 2), **options)
    masks.attach(engine)
    engine.state.iteration = iteration
    return masks


def test_batch_keeps_its_affines():
    volumes = [{"image": MetaTensor(torch.rand(1, 12, 16, 10), affine=torch.eye(4) * s)} for s in (1.0, 0.7)]
    found, *_ = attached(1)({"image": list_data_collate(volumes)["image"]}, "cpu", False, dtype=torch.float64)
    assert torch.equal(found.affine, torch.stack([v["image"].affine for v in volumes]))
    assert torch.equal(found.as_tensor(), torch.stack([v["image"].as_tensor() for v in volumes]).double())


def test_batch_is_a_tensor_and_masks_of_its_grid():
    image = torch.rand(3, 1, 12, 16, 10)
    found, target, (masks,), options = attached(4)({"image": image}, "cpu", False, dtype=torch.float64)
    assert type(found) is torch.Tensor
    assert found.dtype is torch.float64
    assert torch.equal(found, image.double())
    assert (target, options) == (None, {})
    assert masks.context.shape[0] == masks.targets.shape[0] == 3
    grid = 3 * 4 * 5
    for row in range(3):
        assert not set(masks.context[row].tolist()) & set(masks.targets[row].flatten().tolist())
    assert max(masks.context.max(), masks.targets.max()) < grid
    assert attached(4, sample_random_masks)({"image": image})[2][0].masked.shape == (3, round(0.75 * grid))


SAMPLERS = [sample_jepa_masks, sample_random_masks, partial(sample_block_masks, ratio=0.6)]


@pytest.mark.slow
@given(
    sampler=st.sampled_from(SAMPLERS),
    seed=st.integers(0, 2**40),
    iteration=st.integers(1, 10**6),
    batch=st.integers(1, 4),
    world=st.integers(2, 3),
    grid=st.sampled_from([(4, 4, 4), (6, 8, 3), (4, 5, 2)]),
)
def test_processes_share_out_the_masks_of_the_whole_batch(sampler, seed, iteration, batch, world, grid):
    whole = attached(1, sampler, seed=seed).draw(iteration, batch * world, grid)
    torch.rand(3)  # the global stream plays no part, and neither does an earlier draw
    for rank in range(world):
        part = attached(1, sampler, seed=seed, rank=rank, world=world)
        part.draw(iteration + 1, batch, grid)
        state = torch.get_rng_state()
        rows = part.draw(iteration, batch, grid)
        assert torch.equal(torch.get_rng_state(), state)
        assert type(rows) is type(whole)
        for mine, all_of_them in zip(rows, whole):
            assert torch.equal(mine, all_of_them[rank::world])


def test_masks_differ_by_seed_and_iteration_only():
    image = {"image": torch.zeros(2, 1, 16, 16, 8)}

    def drawn(seed, iteration):
        return tuple(attached(iteration, seed=seed)(image)[2][0].targets.flatten().tolist())

    keys = list(itertools.product(range(3), range(1, 4)))
    assert len({drawn(*key) for key in keys}) == len(keys)
    assert [drawn(*key) for key in keys] == [drawn(*key) for key in keys]


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ({"image": torch.zeros(1, 1, 8, 8, 9)}, r"volumes of \(8, 8, 9\) voxels, patch_size=\(4, 4, 2\)"),
        ({"label": torch.zeros(1), "name": "a"}, "keys label, name; .*'image'"),
        ([torch.zeros(1)], "type list; .*'image'"),
        ({"image": torch.zeros(1, 8, 8, 8)}, r"\(1, 8, 8, 8\); expected volumes \(B, C, H, W, D\)"),
        ({"image": "scan.nii.gz"}, "str; expected volumes"),
    ],
)
def test_batches_without_whole_patches_are_refused(batch, match):
    with pytest.raises(UsageError, match=match):
        attached(1)(batch)


def test_masks_need_a_trainer_and_a_rank_of_the_world():
    with pytest.raises(UsageError, match="train_handlers"):
        PrepareBatchMasked(sample_jepa_masks, 4)({"image": torch.zeros(1, 1, 16, 16, 16)})
    for wrong in ({"seed": -1}, {"rank": 2, "world": 2}, {"rank": -1}, {"world": 0}):
        with pytest.raises(UsageError, match="rank of 0 to world - 1"):
            PrepareBatchMasked(sample_jepa_masks, 4, **wrong)


# ---- resume


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "accumulation"), [("ijepa", 1), ("ijepa", 3), ("mae", 3)])
def test_resume_is_exact(kind, accumulation, tmp_path):
    whole, expected = make_run(tmp_path / "whole", kind=kind, accumulation=accumulation)
    whole.run()
    stopped, _ = make_run(tmp_path / "parts", kind=kind, accumulation=accumulation)
    stopped.add_event_handler(Events.EPOCH_COMPLETED(once=2), stopped.terminate)
    stopped.run()
    assert stopped.state.epoch == 2
    rest, found = make_run(tmp_path / "parts", kind=kind, accumulation=accumulation, seed=99)
    torch.rand(17)  # another place in the random stream
    rest.run()
    assert rest.state.iteration == whole.state.iteration == EPOCHS * LENGTH
    assert [row["epoch"] for row in found["monitor"].history] == [1, 2, 3, 4]
    assert_same({k: v.state_dict() for k, v in found.items()}, {k: v.state_dict() for k, v in expected.items()})
    assert_same(rest.state.metrics, whole.state.metrics)


# ---- several processes


def train_part(rank, world, folder):
    """Losses and weights of one process of several, or of one that has the whole batch."""
    for kind, accumulation in (("ijepa", 1), ("mae", 3)):
        # in float64: where a gradient is 0 but for rounding (a key's bias), Adam makes float32's noise a whole step
        network = plain = make_network(kind).double()
        dataset = cases(8, dtype=torch.float64)
        sampler = DistributedSampler(dataset, world, rank, shuffle=True)
        loader = DataLoader(dataset, batch_size=2 // world, sampler=sampler)
        if world > 1:
            network = DistributedDataParallel(network)
        optimizer, losses = make_optimizer(plain), []
        options = {"kind": kind, "accumulation": accumulation, "rank": rank, "world": world}
        trainer = make_trainer(network, loader, optimizer, [EpochSeed(3, dataset, sampler, rank)], **options)
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda e, to=losses: to.append(e.state.output["loss"].item())
        )
        trainer.run()
        torch.save(plain.state_dict(), folder / f"{kind}_{rank}_of_{world}.pt")
        (folder / f"{kind}_{rank}_of_{world}.json").write_text(json.dumps(losses))


def train_as_process(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    train_part(rank, 2, folder)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_as_one_with_the_same_batch(tmp_path):
    run_processes(train_as_process, tmp_path)
    train_part(0, 1, tmp_path)
    for kind in ("ijepa", "mae"):
        parts = [json.loads((tmp_path / f"{kind}_{rank}_of_2.json").read_text()) for rank in (0, 1)]
        one = json.loads((tmp_path / f"{kind}_0_of_1.json").read_text())
        assert len(one) == EPOCHS * LENGTH
        assert np.abs(np.subtract(*parts)).min() > 1e-5  # they have different volumes
        np.testing.assert_allclose(np.mean(parts, 0), one, atol=1e-9, rtol=0)
        expected = torch.load(tmp_path / f"{kind}_0_of_1.pt")
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{kind}_{rank}_of_2.pt")
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, atol=1e-9, rtol=0, msg=f"{kind} {rank} {name}")
        start = make_network(kind).double().state_dict()
        assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3  # it did train


# ---- FeatureMonitor


def encoder_of(**options):
    torch.manual_seed(1)
    net = VisionTransformer3D(**{**TINY, "global_pool": "", **options})
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


def by_hand(tokens):
    """Figures of normed patch tokens ``(B, N, E)``, in float64."""
    features = tokens.mean(1)
    count, width = features.shape
    shares = np.linalg.svd(features, compute_uv=False)
    shares = shares / shares.sum() + 1e-7
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = features.mean(0)
    normed = tokens - tokens.mean(2, keepdims=True)
    normed = normed / np.sqrt(tokens.var(2, keepdims=True) + 1e-5)
    places = [math.floor(k * (tokens.shape[1] - 1) / 31) for k in range(32)]
    return {
        "samples": count,
        "dimensions": width,
        "rankme": np.exp(-(shares * np.log(shares)).sum()),
        "feature_std": unit.std(0).mean(),
        "relative_std": unit.std(0).mean() * np.sqrt(width),
        "cosine_to_mean": (unit @ mean / np.linalg.norm(mean)).mean(),
        "target_variance": normed[:, places].var(0).mean(),
    }


@pytest.mark.parametrize("prefix", [{"class_token": False}, {"reg_tokens": 2}])
def test_figures_are_those_of_all_volumes_by_hand(prefix):
    encoder = encoder_of(**prefix)
    skip = encoder.num_prefix_tokens
    with torch.no_grad():
        tokens = encoder.forward_features(torch.stack(volumes(5)))[:, skip:].double().numpy()
    expected = by_hand(tokens)
    engine = Engine(lambda *_: None)
    monitor = FeatureMonitor(encoder, DataLoader(cases(5), batch_size=2))
    monitor.attach(engine)
    engine.run([0], max_epochs=1)
    assert monitor.history == [{"epoch": 1, **monitor.report().as_dict()}]
    assert monitor.history[0] == pytest.approx({"epoch": 1, **expected}, rel=2e-5)
    del expected["samples"], expected["dimensions"]
    assert engine.state.metrics == pytest.approx(expected, rel=2e-5)


def test_figures_in_millimetres_have_each_volumes_spacing():
    spacings = [(1, 1, 1), (0.7, 0.7, 5), (2, 1, 0.5), (1, 1, 1), (1, 1, 1)]
    encoder = encoder_of(rope="mm", pos_embed="none")
    for block in encoder.blocks:  # attention that is not nearly even
        block.attn.qkv.weight.data.mul_(4)
    affines = [torch.diag(torch.tensor([*mm, 1.0], dtype=torch.float64)) for mm in spacings]
    read = {"original_affine": np.eye(4)}
    items = [{"image": MetaTensor(v, affine=a, meta=dict(read))} for v, a in zip(volumes(5), affines)]
    monitor = FeatureMonitor(encoder, DataLoader(items, batch_size=2, collate_fn=list_data_collate))
    found, tokens = monitor.report().as_dict(), []
    assert encoder.rope.spacing_mm is None
    for volume, mm in zip(volumes(5), spacings):
        set_spacing(encoder, mm)
        with torch.no_grad():
            tokens.append(encoder.forward_features(volume[None])[:, encoder.num_prefix_tokens :].double().numpy())
    assert found == pytest.approx(by_hand(np.concatenate(tokens)), rel=2e-5)
    # as if all had the last one's: other figures; and so plain tensors are taken, told by hand
    set_spacing(encoder, (1, 1, 1))
    alike = FeatureMonitor(encoder, DataLoader(cases(5), batch_size=2)).report().as_dict()
    assert abs(alike["rankme"] / found["rankme"] - 1) > 1e-3
    encoder.rope.spacing_mm = None
    with pytest.raises(ValueError, match="none was set"):
        FeatureMonitor(encoder, DataLoader(cases(5), batch_size=2)).report()


@pytest.mark.slow
def test_training_goes_on_as_without_a_monitor(tmp_path):
    watched, one = make_run(tmp_path / "a", kind="mae")
    alone, two = make_run(tmp_path / "b", kind="mae", watch=False)
    watched.run()
    alone.run()
    assert_same(one["network"].state_dict(), two["network"].state_dict())
    assert len(one["monitor"].history) == EPOCHS


def test_encoder_and_random_state_stay_as_they_were():
    encoder, seen = encoder_of(**DROP), []
    monitor = FeatureMonitor(encoder, DataLoader(cases(4), batch_size=2))
    expected = monitor.report()
    encoder.train().blocks[0].eval()
    encoder.norm.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    modes = [module.training for module in encoder.modules()]
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    assert monitor.report() == expected  # no dropout
    assert seen == [False, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in encoder.modules()] == modes
    assert_same(dict(encoder.state_dict()), weights)
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())


def test_interval_leaves_no_old_figures_in_the_metrics():
    engine, found = Engine(lambda *_: None), []
    monitor = FeatureMonitor(encoder_of(), DataLoader(cases(3), batch_size=2), interval=2)
    monitor.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: found.append("rankme" in e.state.metrics))
    engine.run([0], max_epochs=5)
    assert found == [False, True, False, True, False]
    assert [row["epoch"] for row in monitor.history] == [2, 4]


def test_handlers_behind_it_log_the_figures(caplog, monkeypatch):
    network = make_network()
    monitor = FeatureMonitor(network.encoder, DataLoader(cases(3), batch_size=2))
    handlers = [monitor, StatsHandler(name="stats", iteration_log=False)]
    monkeypatch.setattr(logging.getLogger("stats"), "propagate", True)  # MONAI's loggers keep to themselves
    caplog.set_level(logging.INFO)
    make_trainer(network, DataLoader(cases(4), batch_size=2), make_optimizer(network), handlers, epochs=2).run()
    logged = [record.message for record in caplog.records if record.name == "stats" and "Metrics" in record.message]
    for epoch, line in enumerate(logged):
        assert f"rankme: {monitor.history[epoch]['rankme']:.4f}" in line
        assert f"learning_rate: {RATE(2 * epoch + 1, 4):.4f}" in line
    assert len(logged) == 2
    assert any("epoch 2: features of 3 volumes: rankme" in record.message for record in caplog.records)


@pytest.mark.slow
def test_collapsed_training_stops_and_says_why(tmp_path):
    def run(seed=0):
        trainer, objects = make_run(tmp_path, seed=seed, alarm=CollapseAlarm(patience=3))
        # all volumes have the same tokens; by a hook, as weights that are given later are not resumed over
        for encoder in (objects["network"].context_encoder, objects["network"].target_encoder):
            encoder.patch_embed.register_forward_hook(lambda module, images, tokens: torch.zeros_like(tokens))
        StatsHandler(name="stats", iteration_log=False).attach(trainer)  # it handles exceptions, too
        with pytest.raises(TrainingCollapsed, match=r"epoch 3: The features have collapsed: 3 bad .*\(5, 24\): RankMe"):
            trainer.run()
        return trainer, objects

    trainer, objects = run()
    assert (trainer.state.epoch, trainer.state.iteration) == (3, 3 * LENGTH)
    assert objects["monitor"].history[-1]["cosine_to_mean"] == pytest.approx(1.0, abs=1e-9)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["epoch"] == 2
    assert [row["epoch"] for row in saved["monitor"]["history"]] == [1, 2]
    again, resumed = run(seed=1)  # at once: the alarm came back, too
    assert again.state.epoch == 3
    assert_same(resumed["monitor"].state_dict(), objects["monitor"].state_dict())


def test_state_is_a_snapshot_and_an_alarm_may_come_and_go():
    monitor = FeatureMonitor(encoder_of(), DataLoader(cases(3), batch_size=2), CollapseAlarm())
    monitor.history.append({"epoch": 1, "rankme": 2.0})
    monitor.alarm.epoch = 7
    state = monitor.state_dict()
    monitor.history[0]["rankme"] = 0.0
    assert state["history"] == [{"epoch": 1, "rankme": 2.0}]
    without = FeatureMonitor(monitor.encoder, monitor.loader)
    without.load_state_dict(state)
    assert without.history == state["history"]
    monitor.load_state_dict(without.state_dict())
    assert (monitor.history, monitor.alarm.epoch) == (state["history"], 7)
    with pytest.raises(KeyError, match="history"):
        monitor.load_state_dict({})


def test_monitor_refuses_loaders_that_tell_nothing():
    encoder = encoder_of(dynamic_img_size=True)
    with pytest.raises(UsageError, match="interval=0"):
        FeatureMonitor(encoder, [], interval=0)
    with pytest.raises(UsageError, match=r"1 volume\(s\); expected two or more"):
        FeatureMonitor(encoder, DataLoader(cases(1), batch_size=2))
    one, small = ({"image": torch.rand(1, 1, size, 16, 16)} for size in (16, 8))
    with pytest.raises(UsageError, match=r"1 volume\(s\); expected two or more"):
        FeatureMonitor(encoder, [one]).report()
    with pytest.raises(UsageError, match="volumes of 32 to 64 patches"):
        FeatureMonitor(encoder, [one, small]).report()
    with pytest.raises(UsageError, match="expected a dictionary with 'scan'"):
        FeatureMonitor(encoder, [one], key="scan").report()
