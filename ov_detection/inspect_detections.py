"""Pictures of what a detector finds and misses, from a dump of its evaluation.

    python ov_detection/lazy_train.py --config-file ov_detection/configs/ov_coco/fvit_vitb16_last.py --eval-only \\
        train.init_checkpoint=output/fvit_vitb16_last/model_final.pth evaluation.dump=output/dump
    python ov_detection/inspect_detections.py output/dump --output output/inside --image-root datasets/coco/val2017 \\
        --json datasets/coco/annotations/instances_val2017_all_2.json

Written are per_class.png (AP and AR of every class, sorted), precision_recall.png (means over the classes that have
objects: all, base, novel), and with --image-root misses.png: the images of which most objects are missed, with the
objects on the left and the detections on the right. There a box is found or right where COCO matches it at IoU 0.5, by
a detection of at least --threshold.
"""

from argparse import ArgumentParser
from pathlib import Path

from last_vit.command_line import command, positive


@command("detection_figures:inspect")
def main(parser: ArgumentParser) -> None:
    """The command line's flags."""
    parser.add_argument("dump", type=Path, help="folder that an evaluation wrote with evaluation.dump=FOLDER")
    parser.add_argument("--json", type=Path, required=True, help="the annotations that it was evaluated on")
    parser.add_argument("--image-root", type=Path, help="folder of the images, for misses.png")
    parser.add_argument("--kind", choices=("box", "mask"), default="box", help="of AP and the curves; default box")
    parser.add_argument("--threshold", type=float, default=0.3, help="score that a detection needs; default 0.3")
    parser.add_argument("--images", type=positive, default=8, help="of misses.png; default 8")
    parser.add_argument("--output", type=Path, default=Path("output/inside"), help="folder; default output/inside")


if __name__ == "__main__":
    main()
