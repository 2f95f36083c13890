r"""Patch scores of objects against background, as histograms and numbers (paper Sec. 4, figure 2a).

    python visualization/visualize_patch_score_distribution.py --images coco/val2017 \
        --masks coco/annotations/instances_val2017.json --model CLS=cls_pretrain/conf.py@cls.pth \
        --model LaSt=cls_pretrain/conf.py@last.pth

A patch is object when more than half of what is known of it is; scores are min-max normalised per image. AUROC is how
often an object patch scores higher than a background patch of the same image (50 is chance); "bg top p" is background's
share of an image's best p percent of patches, to be read against "bg all", its share of all patches. Only images that
show both count. The densities are drawn smoothed, as released (120 bins, kernel 1 2 3 2 1); the numbers are exact.
"""

import argparse

from diagnostic_cli import add_figure_flag, add_image_flags

from last_vit.command_line import add_model_flags, add_running_flags, add_token_flag, command


@command("score_distribution:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_model_flags(parser)
    add_image_flags(parser)
    add_token_flag(parser)
    add_running_flags(parser)
    add_figure_flag(parser, "results/patch_score_distribution.png")


if __name__ == "__main__":
    main()
