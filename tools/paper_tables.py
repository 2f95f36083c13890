"""The tables of README and docs/: their metrics, and published numbers, never ours (make_results_tables.py adds it)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

IMAGENET = "ImageNet-1k val, 224 px"


@dataclass(frozen=True)
class PaperRow:
    """One published number."""

    row: str  # label
    value: float  # the table's first metric, in percent
    source: str  # where it is published
    dataset: str = IMAGENET  # data set and input, without a protocol


@dataclass(frozen=True)
class ResultsTable:
    """One table of docs/results.md."""

    metrics: dict[str, str]  # name in the records -> column title; the first is the one that the paper reports
    paper: tuple[PaperRow, ...] = ()  # the paper's rows, in the order of display; empty for no such column
    decimals: Mapping[str, int] = field(default_factory=dict)  # of a metric that one digit behind the point would hide
    records_of: str | None = None  # the table whose records it shows, where it is another view of them
    apart: tuple[str, ...] = ()  # words of data sets; each data set and input is a table of its own, in this order
    order: tuple[str, ...] = ()  # of rows: by the last of these words that stands in a label
    references: Mapping[str, str] = field(default_factory=dict)  # last rows: label -> what follows a metric's name


@dataclass(frozen=True)
class Task:
    """One line of README's table."""

    words: str  # the task, its data and its measure
    table: str  # name of the table that holds our records
    dataset: str  # how `ResultRecord.dataset` begins: data, input and protocol
    metric: str  # the number that is shown
    paper: tuple[float | None, float | None]  # for CLS and LaSt, on the paper's own data; None where it has none
    rows: tuple[str, str, str]  # labels of our CLS, LaSt and random model; "" for none
    ours: str  # our model in a few words


def _published(source: str, values: Mapping[str, float], dataset: str = IMAGENET) -> tuple[PaperRow, ...]:
    """Rows of one source on one data set, by label."""
    return tuple(PaperRow(row, value, source, dataset) for row, value in values.items())


def _cls_and_last(source: str, dataset: str, values: Mapping[str, tuple[float, float]]) -> tuple[PaperRow, ...]:
    """Rows of models, each with the class token and with LaSt."""
    rows = {
        f"{model}, {pool}": value for model, pair in values.items() for pool, value in zip(_POOLS, pair, strict=True)
    }
    return _published(source, rows, dataset)


_POOLS = ("CLS", "LaSt")
_VOTES = (("1", "1"), ("7", "7"), ("0.5", "N/2"))
_OF_LAYERS: dict[str, tuple[str, ...]] = {
    "apart": ("tiny-imagenet-100", "coco-mini"),
    "order": ("as published", "CLS", "mean", "max", "K=1", "K=7", "K=N/2", "share", "registers", "cured", "random"),
}

