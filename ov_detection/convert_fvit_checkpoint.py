"""F-ViT's published mmdet checkpoints -> weights for the detector of ov_detection/.

    python ov_detection/convert_fvit_checkpoint.py --input fvit_vitb16_coco.pth --output fvit_coco.pth \\
        --json annotations/instances_train2017_seen_2_65_cat.json
    python ov_detection/lazy_train.py --config-file ... --eval-only train.init_checkpoint=fvit_coco.pth

Every name is mapped, every shape compared, and what is left out is printed with its reason: the class embeddings,
which are an input here and no weight; the classifier that F-ViT's base class builds and never uses; and the frozen
CLIP, whose file the configuration names. With --tower ARCH the CLIP in the file, which may be a fine-tuned one, comes
along, for a detector with clip.in_checkpoint=True. With --json, an annotation file of the set that it was trained on,
the names of its base classes come along, which predict.py scores differently from others.
"""

from argparse import ArgumentParser
from pathlib import Path

from last_vit.command_line import command


@command("fvit_conversion:convert")
def main(parser: ArgumentParser) -> None:
    """The command line's flags."""
    parser.add_argument("--input", type=Path, required=True, help="F-ViT's .pth, as mmdet saved it")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--tower", metavar="ARCH", help="take the CLIP along: EVA02-B-16 or EVA02-L-14-336")
    parser.add_argument("--json", type=Path, metavar="FILE", help="annotations, whose base classes predict.py needs")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read a file that carries code, which then runs: only if trusted"
    )


if __name__ == "__main__":
    main()
