"""Detect what you name: boxes, and masks where the detector has them, of any vocabulary on your own images.

    python ov_detection/predict.py --config-file ov_detection/configs/ov_coco/fvit_vitb16_last.py \\
        --checkpoint output/ov_coco_fvit_vitb16_last/model_final.pth --image street.jpg park.jpg \\
        --vocabulary "cat,traffic cone,person" --output output/predict
    python ov_detection/predict.py --config-file ... --checkpoint ... --image street.jpg \\
        --vocabulary "cat,dog" --embeddings coco_80.safetensors

Names are embedded by the text tower of the config's own CLIP, or looked up in --embeddings, a file of
ov_detection/build_class_embeddings.py or of F-ViT's release; without --vocabulary every class of that file is
looked for. Classes that had boxes in training are scored as base ones, all others as novel ones. A Mask R-CNN
(configs/coco/) finds the classes that it was trained on and takes neither flag. One picture per image
and detections.json (boxes xyxy in pixels of the upright image, masks as COCO's run lengths) are written to --output.
"""

from argparse import ArgumentParser
from pathlib import Path

from last_vit.command_line import add_device_flag, command


@command("ov_prediction:predict")
def main(parser: ArgumentParser) -> None:
    """The command line's flags."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the LazyConfig that it was trained with")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of lazy_train.py, or a converted one of F-ViT")
    parser.add_argument("--image", type=Path, nargs="+", required=True, help="one or more image files")
    parser.add_argument("--vocabulary", help="names, separated by commas")
    parser.add_argument("--embeddings", type=Path, metavar="FILE", help="stored embeddings, instead of a text tower")
    parser.add_argument("--threshold", type=float, default=0.3, help="score that a detection needs; default 0.3")
    parser.add_argument("--output", type=Path, default=Path("output/predict"), help="folder; default output/predict")
    add_device_flag(parser)
    parser.add_argument("--opts", nargs="*", default=[], metavar="key=value", help="config overrides")


if __name__ == "__main__":
    main()
