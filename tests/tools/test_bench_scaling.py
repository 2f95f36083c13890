"""Bytes by arithmetic against those that two gloo processes hand to their collectives; times by hand."""

import json

import bench_collectives
import bench_scaling
import pytest
import torch
from bench_collectives import Link, Messages, all_gather_bytes, all_reduce_bytes, gradient_bytes, step_seconds
from bench_scaling import clip_features, dino_reduced, main
from torch import multiprocessing

DINO_OUT = 48  # prototypes of the tiny network
MODELS = {name: lambda: (torch.nn.Linear(1000, 250, bias=False), 16) for name in ("clip",)}


def test_ring_all_reduce_sends_what_a_ring_sends():
    """Chunk by chunk: n - 1 rounds of reduce-scatter and n - 1 of all-gather, each with one chunk of S / n per GPU."""
    for n in (1, 2, 8, 64):
        size = 6400
        assert all_reduce_bytes(size, n) == sum(size / n for _ in range(2 * (n - 1)))
        assert all_gather_bytes(size, n) == sum(size for _ in range(n - 1))


def test_time_of_a_step_by_hand():
    link = Link(intra=400.0, inter=50.0)
    messages = Messages(gradients=8_000_000_000, reduced=800_000_000, gathered=100_000_000, gathered_back=100_000_000)
    behind, alone = 2 * 7 / 8 * 8e9 / 400e9, (2 * 7 / 8 * 0.8e9 + 7 * 0.2e9) / 400e9
    assert step_seconds(0.1, messages, link, 8, overlap=False) == pytest.approx(0.1 + behind + alone)
    assert step_seconds(0.1, messages, link, 8, overlap=True) == pytest.approx(0.1 + alone)
    assert step_seconds(0.01, messages, link, 8, overlap=True) == pytest.approx(behind + alone)
    slow = (2 * 63 / 64 * 8.8e9 + 63 * 0.2e9) / 50e9  # beyond a node the slower link
    assert step_seconds(0.1, messages, link, 64, overlap=False) == pytest.approx(0.1 + slow)
    assert step_seconds(0.1, messages, link, 1, overlap=False) == 0.1


def test_gradients_of_frozen_parameters_are_not_sent():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2, bias=False).requires_grad_(False))
    assert gradient_bytes(model) == 4 * 20
    assert gradient_bytes(model, 2) == 2 * 20


def test_models_of_the_tracks():
    """Parameter counts that are known: torchvision's ViT-B/16, DINO's ViT-S/16 with its head, open_clip's ViT-B-16."""
    with torch.device("meta"):
        assert gradient_bytes(bench_scaling.build_cls("cls_pretrain_ViT-B/16")) == 4 * 86_567_656
        dino = bench_scaling.build_dino()
    head = (384 + 1) * 2048 + (2048 + 1) * 2048 + (2048 + 1) * 256 + 256 * 65536  # weight_g is fixed
    assert gradient_bytes(dino) == 4 * (21_665_664 + head)
    clip, width = bench_scaling.build_clip()
    assert (gradient_bytes(clip), width) == (4 * 149_620_737, 512)


def size_of(tensor):
    return tensor.numel() * tensor.element_size()


def _worker(rank, init_file, results):
    """Every track's step in DDP over gloo, with the collectives' tensors counted."""
    import open_clip
    from classification_net import ClassificationNet
    from cls_trainer import ClsTrainer
    from dino_loss import DinoLoss
    from dino_optimizers import build_optimizer, parameter_groups
    from dino_parts import tiny_network
    from dino_step import DinoStep, Schedules
    from torch import distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel
    from torchvision.models import VisionTransformer

    from last_vit.metrics import PointInBox

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    counted = {}
    all_reduce, all_gather = dist.all_reduce, dist.all_gather

    def count(name, *tensors):
        counted[name] = counted.get(name, 0) + sum(map(size_of, tensors))

    def counting_all_reduce(tensor, *args, async_op=False, **kwargs):
        if not async_op:  # the hook's own
            count("reduced", tensor)
        return all_reduce(tensor, *args, async_op=async_op, **kwargs)

    def counting_all_gather(parts, tensor, *args, **kwargs):
        count("gathered", tensor)
        return all_gather(parts, tensor, *args, **kwargs)

    def hook(group, bucket):
        count("gradients", bucket.buffer())
        return allreduce_hook(group, bucket)

    dist.all_reduce, dist.all_gather = counting_all_reduce, counting_all_gather
    torch.manual_seed(0)

    net = ClassificationNet(VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=3), "last", 1)
    ddp = DistributedDataParallel(net, broadcast_buffers=False)
    ddp.register_comm_hook(None, hook)
    batch = {"image": torch.randn(2, 3, 16, 16), "label": torch.zeros(2, dtype=torch.long)}
    trainer = ClsTrainer(model=ddp, data_loader=[batch], optimizer=torch.optim.SGD(net.parameters(), lr=0.1))
    trainer.train(0, 1)
    results.put(("cls", dict(counted), gradient_bytes(net)))

    counted.clear()
    student, teacher = tiny_network(DINO_OUT), tiny_network(DINO_OUT)
    schedule = Schedules(*(torch.full((1,), value).numpy() for value in (0.1, 0.0, 0.9, 0.04)))
    optimizer = build_optimizer("sgd", parameter_groups(student))
    step = DinoStep(student, teacher, DinoLoss(DINO_OUT, 4), optimizer, schedule)
    step._shared.register_comm_hook(None, hook)
    step([torch.randn(2, 3, side, side) for side in (32, 32, 16, 16)], 0, 0)
    results.put(("dino", dict(counted), gradient_bytes(student)))

    counted.clear()
    loss = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=2)
    images, texts = (torch.randn(3, 16, requires_grad=True) for _ in range(2))
    loss(images, texts, torch.ones(())).backward()
    results.put(("clip", dict(counted), 0))

    counted.clear()
    hits = PointInBox(crop=56, resize=64)
    boxes, sizes = torch.tensor([[0.0, 0.0, 30.0, 30.0]]), torch.tensor([[64, 64]])
    hits.update(torch.zeros(1, dtype=torch.long), boxes, sizes, (4, 4))
    hits.compute()
    results.put(("point_in_box", dict(counted), 0))
    dist.all_reduce, dist.all_gather = all_reduce, all_gather
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_send_what_the_arithmetic_says(tmp_path):
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_worker, (str(tmp_path / "init"), results), nprocs=2)
    told = [results.get() for _ in range(8)]
    for name, counted, gradients in told:
        expected = {
            "cls": {"gradients": gradients, "reduced": bench_scaling.CLS_REDUCED},
            "dino": {"gradients": gradients, "reduced": dino_reduced(DINO_OUT)},
            "clip": {"gathered": clip_features(3, 16)["gathered"]},
            "point_in_box": {"reduced": bench_scaling.POINT_IN_BOX},
        }[name]
        assert counted == expected, name


