r"""One HTML page that compares models on a folder of images: numbers, distributions, and every patch of a gallery.

    python visualization/make_report.py --images coco/val2017 --boxes coco/annotations/instances_val2017.json \
        --model "CLS=cls_pretrain/conf.py@cls.pth" --model "LaSt K=1=cls_pretrain/conf.py@last.pth" --out report/

Writes `report/index.html`, which needs nothing beside it (no network, no other file), and `report/report.json` with its
numbers. Statistics are over all images; the gallery shows `--num-images` of them. Scores are against the token that the
model is pooled with; a hit is a best patch whose centre lies in the box. Images without annotation are welcome: what
cannot be computed is left out. The masking probe and the dynamics need labels and runs, and have commands of their own:
probe_masking.py and plot_dynamics.py.
"""

import argparse
from pathlib import Path

from diagnostic_cli import add_image_flags

from last_vit.command_line import add_loading_flags, add_model_flags, command, positive


@command("report_page:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_model_flags(parser)
    add_image_flags(parser)
    add = parser.add_argument
    add("--num-images", type=positive, default=48, help="images in the gallery at most; default 48")
    add("--seed", type=int, default=0, help="which images; default 0")
    add_loading_flags(parser)
    add("--out", type=Path, default=Path("report"), help="folder of index.html and report.json; default report")


if __name__ == "__main__":
    main()
