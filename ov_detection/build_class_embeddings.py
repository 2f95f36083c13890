"""Text embeddings of class names for the open-vocabulary detector, with names, tower and prompts in the file.

    python ov_detection/build_class_embeddings.py --model EVA02-B-16 --checkpoint EVA02_CLIP_B_psz16_s8B.pt \\
        --json lvis_v1_val.json --output lvis_eva02_b16.safetensors
    python ov_detection/build_class_embeddings.py --model ViT-B-16-quickgelu --checkpoint ViT-B-16.pt \\
        --vocabulary "cat,traffic cone" --prompts a --output mine.safetensors
    python ov_detection/build_class_embeddings.py --convert coco_80.npy --json instances_val2017.json \\
        --tower "CLIP ViT-B/32" --prompts a --output coco_80_vitb32.safetensors

--model is an open_clip architecture or the path of its JSON configuration, and must be the CLIP whose image tower the
detector uses. --prompts vild is the mean over ViLD's 63 templates, as F-ViT has it; a is "a {name}", as Detic has it.
"background" is embedded with the same prompts. Names come from a COCO or LVIS file's categories by ascending id, from a
text file with one per line, or from the command line.

--convert takes embeddings that others made: a .npy matrix with one row per name, or a dictionary name -> vector that
torch saved (F-ViT's .pt; its own names). --tower and --prompts are then what is written down about them.
"""

from argparse import ArgumentParser
from pathlib import Path

from class_prompts import PROMPTS

from last_vit.command_line import add_device_flag, command, positive


@command("class_embeddings:build_file")
def main(parser: ArgumentParser) -> None:
    """The command line's flags."""
    parser.add_argument("--model", help="open_clip architecture, or the path of its JSON configuration")
    parser.add_argument("--checkpoint", type=Path, help="its weights")
    parser.add_argument("--convert", type=Path, metavar="FILE", help=".npy or .pt with embeddings made elsewhere")
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--json", type=Path, help="COCO's or LVIS's file of instances")
    names.add_argument("--names", type=Path, help="text file, one class per line")
    names.add_argument("--vocabulary", help="names, separated by commas")
    parser.add_argument("--prompts", choices=PROMPTS, help="default: vild")
    parser.add_argument("--tower", help="the text tower in words (default: architecture and hash of the weights)")
    parser.add_argument("--output", type=Path, required=True, help=".safetensors file to write")
    parser.add_argument("--batch-size", type=positive, default=256, help="prompts at a time (default 256)")
    add_device_flag(parser)


if __name__ == "__main__":
    main()
