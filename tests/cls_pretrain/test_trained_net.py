"""The cure without labels: the loss, a teacher that stays as it is, any folder, resuming, and every fault."""

import copy
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from lazy_parts import ENVIRONMENT, REPO, LazyTrain, losses, record
from safetensors.torch import load_file, save_file
from torch import nn
from trained_net import TrainedNet, layer_decay_params

from last_vit.data.synthetic import SyntheticObjects, write_imagenet
from last_vit.dense import dense_forward
from last_vit.models import parse_model_argument

CURE, TUNE = (REPO / "cls_pretrain" / "configs" / f"{name}.py" for name in ("cure", "finetune_vit_tiny"))
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.full((3,), -1)
TRAINER = LazyTrain("cls_pretrain")


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A small ViT of timm's with 5 classes, all weights random, as a model text."""
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=5)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(vit.state_dict(), path)
    return f"timm:test_vit@{path}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images with three class folders per split, and a folder of images, nested, with nothing known of them."""
    folder = tmp_path_factory.mktemp("photos")
    for split, number in (("train", 16), ("val", 9)):
        write_imagenet(SyntheticObjects(number, split, image_size=40, num_classes=3), folder / "imagenet")
    inner = Path(shutil.copytree(folder / "imagenet/val", folder / "any"))
    shutil.move(next(inner.glob("*/*.JPEG")), inner)
    return folder


@pytest.fixture
def cure(init, photos, monkeypatch, tmp_path):
    """`cure(*words, data="any")`: 4 iterations of 4 images at 32 px in a folder of its own; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    options = [f"train.{one}" for one in ("max_iter=4", "log_period=1", "checkpointer.period=2", "output_dir=run")]
    options += [f"dataloader.{part}.{one}" for part in ("train", "test") for one in ("batch_size=4", "num_workers=0")]
    options += [f"model.init={init}", "model.image_size=32", "train.bf16=False"]

    def run(*words, data="any", config=CURE):
        flags, settings = ([word for word in words if ("=" in word) is kind] for kind in (False, True))
        return TRAINER.run(*flags, *options, f"dataloader.train.dataset.root={photos / data}", *settings, config=config)

    return run


@pytest.mark.parametrize(("temperature", "pool"), [(1.0, "last"), (2.5, "last"), (1.0, "cls")])
def test_loss_is_the_formula_in_float64(init, temperature, pool):
    """Which is 0 for the teacher's own read-out, from which training starts."""
    net = TrainedNet(init, None, 32, temperature, pool, 0.5).train()
    target, logits = (each(IMAGES).double() / temperature for each in (net.teacher, net.model))
    p, q = target.softmax(1), logits.softmax(1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    loss = net(IMAGES, LABELS)["loss_kl"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert (loss.item() > 0.01) == (pool == "last")


def test_teacher_is_frozen_and_no_part_of_the_student(init):
    net = TrainedNet(init, None, 32, 1.0, "last", 1).train()
    before = copy.deepcopy(net.teacher.state_dict())
    net(IMAGES, LABELS)["loss_kl"].backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.teacher.state_dict().items())
    assert all(weight.grad is None and not weight.requires_grad for weight in net.teacher.parameters())
    assert not net.teacher.training
    assert set(net.state_dict()) == {f"model.{name}" for name in before}
    assert next(net.to(torch.float64).teacher.parameters()).dtype == torch.float64
    assert copy.deepcopy(net).teacher is not net.teacher


def test_the_head_is_kept_unless_a_number_of_classes_is_given(init):
    kept, new = TrainedNet(init).model, TrainedNet(init, num_classes=3, image_size=32).model
    weights = load_file(init.partition("@")[2])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in kept.state_dict().items())
    other = {name for name, tensor in new.state_dict().items() if not torch.equal(tensor, weights[name])}
    assert (other, new.head.out_features) == ({"head.weight", "head.bias", "pos_embed"}, 3)
    kept.set_input_size(img_size=32)
    assert torch.equal(kept.pos_embed, new.pos_embed)


