r"""What models make of any photo: patch scores, votes, norms and principal components, in one picture per photo.

    python visualization/explore.py photo.jpg --model timm:vit_small_patch16_224.augreg_in21k_ft_in1k@pretrained
    python visualization/explore.py *.jpg --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=... --out pictures

Writes <out>/<photo>.png: a row per model, with the photo as the model sees it (held upright, cropped to a square), the
cosine of every patch to the token that the model is pooled with, its best patch marked, the votes of LaSt's selection
with the model's own K (1 where it is not pooled with LaSt), the norms before the final norm, and the first three
principal components of the photo's patches as red, green and blue. Colours run from each map's lowest value (votes from
0) to its highest; the numbers stand below.
"""

import argparse
from pathlib import Path

from last_vit.command_line import add_device_flag, add_model_flags, add_photo_flag, command


@command("model_maps:explore")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_photo_flag(parser, "image")
    add_model_flags(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("output/explore"), help="folder of the pictures; default output/explore"
    )
    add_device_flag(parser)


if __name__ == "__main__":
    main()