# The paper does not say which boxes, hit rule and token its Point-in-Box uses; the README names the choices made here.
TABLES = {
    "point_in_box": ResultsTable(
        metrics={
            "point_in_box": "PiB",
            "point_in_box_random": "random patch",
            "point_in_box_center": "image centre",
            "point_in_box_max": "attainable",
            "outlier_share": "% high norm",
            "acc1": "top-1",
        },
        decimals={"outlier_share": 2},
        paper=(
            *_published("paper", {"ViT, labels, CLS": 42.7, "ViT, labels, LaSt": 55.1}),
            PaperRow("DINO, CLS", 44.5, "paper; 45.3 in its table 1"),
            *_published("paper", {"DINO, LaSt": 69.7, "CLIP, CLS": 39.8, "CLIP, LaSt": 50.1, "ResNet, labels": 68.4}),
            *_published("paper", {"DINO ResNet": 71.1, "CLIP ResNet": 53.9, "ViT with registers, labels": 41.5}),
            PaperRow("OpenCLIP with registers", 37.6, "paper"),
            PaperRow("ViT-S, labels, CLS", 50.1, "paper, table 2"),
        ),
    ),
    "cls_pretrain": ResultsTable(
        metrics={"acc1": "top-1", "acc5": "top-5"},
        paper=(
            *_published("paper, table 9", {"ViT-B/32, attention pooling": 59.1, "ViT-B/32, mean": 64.3}),
            *_published(
                "paper, table 9", {f"ViT-B/32, LaSt K={k}": top1 for k, top1 in ((1, 64.6), (7, 64.8), (49, 64.9))}
            ),
            PaperRow("ViT-S, CLS", 72.3, "paper, table 2"),
            *_published("release's README", {"ViT-B/16, LaSt K=1": 67.4, "ViT-B/16, LaSt K=7": 67.6}),
        ),
    ),
    "score_distribution": ResultsTable(
        metrics={
            "auroc": "AUROC",
            **{f"background_top_{p}": f"% background in top {p} %" for p in (1, 5, 10, 50)},
            "background_share": "% background",
        },
    ),
    "masking_probe": ResultsTable(
        metrics={
            "top1": "top-1, nothing masked",
            **{f"top1_{order}_{p}": f"{order} {p} %" for p in (30, 50, 70) for order in ("top", "random", "bottom")},
        },
    ),
    "norms": ResultsTable(
        metrics={
            "norm_median": "median norm",
            "cutoff": "cut-off",
            "outlier_share": "% outliers",
            "correlation": "r with score",
            "norm_ratio": "object / background",
        },
        decimals={"outlier_share": 2, "correlation": 2, "norm_ratio": 2},
    ),
    "votes": ResultsTable(
        metrics={
            "votes_inside": "% of votes on the object",
            "votes_inside_uniform": "uniform voting",
            "votes_lift": "lift",
            "top_vote_inside": "% top patch on the object",
        },
        decimals={"votes_lift": 2},
    ),
    # of one model over its layers: at the end, by what ranks the patches there, and after every block
    "layers": ResultsTable(
        metrics={
            "acc1": "top-1",
            "point_in_box": "PiB",
            "point_in_box_small": "PiB, small",
            "auroc": "AUROC",
            "corloc": "CorLoc",
            "jaccard": "coarse seg.",
            "votes_inside_7": "% votes inside, K=7",
            "high_norm_share": "% high norm",
            "high_norm_share_inside": "% in the box",
            "high_norm_share_outside": "% outside",
        },
        decimals={f"high_norm_share{where}": 2 for where in ("", "_inside", "_outside")},
        references={"*a random patch*": "_random", "*the centre*": "_center", "*the whole image*": "_everything"},
        **_OF_LAYERS,
    ),
    "layers_by_ranking": ResultsTable(
        metrics={"auroc_norm": "AUROC, norm"}
        | {f"auroc_votes_{k}": f"AUROC, votes K={words}" for k, words in _VOTES}
        | {"auroc_product_7": "AUROC, product K=7"}
        | {"corloc_votes_7": "CorLoc, votes K=7", "corloc_product_7": "CorLoc, product K=7"}
        | {"jaccard_votes_7": "coarse seg., votes K=7"}
        | {"point_in_box_votes_7": "PiB, votes K=7", "point_in_box_small_votes_7": "PiB small, votes K=7"}
        | {f"votes_inside_{k}": f"% votes inside, K={words}" for k, words in _VOTES if k != "7"},
        records_of="layers",
        **_OF_LAYERS,
    ),
    "layers_by_block": ResultsTable(
        metrics={f"point_in_box@{layer}": layer for layer in (*map(str, range(1, 13)), "norm")},
        records_of="layers",
        **_OF_LAYERS,
    ),
    "knn": ResultsTable(
        metrics={f"knn_{k}": f"k = {k}" for k in (20, 10, 100, 200)},
        paper=_published(
            "DINO's repository", {f"DINO ViT-S/16, CLS, {n} epochs": v for n, v in ((100, 69.3), (800, 74.5))}
        ),
    ),
    "linear": ResultsTable(
        metrics={"best_acc1": "best top-1", "acc1": "last top-1"},
        paper=_published(
            "DINO's repository", {f"DINO ViT-S/16, CLS, {n} epochs": v for n, v in ((100, 74.0), (800, 77.0))}
        ),
    ),
    "corloc": ResultsTable(
        metrics={"corloc": "CorLoc", "corloc_whole_image": "whole image"},
        paper=tuple(
            PaperRow(row, value, source, f"{dataset}, native")
            for row, source, values in (
                ("DINO ViT-S/16, LaSt, patch-score", "paper, table 7", (64.4, 67.6, 51.6)),
                ("DINO ViT-S/16, CLS, lost", "LOST", (61.9, 64.0, 50.7)),
                ("DINO ViT-S/16, CLS, tokencut", "TokenCut", (68.8, 72.1, 58.8)),
                ("DINO ViT-S/16, CLS, dino-seg", "LOST", (45.8, 46.2, 42.1)),
            )
            for dataset, value in zip(("VOC07 trainval", "VOC12 trainval", "COCO20k"), values, strict=True)
        ),
    ),
    "coarse_seg": ResultsTable(
        metrics={"miou": "mIoU"},
        # the paper names neither size nor ground truth (union, class, object)
        paper=tuple(
            replace(row, row=f"{row.row}, score")
            for row in _cls_and_last(
                "paper, table 6",
                "VOC12 val, size not given",
                {"ViT-B/16, labels": (22.3, 32.8), "ViT-S/16, labels": (29.5, 41.9), "DINO ViT-S/16": (47.7, 55.1)},
            )
        ),
    ),
    "zero_shot_cls": ResultsTable(
        metrics={"acc1": "top-1", "acc5": "top-5"},
        paper=_published(
            "paper, table 8",
            {"OpenCLIP ViT-B/16, CLS": 55.8, "OpenCLIP ViT-B/16, max": 53.1}
            | {f"OpenCLIP ViT-B/16, LaSt K={k}": top1 for k, top1 in ((1, 53.5), (49, 55.8), (98, 56.2), (196, 55.3))},
        ),
    ),
    "zero_shot_seg": ResultsTable(
        metrics={"miou": "mIoU"},
        paper=(
            *(
                row
                for dataset, values in (
                    ("VOC20 val, 336 px", (49.0, 75.0)),
                    ("Context59 val, 336 px", (11.2, 15.2)),
                    ("COCO-Object val, 336 px", (8.8, 13.3)),
                    ("COCO-Stuff171 val, 336 px", (7.2, 11.8)),
                    ("ADE20K val, 336 px", (3.1, 8.3)),
                    ("Cityscapes val, 560 px", (6.5, 12.1)),
                )
                for row in _cls_and_last("paper, table 4", dataset, {"CLIP ViT-B/16": values})
            ),
            *_cls_and_last(
                "paper, table 4",
                "VOC20 val, 336 px",
                {
                    "MetaCLIP ViT-B/16": (39.6, 72.8),
                    "EVA02-CLIP ViT-B/16": (56.5, 79.6),
                    "CLIP ViT-L/14": (17.1, 72.4),
                    "MetaCLIP ViT-L/14": (25.7, 75.6),
                    "EVA02-CLIP ViT-L/14": (53.8, 76.4),
                },
            ),
        ),
    ),
    "coco": ResultsTable(
        {"seen_ap_all": "box AP, seen", "seen_mask_ap_all": "mask AP, seen", "ap_all": "box AP", "mask_ap_all": "mask"}
    ),
    "ov_coco": ResultsTable(
        metrics={"ap50_novel": "AP50 novel", "ap50_base": "AP50 base", "ap50_all": "AP50 all"},
        paper=_cls_and_last("paper, table 5", "OV-COCO val, 640 px", {"F-ViT, EVA02-CLIP ViT-B/16": (17.5, 33.3)})
        + _cls_and_last("paper, table 5", "OV-COCO val, 896 px", {"F-ViT, EVA02-CLIP ViT-L/14": (24.7, 39.1)}),
    ),
    "ov_lvis": ResultsTable(
        metrics={"mask_apr": "mask APr", "mask_apc": "APc", "mask_apf": "APf", "mask_ap": "AP"},
        paper=_cls_and_last("paper, table 5", "OV-LVIS val, 1024 px", {"F-ViT, EVA02-CLIP ViT-B/16": (11.5, 22.8)})
        + _cls_and_last("paper, table 5", "OV-LVIS val, 896 px", {"F-ViT, EVA02-CLIP ViT-L/14": (24.2, 32.1)}),
    ),
}

