r"""Zero-shot classification with CLIPs: an image belongs to the class whose name's embedding is nearest.

    python clip/eval_zero_shot_cls.py --imagenet-root /path/to/imagenet \
        --model "CLIP B/16=open_clip:ViT-B-16-quickgelu@ViT-B-16.pt" \
        --model "LaSt=open_clip:ViT-B-16-quickgelu@logs/vitb16_last/checkpoints/epoch_10.pt"
    python clip/eval_zero_shot_cls.py --images flowers/test --class-names flowers.txt --per-class flowers.csv ...
    torchrun --nproc-per-node 8 clip/eval_zero_shot_cls.py ...      # every image once, whatever the number

ImageNet's 1000 classes are called as in open_clip's list and each name is embedded with CLIP's 80 prompts, so that
numbers compare with published ones; a class with synonyms scores what its best name does. The image embedding is
pooled the way the checkpoint was trained, unless `pool=` in --model says otherwise. Prints top-1, top-5 and the mean
over classes of top-1, and writes one record per model.

Class embeddings are kept from run to run, found by the text tower's weights and the prompts themselves.
"""

import argparse
from pathlib import Path

from zero_shot_flags import add_clip_flags, add_image_flags

from last_vit.command_line import add_running_flags, command


@command("zero_shot_classification:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_clip_flags(parser)
    add_image_flags(parser)
    add_running_flags(parser, batch_size=64)
    parser.add_argument("--per-class", type=Path, metavar="FILE.csv", help="write the accuracy of every class here")
    parser.set_defaults(pool=(), point_in_box=False, max_box_area=1.0)


if __name__ == "__main__":
    main()
