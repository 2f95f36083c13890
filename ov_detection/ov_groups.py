"""AP of groups of classes: base and novel (OV-COCO), rare, common and frequent (OV-LVIS).

A class without any object in the file has no AP. It is left out of every mean and counted; a group without any class
that has one gets no number at all. Where every class has objects, the means fit together:
AP50_all = (48 AP50_base + 17 AP50_novel) / 65 on OV-COCO.
"""

import numpy as np
from detection_ap import ClassAP
from ov_classes import FREQUENCIES, OvClasses


def group_metrics(class_ap: ClassAP, classes: OvClasses) -> dict[str, float]:
    """Means over groups of classes.

    Args:
        class_ap: AP per class, NaN for none.
        classes: The same classes.

    Returns:
        Percent, 0 to 100. LVIS: ap, ap50, apr, apc, apf (APr is that of the novel classes). Else: ap50_all, ap50_base,
        ap50_novel, ap_all, ap_base, ap_novel. Groups without a class that has objects are not in it.

    Raises:
        ValueError: Another number of classes.
    """
    if len(class_ap.ap) != len(classes):
        raise ValueError(f"AP of {len(class_ap.ap)} classes for {len(classes)} classes")
    if classes.is_lvis:
        groups = {f"ap{kind}": (class_ap.ap, np.array(classes.frequencies) == kind) for kind in FREQUENCIES}
        every = np.ones(len(classes), dtype=bool)
        groups = {"ap": (class_ap.ap, every), "ap50": (class_ap.ap50, every), **groups}
    else:
        base, novel = classes.split.base.numpy(), classes.split.novel.numpy()
        masks = {"all": base | novel, "base": base, "novel": novel}
        groups = {
            f"{metric}_{name}": (values, mask)
            for metric, values in (("ap50", class_ap.ap50), ("ap", class_ap.ap))
            for name, mask in masks.items()
        }
    found = {name: values[mask & ~np.isnan(values)] for name, (values, mask) in groups.items()}
    return {name: 100 * float(values.mean()) for name, values in found.items() if len(values)}


def count_classes(class_ap: ClassAP, classes: OvClasses) -> dict[str, int]:
    """How many classes have objects, base and novel apart, and how many have none and are in no mean."""
    has_objects = ~np.isnan(class_ap.ap)
    return {
        "base_classes": int((has_objects & classes.split.base.numpy()).sum()),
        "novel_classes": int((has_objects & classes.split.novel.numpy()).sum()),
        "classes_without_objects": int((~has_objects).sum()),
    }
