"""Means over groups of classes: the identity of OV-COCO, LVIS's groups, and classes without objects."""

import numpy as np
import pytest
from detection_ap import ClassAP
from ov_classes import read_ov_classes
from ov_groups import count_classes, group_metrics
from ov_parts import all_65, coco_categories, lvis_categories


def random_ap(num_classes):
    return ClassAP(*np.random.default_rng(0).random((2, num_classes)))


def test_the_identity_of_ov_coco():
    classes, ap = read_ov_classes(coco_categories(all_65())), random_ap(65)
    found = group_metrics(ap, classes)
    assert set(found) == {f"{metric}_{group}" for metric in ("ap", "ap50") for group in ("all", "base", "novel")}
    for metric, values in (("ap", ap.ap), ("ap50", ap.ap50)):
        everything = (48 * found[f"{metric}_base"] + 17 * found[f"{metric}_novel"]) / 65
        assert found[f"{metric}_all"] == pytest.approx(everything, abs=1e-9)
        novel = [value for value, is_novel in zip(values, classes.split.novel, strict=True) if is_novel]
        assert found[f"{metric}_novel"] == pytest.approx(100 * sum(novel) / 17)
    assert count_classes(ap, classes) == {"base_classes": 48, "novel_classes": 17, "classes_without_objects": 0}


def test_lvis_groups():
    classes, ap = read_ov_classes(lvis_categories(10)), random_ap(10)
    found = group_metrics(ap, classes)
    assert found == pytest.approx(
        {
            "ap": 100 * ap.ap.mean(),
            "ap50": 100 * ap.ap50.mean(),
            "apr": 100 * ap.ap[0::3].mean(),
            "apc": 100 * ap.ap[1::3].mean(),
            "apf": 100 * ap.ap[2::3].mean(),
        }
    )
    assert count_classes(ap, classes) == {"base_classes": 6, "novel_classes": 4, "classes_without_objects": 0}


def test_classes_without_objects_are_in_no_mean():
    classes, ap = read_ov_classes(coco_categories(["cat", "person", "dog", "car"])), random_ap(4)
    ap.ap50[[0, 1]] = ap.ap[[0, 1]] = np.nan
    found = group_metrics(ap, classes)
    assert found["ap50_all"] == pytest.approx(50 * (ap.ap50[2] + ap.ap50[3]))
    assert found["ap50_novel"] == pytest.approx(100 * ap.ap50[2])
    assert found["ap50_base"] == pytest.approx(100 * ap.ap50[3])
    assert count_classes(ap, classes) == {"base_classes": 1, "novel_classes": 1, "classes_without_objects": 2}
    ap.ap50[2] = ap.ap[2] = np.nan
    found = group_metrics(ap, classes)
    assert set(found) == {"ap50_all", "ap50_base", "ap_all", "ap_base"}
    assert not any(np.isnan(value) for value in found.values())


def test_other_classes():
    with pytest.raises(ValueError, match="AP of 3 classes for 4 classes"):
        group_metrics(random_ap(3), read_ov_classes(lvis_categories(4)))