def test_learning_rates_fall_by_layer(init):
    """Embeddings, then blocks, then the head, whose rate is whole; the final norm goes with the last block."""
    net = TrainedNet(init)
    groups = layer_decay_params(0.1, 0.05, 0.5, net)
    found = {weight: (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    depth = len(net.model.blocks)
    for name, weight in net.model.named_parameters():
        block = re.match(r"blocks\.(\d+)", name)
        above = depth - int(block[1]) if block else {"head": 0, "norm": 1}.get(name.partition(".")[0], depth + 1)
        assert found.pop(weight) == (pytest.approx(0.1 * 0.5**above), 0.05 if weight.ndim > 1 else 0.0), name
    assert not found


def test_a_folder_without_labels_is_enough(cure, init):
    assert cure() == 0
    trained = parse_model_argument(f"{init.partition('@')[0]}@run/model_final.pth").load(image_size=32)
    assert trained.pooling == {"pool": "last", "top_k": 0.5, "variant": "release", "sigma": None}
    kept = record("run/train_run.json")
    assert (kept["metrics"].keys(), kept["n_images"], kept["dataset"]) == ({"teacher_agreement"}, 9, "any all, 32 px")
    assert cure("--eval-only", "train.init_checkpoint=run/model_final.pth") == 0
    assert record("run/eval_run.json")["metrics"] == kept["metrics"]


def test_registers_act_through_attention_alone_and_are_saved(init, tmp_path):
    net, plain = (TrainedNet(init, image_size=32, num_registers=number, pool="cls") for number in (3, 0))
    assert set(net.state_dict()) - set(plain.state_dict()) == {"model.reg_token"}
    assert (net(IMAGES) - plain(IMAGES)).abs().max() > 0
    lowest = min(layer_decay_params(1.0, 0.05, 0.5, net), key=lambda group: group["lr"])
    assert any(weight is net.model.reg_token for weight in lowest["params"])  # not the head's learning rate
    for one in (net, plain):
        for block in one.model.blocks:
            block.attn.forward = lambda tokens, **_: torch.zeros_like(tokens)
    assert torch.equal(net(IMAGES), plain(IMAGES))
    torch.save({"model": net.state_dict(), "pooling": net.pooling}, tmp_path / "net.pth")
    again = parse_model_argument(f"{init.partition('@')[0]}@{tmp_path}/net.pth").load().model
    assert all(torch.equal(tensor, net.state_dict()[f"model.{name}"]) for name, tensor in again.state_dict().items())
    assert dense_forward(again, IMAGES).patch_tokens.shape[1] == 4


def test_labels_and_boxes_are_used_where_they_are(cure, photos):
    """3 classes are not the model's 5, until Kaggle's mapping says which of 5 they are."""
    (photos / "imagenet/LOC_synset_mapping.txt").unlink(missing_ok=True)
    words = ("train.max_iter=1", "model.pool=cls", "optimizer.lr=0.0", "dataloader.test.dataset.boxes=True")
    assert cure(*words, data="imagenet") == 0
    metrics = record("run/train_run.json")["metrics"]
    assert {"teacher_agreement", "point_in_box", "point_in_box_random"} <= metrics.keys()
    assert ("acc1" in metrics, metrics["teacher_agreement"]) == (False, 100)
    (photos / "imagenet/LOC_synset_mapping.txt").write_text("".join(f"n0000000{i} x\n" for i in range(5)))
    assert cure(*words, "train.output_dir=two", data="imagenet") == 0
    metrics = record("two/train_two.json")["metrics"]
    assert metrics["teacher_acc1"] == metrics["acc1"] <= metrics["acc5"]


@pytest.mark.parametrize(("config", "words"), [(CURE, ()), (TUNE, ("model.num_classes=3", "optimizer.lr=0.01"))])
def test_resumes_bit_identically(cure, config, words):
    run = partial(cure, *words, data="imagenet", config=config)
    assert run("train.checkpointer.max_to_keep=3") == 0
    shutil.copytree("run", "two")
    Path("two/last_checkpoint").write_text("model_0000001.pth")
    assert run("--resume", "train.output_dir=two") == 0
    assert losses("two") == losses("run")
    final, again = (torch.load(f"{folder}/model_final.pth")["model"] for folder in ("run", "two"))
    assert all(torch.equal(final[name], again[name]) for name in final)


@pytest.mark.parametrize(
    ("words", "data", "message"),
    [
        (["model.temperature=0.0"], "any", "a model.temperature above 0, got temperature 0.0"),
        (["model.num_classes=3"], "any", "its own head .*num_classes 3"),
        (["model.image_size=40"], "any", "must be a multiple of the patch size 16, got 40 pixels; near ones: 32, 48"),
        (["model.top_k=5"], "any", r"top_k must be in \[1, 4\]"),
        (["model.num_registers=-1"], "any", "num_registers=-1 is for a ViT with"),
        (["model.init=timm:test_resnet@random", "model.num_registers=1"], "any", "num_registers=1 is for a ViT with"),
        (["model.init=torchvision:vit_b_16@random"], "any", "model.init must be a timm model"),
        (["model.init=timm:no_such_vit@random"], "any", "no_such_vit"),
        (["model.init=timm:vit_small_patch16_224.dino@random", "model.temperature=null"], "imagenet", "has no head to"),
        ([], "nowhere", "no folder .*nowhere"),
        (["dataloader.test.dataset.labelled=True"], "any", "any has no such split"),
        (["dataloader.test.dataset.labelled=True"], "imagenet", "3 classes, the classifier 5: .*its num_classes"),
        (["dataloader.test.dataset.boxes=True"], "any", "no XML boxes"),
        (["model.temperature=null"], "any", "has 0 classes, the model 5"),
    ],
)
def test_user_errors_are_one_message(words, data, message, cure, photos, capfd):
    (photos / "imagenet/LOC_synset_mapping.txt").unlink(missing_ok=True)
    assert cure(*words, data=data) == 2
    error = capfd.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
