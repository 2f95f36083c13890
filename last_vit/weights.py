"""Records of the released LaSt-ViT weights: what is published about each file, and nothing else. No logic.

`None` means: not published. A field named in `inferred` is not stated with the release; it follows from the file's
name, the training code it points to, or the paper, and `caveats` says how. No hash of any file is published, and none
was computed here. All three files belong to https://github.com/ChengShiest/LAST-ViT.
"""

from dataclasses import dataclass
from typing import Any

from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

_RELEASES = "https://github.com/ChengShiest/LAST-ViT/releases/download"


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """One released file.

    Args:
        name: Key in `WEIGHTS`, `<backbone>_<pretraining>_<pooling>`.
        file: File name of the release asset.
        source: Where the file is published (URL).
        training_code: Code that the release names as the training script (URL).
        architecture: Model spec as `--model` takes it, or None.
        pooling: Arguments of `attach_pool`; "top_k" is None where it is not published.
        preprocessing: For evaluation.
        licence: SPDX identifier.
        sha256: 64 hex digits, or None.
        published_metrics: Protocol -> metric -> percent, or None.
        caveats: What a user must know before trusting a number from this file.
        inferred: Fields above that are deduced, not stated with the release.
    """

    name: str
    file: str
    source: str
    training_code: str
    architecture: str | None
    pooling: dict[str, Any]
    preprocessing: Preprocessing
    licence: str
    sha256: str | None
    published_metrics: dict[str, dict[str, float]] | None
    caveats: tuple[str, ...]
    inferred: tuple[str, ...]


_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_LICENCE_CAVEAT = "The licence is the repository's; none is stated for the weights themselves."
_TOP_K_CAVEAT = "The K of training is not published: the README's code has K = 1, the paper's Tab. 8 favours 49 to 98."

_RECORDS = (
    WeightsRecord(
        name="vitb16_in1k_last",
        file="ViT_190k.pth",
        source=f"{_RELEASES}/weights2/ViT_190k.pth",
        training_code="https://github.com/ChengShiest/LAST-ViT/tree/main/cls_pretrain",
        architecture="torchvision:vit_b_16",
        pooling={"pool": "last", "top_k": 1, "sigma": None, "variant": "release"},
        preprocessing=Preprocessing(
            resize=256, crop=224, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
        licence="MIT",
        sha256=None,
        published_metrics={
            "imagenet1k_val_top_k_1": {"acc1": 67.4, "acc5": 87.6},
            "imagenet1k_val_top_k_7": {"acc1": 67.6, "acc5": 87.8},
        },
        caveats=(
            "The accuracies are given as approximate ('~') in cls_pretrain/README of the release; to run K = 7 its "
            "code has to be edited. A user measured 67.382 / 87.578 (issue 9 of the repository).",
            "cls_pretrain/README says 100 epochs, the file name 190k iterations: together they fit a global batch "
            "of about 672, not the 4096 of the paper and of the released config (31,278 iterations).",
            "The encoder's CLS token never got a loss in LaSt training, yet the released Point-in-Box script scores "
            "with it; no Point-in-Box is published for this file.",
            "That its weight names start with 'model.' is deduced from the trainer that wrote it; both forms load.",
            "The repository's history holds versions of the pooling that did something else (filtered tokens "
            "averaged, no classification head), so it cannot prove which code trained the file.",
            "The first README linked the file in release 'weights', the newest state of the repository has it in "
            "'weights2'.",
            _LICENCE_CAVEAT,
        ),
        inferred=("source", "pooling", "licence"),
    ),
    WeightsRecord(
        name="vit_dino_last",
        file="dino0080.pth",
        source=f"{_RELEASES}/weights/dino0080.pth",
        training_code="https://github.com/facebookresearch/dino",
        architecture=None,
        pooling={"pool": "last", "top_k": None, "sigma": None, "variant": "release"},
        preprocessing=Preprocessing(
            resize=256, crop=224, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
        licence="MIT",
        sha256=None,
        published_metrics=None,
        caveats=(
            "The architecture is not stated: the paper's DINO tables use ViT-S/16, users of the repository take all "
            "three files for ViT-B/16 (issues 8 and 10). The file tells: its cls_token has 384 (S) or 768 (B) "
            "channels.",
            "The name is that of the copy DINO's trainer keeps after 81 epochs: not the end of a 100-epoch run.",
            "A DINO training checkpoint holds student and teacher; DINO's own evaluations use the teacher.",
            "The preprocessing is that of DINO's k-NN evaluation; the release states none.",
            "The paper's DINO numbers (Point-in-Box 69.7, CorLoc 64.4 / 67.6 / 51.6) are not tied to this file.",
            _TOP_K_CAVEAT,
            _LICENCE_CAVEAT,
        ),
        inferred=("pooling", "preprocessing", "licence"),
    ),
    WeightsRecord(
        name="vitb16_clip_last",
        file="openai_b_16.pt",
        source=f"{_RELEASES}/weights/openai_b_16.pt",
        training_code="https://github.com/mlfoundations/open_clip",
        architecture="open_clip:ViT-B-16-quickgelu",
        pooling={"pool": "last", "top_k": None, "sigma": None, "variant": "release"},
        preprocessing=Preprocessing(resize=224, crop=224, interpolation="bicubic", mean=_OPENAI_MEAN, std=_OPENAI_STD),
        licence="MIT",
        sha256=None,
        published_metrics=None,
        caveats=(
            "The architecture follows from the name: OpenAI's CLIP B/16, fine-tuned with open_clip (paper Tab. 10). "
            "Such weights need QuickGELU; into open_clip's plain ViT-B-16 they load without an error and score "
            "wrong.",
            "The preprocessing is open_clip's for OpenAI's weights; the release states none.",
            "The paper's CLIP B/16 numbers (Point-in-Box 50.1, Tab. 4) are not tied to this file.",
            _TOP_K_CAVEAT,
            _LICENCE_CAVEAT,
        ),
        inferred=("architecture", "pooling", "preprocessing", "licence"),
    ),
)

WEIGHTS: dict[str, WeightsRecord] = {record.name: record for record in _RECORDS}
