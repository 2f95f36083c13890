"""A dump of an evaluation: read back it is what was evaluated, and scored anew it is what a forward pass finds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rescore
import torch
from detection_ap import detection_ap
from detection_dump import Dump
from detectron2.config import instantiate
from lazy_parts import REPO
from ov_detector import detector_of
from ov_evaluator import group_metrics
from ov_training import evaluate
from score_grid import detections_at, score_points

from last_vit.lazy_config import read_config

DEBUG = REPO / "ov_detection" / "configs" / "ov_coco" / "debug_synthetic.py"
GRID = {"alpha": [0.0, 0.5], "beta": [1.0], "vlm_temperature": [20.0]}


class Detector:
    """The debug configuration's, with random weights, and its test images."""

    def __init__(self, *overrides):
        torch.manual_seed(0)
        self.cfg = read_config(str(DEBUG), ["model.rpn.post_nms_topk=[50,60]", *overrides], "")
        self.loader = instantiate(self.cfg.dataloader.test)
        self.json = self.loader.dataset.dataset.json_file
        classes = self.loader.dataset.dataset.classes
        self.model = detector_of(self.cfg, classes.names, classes.base_names, torch.device("cpu"))
        self.predictor = self.model.roi_heads.box_predictor
        torch.nn.init.normal_(self.predictor.bbox_pred.weight, std=0.02)

    def dump(self, folder, dump_regions=0):
        self.cfg.evaluation.update(dump=str(folder), dump_regions=dump_regions)
        found = evaluate(self.model, self.loader, torch.device("cpu"), self.cfg.evaluation, bf16=False)
        return found.metrics, Dump(Path(folder), self.json)


@pytest.fixture(scope="module")
def dumped(detector, tmp_path_factory):
    """One dump, with the metrics of its evaluation, to be copied."""
    folder = tmp_path_factory.mktemp("dumped") / "dump"
    return folder, detector.dump(folder)[0]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.chdir(folder)
        return Detector(f"dataloader.test.dataset.folder={folder}")


def assert_same(ours, theirs, rtol=0):
    assert len(ours) == len(theirs) == 10
    theirs = {image.image_id: image for image in theirs}
    for image in ours:
        other = theirs[image.image_id]
        assert len(image.scores) > 20
        for name in ("boxes_xyxy", "scores", "labels"):
            np.testing.assert_allclose(getattr(image, name), getattr(other, name), rtol=rtol, atol=0)


def test_own_settings_are_exact_with_the_regions_of_detections_alone(detector, dumped):
    folder, metrics = dumped
    dump = Dump(folder, detector.json)
    assert not dump.about["all_regions"]
    detections = dump.detections()
    assert {type(image.masks[0]["counts"]) for image in detections} == {str}
    for kind, prefix in (("box", ""), ("mask", "mask_")):
        found = group_metrics(detection_ap(dump.content, dump.classes, detections, kind, 1000), dump.classes)
        assert {f"{prefix}{name}": value for name, value in found.items()}.items() <= metrics.items()
    (images,) = detections_at(dump, score_points(dump.scoring(), {}), 2)
    assert_same(images, detections)


def test_other_settings_are_those_of_a_forward_pass_when_all_regions_are_there(detector, tmp_path, monkeypatch):
    _, dump = detector.dump(tmp_path / "dump", dump_regions=1000)
    assert dump.about["all_regions"]
    points = score_points(dump.scoring(), GRID)
    points += score_points(dump.scoring(), {"det_temperature": [10.0]})[1:]
    assert len(points) == 4
    firsts = []
    for point, images in zip(points, detections_at(dump, points, 1), strict=True):
        monkeypatch.setattr(detector.predictor, "fusion", {n: point[n] for n in ("alpha", "beta", "fusion")})
        monkeypatch.setattr(detector.predictor, "vlm_temperature", point["vlm_temperature"])
        monkeypatch.setattr(detector.predictor.classifier, "fixed_temperature", point["det_temperature"])
        _, fresh = detector.dump(tmp_path / "fresh")
        assert fresh.scoring()["det_temperature"] == point["det_temperature"]
        is_rounded = point["det_temperature"] != points[0]["det_temperature"]  # logits are kept, not cosines
        assert_same(images, fresh.detections(), rtol=1e-5 if is_rounded else 0)
        firsts.append(images[3].scores.tolist())
    assert len({tuple(scores) for scores in firsts}) == len(points)


def test_command_prints_the_grid_and_keeps_it(detector, dumped, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, metrics = dumped
    rescore.main([str(folder), "--json", str(detector.json), "--alpha", "0", "0.1", "--beta", "0.2", "--row", "mine"])
    printed = capsys.readouterr().out
    assert "only the first line is exact" in printed
    (path,) = Path("results").iterdir()
    record = json.loads(path.read_text())
    heading, own, *others = record["details"]
    assert heading[:4] == ["alpha", "beta", "vlm_temperature", "det_temperature"]
    assert own[:3] == [0.1, 0.8, 75.0]
    assert [row[:2] for row in others] == [[0.0, 0.2], [0.1, 0.2]]
    assert record["metrics"]["ap50_all"] == pytest.approx(metrics["ap50_all"], abs=1e-4)
    assert record["n_images"] == 10


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (None, ["--alpha", "0.5", "1.2"], "--alpha must be in [0, 1], got 1.2"),
        (None, ["--beta", "nan"], "--beta must be in [0, 1], got nan"),
        (None, ["--vlm-temperature", "0"], "--vlm-temperature must be above 0, got 0.0"),
        (None, ["--json", "other.json"], "other.json is another split or version"),
        (None, ["--json", "nowhere.json"], "nowhere.json"),
        (lambda: Path("dump/dump.json").unlink(), [], "dump has no dump.json"),
        (lambda: cut("dump/dump.json"), [], "dump.json is damaged"),
        (lambda: Path("dump/dump.json").write_text("[]"), [], "dump.json is damaged (it says of no file"),
        (lambda: cut("dump/regions_0.zip"), [], "regions_0.zip is cut or missing"),
        (lambda: Path("dump/regions_0.zip").unlink(), [], "regions_0.zip is cut or missing"),
        (lambda: change_dump(regions=[]), [], "dump has no regions to score anew"),
        (lambda: change_dump(image_ids=[0, 99]), [], "images to be evaluated are not in the file"),
    ],
)
def test_rescore_refuses(damage, arguments, message, detector, dumped, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dumped[0], "dump")
    content = json.loads(detector.json.read_text())
    Path("other.json").write_text(json.dumps({**content, "annotations": content["annotations"][1:]}))
    if damage:
        damage()
    error = refused(rescore.main, "dump", "--json", str(detector.json), *arguments)
    assert error.startswith("rescore.py: error: ")
    assert message in error


def cut(path):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def change_dump(**changes):
    path = Path("dump/dump.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_detections_that_are_cut_or_lack_some_are_refused(detector, dumped, tmp_path):
    shutil.copytree(dumped[0], tmp_path / "dump")
    dump, path = Dump(tmp_path / "dump", detector.json), tmp_path / "dump" / "detections.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:1], *lines[2:]]))
    with pytest.raises(ValueError, match=f"has {len(lines) - 1} detections, {len(lines)} were written"):
        dump.detections()
    cut(path)
    with pytest.raises(ValueError, match=r"detections.json cannot be read \(JSONDecodeError"):
        dump.detections()
    with pytest.raises(ValueError, match="dump_regions must be at least 0, got -1"):
        detector.dump(tmp_path, dump_regions=-1)
