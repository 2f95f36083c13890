r"""Norms of patch tokens: by layer, at the output, against patch score, and on images (paper figures 6, 8, 9, 13, 14).

    python visualization/visualize_norms.py --images coco/val2017 --masks coco/annotations/instances_val2017.json \
        --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=cls_pretrain/conf.py@last.pth --figure results/norms.png

One row of panels per model: the norms after every block and after the final norm; those of the output before the final
norm, with the cut-off above which a patch is an outlier (--cutoff, or fitted: see patch_norms.py), for
foreground and background where annotated; and norm against patch score, with their correlation. A second picture,
<figure>_examples, shows score and norm on images drawn by --seed, the best patch marked as in compare_models.py and
outliers framed. A ConvNet has no blocks: its one layer is the last feature map, and no norm stands behind it.
"""

import argparse

from diagnostic_cli import add_figure_flag, add_image_flags

from last_vit.command_line import add_model_flags, add_running_flags, command


@command("norm_figures:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_model_flags(parser)
    add_image_flags(parser)
    add_running_flags(parser)
    add_figure_flag(parser, "results/norms.png")
    add = parser.add_argument
    add("--cutoff", type=float, help="smallest norm of an outlier, for all models; default: fitted to each model")
    add("--examples", type=int, help="images of the second picture, 0 for none; default 6, or all there are")
    add("--seed", type=int, default=0, help="which images; default 0")


if __name__ == "__main__":
    main()