_TI = "ViT-Ti/16 (AugReg) fine-tuned for one epoch on Tiny-ImageNet-100, 112 px, three seeds"
_DINO, _CLIP = "DINO, 1.8M parameters, one epoch, one seed", "CLIP from scratch, one epoch, one seed"
_NONE = (None, None)
_DINO_ROWS = ("DINO ViT 1.8M/8, CLS, 1 epoch", "DINO ViT 1.8M/8, LaSt K=N/4, 1 epoch", "DINO ViT 1.8M/8, random")
_CORLOC_ROWS, _COARSE_ROWS = (tuple(f"{row}, {what}" for row in _DINO_ROWS) for what in ("patch-score", "score"))
_TRAINED = "CLIP ViT 2.7M/8 on Tiny-ImageNet"
_CLIP_ROWS = (f"{_TRAINED}, CLS", f"{_TRAINED}, LaSt K=N/2", "CLIP ViT 2.7M/8, random")
_CORLOC, _COARSE = "voc-mini trainval, native, largest component", "voc-mini val, 224 px, union"

SUMMARY = (
    *(
        Task(task, "layers", "tiny-imagenet-100 val, 112 px", metric, paper, ("CLS", "LaSt K=N/2", random), _TI)
        for task, metric, paper, random in (
            ("top-1", "acc1", _NONE, ""),
            ("Point-in-Box", "point_in_box", _NONE, "random"),
            ("Point-in-Box, boxes under a quarter of the image", "point_in_box_small", (42.7, 55.1), "random"),
            ("patches of more than three median norms, %", "high_norm_share", _NONE, "random"),
            ("AUROC of the patch score, box against background", "auroc", _NONE, "random"),
        )
    ),
    Task("CorLoc of the patch score", "corloc", _CORLOC, "corloc", (None, 67.6), _CORLOC_ROWS, _DINO),
    Task("coarse segmentation, mIoU", "coarse_seg", _COARSE, "miou", (47.7, 55.1), _COARSE_ROWS, _DINO),
    Task("k-NN top-1", "knn", "tiny-imagenet-100", "knn_20", _NONE, (*_DINO_ROWS[:2], ""), _DINO),
    Task("zero-shot top-1", "zero_shot_cls", "tiny-imagenet-100", "acc1", (55.8, 56.2), _CLIP_ROWS, _CLIP),
    Task("zero-shot segmentation, mIoU, VOC", "zero_shot_seg", "voc-mini val", "miou", (49.0, 75.0), _CLIP_ROWS, _CLIP),
)
