"""The tables of README and docs/: their metrics, and published numbers, never ours (make_results_tables.py adds it)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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


_VOTES = (("1", "1"), ("7", "7"), ("0.5", "N/2"))
_OF_LAYERS: dict[str, tuple[str, ...]] = {
    "apart": ("tiny-imagenet-100", "coco-mini"),
    "order": ("as published", "CLS", "mean", "max", "K=1", "K=7", "K=N/2", "registers", "cured", "random"),
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
            PaperRow("ViT, labels, CLS", 42.7, "paper"),
            PaperRow("ViT, labels, LaSt", 55.1, "paper"),
            PaperRow("DINO, CLS", 44.5, "paper; 45.3 in its table 1"),
            PaperRow("DINO, LaSt", 69.7, "paper"),
            PaperRow("CLIP, CLS", 39.8, "paper"),
            PaperRow("CLIP, LaSt", 50.1, "paper"),
            PaperRow("ResNet, labels", 68.4, "paper"),
            PaperRow("DINO ResNet", 71.1, "paper"),
            PaperRow("CLIP ResNet", 53.9, "paper"),
            PaperRow("ViT with registers, labels", 41.5, "paper"),
            PaperRow("OpenCLIP with registers", 37.6, "paper"),
            PaperRow("ViT-S, labels, CLS", 50.1, "paper, table 2"),
        ),
    ),
    "cls_pretrain": ResultsTable(
        metrics={"acc1": "top-1", "acc5": "top-5"},
        paper=(
            PaperRow("ViT-B/32, attention pooling", 59.1, "paper, table 9"),
            PaperRow("ViT-B/32, mean", 64.3, "paper, table 9"),
            PaperRow("ViT-B/32, LaSt K=1", 64.6, "paper, table 9"),
            PaperRow("ViT-B/32, LaSt K=7", 64.8, "paper, table 9"),
            PaperRow("ViT-B/32, LaSt K=49", 64.9, "paper, table 9"),
            PaperRow("ViT-S, CLS", 72.3, "paper, table 2"),
            PaperRow("ViT-B/16, LaSt K=1", 67.4, "release's README"),
            PaperRow("ViT-B/16, LaSt K=7", 67.6, "release's README"),
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
        paper=(
            PaperRow("DINO ViT-S/16, CLS, 100 epochs", 69.3, "DINO's repository"),
            PaperRow("DINO ViT-S/16, CLS, 800 epochs", 74.5, "DINO's repository"),
        ),
    ),
    "linear": ResultsTable(
        metrics={"best_acc1": "best top-1", "acc1": "last top-1"},
        paper=(
            PaperRow("DINO ViT-S/16, CLS, 100 epochs", 74.0, "DINO's repository"),
            PaperRow("DINO ViT-S/16, CLS, 800 epochs", 77.0, "DINO's repository"),
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
        paper=tuple(
            # the paper names neither size nor ground truth (union, class, object)
            PaperRow(row, value, "paper, table 6", "VOC12 val, size not given")
            for row, value in (
                ("ViT-B/16, labels, CLS, score", 22.3),
                ("ViT-B/16, labels, LaSt, score", 32.8),
                ("ViT-S/16, labels, CLS, score", 29.5),
                ("ViT-S/16, labels, LaSt, score", 41.9),
                ("DINO ViT-S/16, CLS, score", 47.7),
                ("DINO ViT-S/16, LaSt, score", 55.1),
            )
        ),
    ),
    "zero_shot_cls": ResultsTable(
        metrics={"acc1": "top-1", "acc5": "top-5"},
        paper=tuple(
            PaperRow(f"OpenCLIP ViT-B/16, {pooling}", value, "paper, table 8")
            for pooling, value in (
                ("CLS", 55.8),
                ("max", 53.1),
                ("LaSt K=1", 53.5),
                ("LaSt K=49", 55.8),
                ("LaSt K=98", 56.2),
                ("LaSt K=196", 55.3),
            )
        ),
    ),
    "zero_shot_seg": ResultsTable(
        metrics={"miou": "mIoU"},
        paper=(
            *(
                PaperRow(f"CLIP ViT-B/16, {pooling}", value, "paper, table 4", f"{dataset}, {side} px")
                for dataset, side, values in (
                    ("VOC20 val", 336, (49.0, 75.0)),
                    ("Context59 val", 336, (11.2, 15.2)),
                    ("COCO-Object val", 336, (8.8, 13.3)),
                    ("COCO-Stuff171 val", 336, (7.2, 11.8)),
                    ("ADE20K val", 336, (3.1, 8.3)),
                    ("Cityscapes val", 560, (6.5, 12.1)),
                )
                for pooling, value in zip(("CLS", "LaSt"), values, strict=True)
            ),
            *(
                PaperRow(f"{model}, {pooling}", value, "paper, table 4", "VOC20 val, 336 px")
                for model, values in (
                    ("MetaCLIP ViT-B/16", (39.6, 72.8)),
                    ("EVA02-CLIP ViT-B/16", (56.5, 79.6)),
                    ("CLIP ViT-L/14", (17.1, 72.4)),
                    ("MetaCLIP ViT-L/14", (25.7, 75.6)),
                    ("EVA02-CLIP ViT-L/14", (53.8, 76.4)),
                )
                for pooling, value in zip(("CLS", "LaSt"), values, strict=True)
            ),
        ),
    ),
    "coco": ResultsTable(
        {"seen_ap_all": "box AP, seen", "seen_mask_ap_all": "mask AP, seen", "ap_all": "box AP", "mask_ap_all": "mask"}
    ),
    "ov_coco": ResultsTable(
        metrics={"ap50_novel": "AP50 novel", "ap50_base": "AP50 base", "ap50_all": "AP50 all"},
        paper=tuple(
            PaperRow(f"F-ViT, EVA02-CLIP {backbone}, {pooling}", value, "paper, table 5", f"OV-COCO val, {side} px")
            for backbone, side, values in (("ViT-B/16", 640, (17.5, 33.3)), ("ViT-L/14", 896, (24.7, 39.1)))
            for pooling, value in zip(("CLS", "LaSt"), values, strict=True)
        ),
    ),
    "ov_lvis": ResultsTable(
        metrics={"mask_apr": "mask APr", "mask_apc": "APc", "mask_apf": "APf", "mask_ap": "AP"},
        paper=tuple(
            PaperRow(f"F-ViT, EVA02-CLIP {backbone}, {pooling}", value, "paper, table 5", f"OV-LVIS val, {side} px")
            for backbone, side, values in (("ViT-B/16", 1024, (11.5, 22.8)), ("ViT-L/14", 896, (24.2, 32.1)))
            for pooling, value in zip(("CLS", "LaSt"), values, strict=True)
        ),
    ),
}

_CURED = ("CLS", "LaSt K=N/2", "random")
_TI = "ViT-Ti/16 (AugReg) fine-tuned for one epoch on Tiny-ImageNet-100, 112 px, three seeds"
_DINO = tuple(f"DINO ViT 1.8M/8, {name}" for name in ("CLS, 1 epoch", "LaSt K=N/4, 1 epoch", "random"))
_ONE_EPOCH = "DINO, 1.8M parameters, one epoch, one seed"
_CLIP = tuple(
    f"CLIP ViT 2.7M/8{name}" for name in (" on Tiny-ImageNet, CLS", " on Tiny-ImageNet, LaSt K=N/2", ", random")
)

SUMMARY = (
    *(
        Task(task, "layers", "tiny-imagenet-100 val, 112 px", metric, paper, (*_CURED[:2], random), _TI)
        for task, metric, paper, random in (
            ("top-1", "acc1", (None, None), ""),
            ("Point-in-Box", "point_in_box", (None, None), "random"),
            ("Point-in-Box, boxes under a quarter of the image", "point_in_box_small", (42.7, 55.1), "random"),
            ("patches of more than three median norms, %", "high_norm_share", (None, None), "random"),
            ("AUROC of the patch score, box against background", "auroc", (None, None), "random"),
        )
    ),
    Task(
        "CorLoc of the patch score",
        "corloc",
        "voc-mini trainval, native, largest component",
        "corloc",
        (None, 67.6),
        tuple(f"{row}, patch-score" for row in _DINO),
        _ONE_EPOCH,
    ),
    Task(
        "coarse segmentation, mIoU",
        "coarse_seg",
        "voc-mini val, 224 px, union",
        "miou",
        (47.7, 55.1),
        tuple(f"{row}, score" for row in _DINO),
        _ONE_EPOCH,
    ),
    Task("k-NN top-1", "knn", "tiny-imagenet-100", "knn_20", (None, None), (*_DINO[:2], ""), _ONE_EPOCH),
    Task(
        "zero-shot top-1",
        "zero_shot_cls",
        "tiny-imagenet-100",
        "acc1",
        (55.8, 56.2),
        _CLIP,
        "CLIP from scratch, one epoch, one seed",
    ),
    Task(
        "zero-shot segmentation, mIoU, VOC",
        "zero_shot_seg",
        "voc-mini val",
        "miou",
        (49.0, 75.0),
        _CLIP,
        "CLIP from scratch, one epoch, one seed",
    ),
)
