r"""Accuracy when an image's best, worst or random patches are blanked out (paper Sec. 4, figure 2b).

    python visualization/probe_masking.py --imagenet-root /path/to/imagenet --num-images 5000 \
        --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=cls_pretrain/conf.py@last.pth

Patches are ranked by the model's own patch scores of the whole image, without a label; p percent of them are set to the
mean colour in the model's input, and the image is classified again. The random curve is the control: its masks belong
to the image and --seed, whatever the batch. If losing the best-scoring patches costs less than losing the worst-scoring
ones, the global token resembles patches that the class does not depend on. One forward pass for the scores and three
for each of --shares.
"""

import argparse
from pathlib import Path

from diagnostic_cli import add_figure_flag

from last_vit.command_line import add_model_flags, add_running_flags, add_token_flag, command, non_negative, positive


@command("masking_probe:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_model_flags(parser)
    add = parser.add_argument
    add("--imagenet-root", type=Path, required=True, help="folder that holds val/, or val/ itself")
    add("--skip-broken", action="store_true", help="leave out and count images that are unreadable")
    add("--dataset-name", help="data set in the results; default: the name of --imagenet-root")
    add("--num-images", type=positive, help="look at so many images, spread evenly over the classes; default: all")
    add("--seed", type=non_negative, default=0, help="of the random masks, and of --num-images; default 0")
    add(
        "--shares",
        type=int,
        nargs="+",
        default=list(range(10, 100, 10)),
        metavar="P",
        help="masked percents of the patches, in [1, 99]; default 10 20 ... 90. 0 is always there",
    )
    add_token_flag(parser)
    add_running_flags(parser)
    add_figure_flag(parser, "results/masking_probe.png")


if __name__ == "__main__":
    main()
