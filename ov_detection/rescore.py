"""F-ViT's AP with other alpha, beta and temperatures, from a dump of its evaluation: no image, no forward pass.

    python ov_detection/lazy_train.py --config-file ov_detection/configs/ov_coco/fvit_vitb16_last.py --eval-only \\
        train.init_checkpoint=output/fvit_vitb16_last/model_final.pth evaluation.dump=output/dump
    python ov_detection/rescore.py output/dump --json datasets/coco/annotations/instances_val2017_all_2.json \\
        --alpha 0 0.1 0.2 --beta 0.5 0.6 0.7 0.8 --vlm-temperature 50 75

Scores are fused, cut off, suppressed and limited as the detector does it. The first line of the table is the run's own
setting, exact to the rounding of scores and IoUs. So are the others if the dump has all regions
(evaluation.dump_regions=1000); otherwise they lack regions that were not among the run's own detections, nor among the
dump_regions of the highest scores of either side. AP is of boxes: masks are made after the choice. The record goes to
output/ or with --row into results/.
"""

from argparse import ArgumentParser
from pathlib import Path

from last_vit.command_line import add_record_flags, command, cores_at_hand, positive


@command("score_grid:rescore")
def main(parser: ArgumentParser) -> None:
    """The command line's flags."""
    parser.add_argument("dump", type=Path, help="folder that an evaluation wrote with evaluation.dump=FOLDER")
    parser.add_argument("--json", type=Path, required=True, help="the annotations that it was evaluated on")
    add = {"type": float, "nargs": "+", "default": [], "metavar": "X"}
    parser.add_argument("--alpha", **add, help="weights of the vision-language score for base classes, in [0, 1]")
    parser.add_argument("--beta", **add, help="the same for novel classes")
    parser.add_argument("--vlm-temperature", **add, help="factors of the vision-language cosines, above 0")
    parser.add_argument("--det-temperature", **add, help="factors of the detector's cosines, in place of the learned")
    parser.add_argument("--workers", type=positive, default=cores_at_hand(), help="threads; default: the cores at hand")
    add_record_flags(parser)


if __name__ == "__main__":
    main()
