"""Detect what you name: boxes, and masks where the detector has them, of any vocabulary on your own images.

    python ov_detection/predict.py --config-file ov_detection/configs/ov_coco/fvit_vitb16_last.py \\
        --checkpoint output/ov_coco_fvit_vitb16_last/model_final.pth --image street.jpg park.jpg \\
        --vocabulary "cat,traffic cone,person" --output output/predict
    python ov_detection/predict.py --config-file ... --checkpoint ... --image street.jpg \\
        --vocabulary "cat,dog" --embeddings coco_80.safetensors

Names are embedded by the text tower of the config's own CLIP, or looked up in --embeddings, a file of
ov_detection/build_class_embeddings.py or of F-ViT's release; without --vocabulary every class of that file is
looked for. Classes that had boxes in training are scored as base ones, all others as novel ones. One picture per
image and
detections.json (boxes xyxy in pixels of the upright image, masks as COCO's run lengths) are written to --output.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from last_vit.command_line import command_parser, run_command_line

if TYPE_CHECKING:
    from class_embeddings import ClassEmbeddings
    from detectron2.structures import Instances
    from fvit.fvit_model import FViT

NAME = "predict.py"


def load_predictor(cfg: Any, checkpoint: Path, vocabulary: "ClassEmbeddings") -> "FViT":
    """The trained detector with a vocabulary of which the classes that it was trained on are base.

    Raises:
        FileNotFoundError: No such checkpoint, or no CLIP where the config says.
        ValueError: A checkpoint of another architecture or CLIP, or one that does not say which classes it was trained
            on; embeddings of another width.
    """
    import torch
    from class_embeddings import ClassSplit
    from ov_checkpoint import load_detector
    from ov_training import build_detector

    from last_vit.checkpoint import read_checkpoint

    trained_on = read_checkpoint(checkpoint).get("detector", {}).get("base_names")
    if trained_on is None:
        raise ValueError(
            f"{checkpoint} does not say which classes it was trained on, which are scored differently from others: "
            f"convert it with ov_detection/convert_fvit_checkpoint.py --json, an annotation file of its training set"
        )
    base = torch.tensor([name in trained_on for name in vocabulary.names])
    model = build_detector(cfg, vocabulary, ClassSplit(base, ~base))
    load_detector(model, checkpoint)
    return model.eval()


def describe(instances: "Instances", names: Sequence[str]) -> list[dict[str, Any]]:
    """Detections of one image, best first, as JSON values: class, score, box_xyxy and, with masks, segmentation."""
    import numpy as np
    from pycocotools import mask as mask_tools

    found = []
    for place in range(len(instances)):
        entry: dict[str, Any] = {
            "class": names[int(instances.pred_classes[place])],
            "score": round(float(instances.scores[place]), 4),
            "box_xyxy": [round(side, 2) for side in instances.pred_boxes.tensor[place].tolist()],
        }
        if instances.has("pred_masks"):
            code = mask_tools.encode(np.asfortranarray(instances.pred_masks[place].numpy().astype(np.uint8)))
            entry["segmentation"] = {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
        found.append(entry)
    return found


def run(args: Namespace) -> None:
    """Load, detect, draw, write.

    Raises:
        FileNotFoundError: No such image, config, checkpoint or file of embeddings.
        ValueError: A vocabulary that is none, without embeddings or of another width; a threshold out of range.
    """
    import json

    import torch
    from class_embeddings import check_vocabulary
    from detection_picture import draw_detections, read_rgb
    from detectron2.data.transforms import ResizeScale
    from ov_training import read_vocabulary

    from last_vit.atomic_file import atomic_file
    from last_vit.lazy_config import read_config
    from last_vit.runtime import select_device

    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], got {args.threshold}")
    missing = [str(path) for path in args.image if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"no image {', '.join(missing)}")
    twice = [stem for stem, count in Counter(path.stem for path in args.image).items() if count > 1]
    if twice:
        raise ValueError(f"several images are called {twice[0]!r}, as would be their pictures: use several --output")
    names = None
    if args.vocabulary is not None:
        names = [name.strip() for name in args.vocabulary.split(",")] if args.vocabulary.strip() else []
        check_vocabulary(names)
    if names is None and args.embeddings is None:
        raise ValueError("name what to look for: --vocabulary, --embeddings, or both")
    cfg = read_config(args.config_file, args.opts, "in ov_detection/configs/")
    cfg.vocabulary.path = str(args.embeddings or "")
    vocabulary = read_vocabulary(cfg, names)
    device = select_device(args.device)
    model = load_predictor(cfg, args.checkpoint, vocabulary).to(device)
    size = cfg.dataloader.test.dataset.size
    images = []
    for path in args.image:
        pixels = read_rgb(path)
        height, width = pixels.shape[:2]
        resized = ResizeScale(1.0, 1.0, size, size).get_transform(pixels).apply_image(pixels)
        sample = {"image": torch.from_numpy(resized.copy()).permute(2, 0, 1), "height": height, "width": width}
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=cfg.train.bf16):
            instances = model([sample])[0]["instances"].to("cpu")
        found = describe(instances[instances.scores >= args.threshold], vocabulary.names)
        draw_detections(pixels, found, vocabulary.names, args.output / f"{path.stem}.png")
        images.append({"image": path.name, "height": height, "width": width, "detections": found})
        counts = Counter(entry["class"] for entry in found)
        print(f"{path.name}: {', '.join(f'{count} {name}' for name, count in counts.most_common()) or 'nothing'}")
    with atomic_file(args.output / "detections.json") as file:
        file.write((json.dumps({"vocabulary": vocabulary.names, "images": images}, indent=2) + "\n").encode("ascii"))
    print(f"written to {args.output}")


def build_parser() -> ArgumentParser:
    """The command line's flags."""
    parser = command_parser(NAME, __doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the LazyConfig that it was trained with")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of lazy_train.py, or a converted one of F-ViT")
    parser.add_argument("--image", type=Path, nargs="+", required=True, help="one or more image files")
    parser.add_argument("--vocabulary", help="names, separated by commas")
    parser.add_argument("--embeddings", type=Path, metavar="FILE", help="stored embeddings, instead of a text tower")
    parser.add_argument("--threshold", type=float, default=0.3, help="score that a detection needs; default 0.3")
    parser.add_argument("--output", type=Path, default=Path("output/predict"), help="folder; default output/predict")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:index]; default auto")
    parser.add_argument("--opts", nargs="*", default=[], metavar="key=value", help="config overrides")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    run_command_line(build_parser(), run, argv)


if __name__ == "__main__":
    main()