@pytest.fixture
def small(monkeypatch, tmp_path):
    """One track whose model has 250,000 parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_scaling, "TRACKS", {"clip_ViT-B/16": 100})
    monkeypatch.setattr(bench_scaling, "build_clip", MODELS["clip"])
    return tmp_path


def test_needed_step_without_a_measured_one(small, capsys):
    main(["--device", "cpu"])
    shown = capsys.readouterr().out
    assert "step on one GPU not known" in shown
    assert "efficiency 100%" in shown  # of one GPU; no other
    assert shown.count("efficiency") == 1
    gradients, features = 2 * 63 / 64 * 1e6, 63 * 2 * (2 * 100 * 16 * 4)
    needed = 9 * (gradients + features) / 50e9
    assert f"64 GPUs, gradients in float32   each sends {gradients / 1e6:7.1f} + {features / 1e6:7.2f} MB" in shown
    assert f"a step of {1000 * needed:.1f} ms would be 90% efficient" in shown


def test_efficiency_from_a_given_step_and_the_record(small, capsys):
    main(["--device", "cpu", "--step-ms", "clip_ViT-B/16=1", "--record"])
    gradients, features = 2 * 63 / 64 * 1e6 / 50e9, 63 * 2 * (2 * 100 * 16 * 4) / 50e9
    record = json.loads((small / "results" / "bench_scaling.json").read_text())
    kept = record["metrics"]
    without = 100 * 1e-3 / (1e-3 + gradients + features)
    assert kept["efficiency_clip_ViT-B/16_float32_64_overlap0"] == pytest.approx(without, abs=1e-3)
    assert kept["efficiency_clip_ViT-B/16"] == pytest.approx(without, abs=1e-3)
    hidden = 100 * 1e-3 / (1e-3 + features)
    assert kept["efficiency_clip_ViT-B/16_float32_64_overlap100"] == pytest.approx(hidden, abs=1e-3)
    assert kept["sent_clip_ViT-B/16_bfloat16_8"] == pytest.approx(2 * 7 / 8 * 0.5 + 7 * 2 * 12800 / 1e6, abs=1e-3)
    assert "goal" not in capsys.readouterr().out


def test_the_step_of_the_training_rates_record(small, capsys):
    (small / "results").mkdir()
    record = {"metrics": {"clip_ViT-B/16": 2000.0}, "config": {"batches": {"clip_ViT-B/16": 50}}}
    (small / "results" / "bench_training_rate_cuda.json").write_text(json.dumps(record))
    main(["--device", "cpu"])
    assert "50 images per GPU, step on one GPU 25.0 ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step-ms", "vit=3"], "takes TRACK=MS with a track of"),
        (["--step-ms", "clip_ViT-B/16=0"], "--step-ms takes positive numbers"),
        (["--step-ms", "clip_ViT-B/16=soon"], "could not convert"),
        (["--inter-gbs", "-1"], "--inter-gbs takes positive numbers"),
    ],
)
def test_errors(small, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        main(["--device", "cpu", *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_nodes_have_eight_gpus():
    assert bench_collectives.GPUS_PER_NODE == 8
    assert Link(100.0, 10.0).seconds(1e9, 8) == 0.01
    assert Link(100.0, 10.0).seconds(1e9, 9) == 0.1
