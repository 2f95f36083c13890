r"""Vote maps: the patches that LaSt's channels chose, at more than 50, 30 and 20 % of the top vote (paper figure 5).

    python visualization/visualize_votes.py --images coco/val2017 --masks coco/annotations/instances_val2017.json \
        --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=cls_pretrain/conf.py@last.pth --figure results/votes.png

Rows are images (drawn by --seed), columns the image with the outline of its objects and, per model, the patches above
each level, the rest dark and grey, and the votes themselves, from 0 to the image's top vote. Votes are those of LaSt's
selection with the model's own K, or with K = 1 for a model that is not pooled with LaSt (what LaSt would keep of it);
the titles say which. Below each map: the share of the shown patches, and of the votes, that is object.
Draws and prints, and writes no record: numbers over a data set are visualize_token_selection.py's.
"""

import argparse

from diagnostic_cli import add_example_flags, add_figure_flag, add_image_flags

from last_vit.command_line import add_device_flag, add_model_flags, command


@command("model_maps:show_votes")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_model_flags(parser)
    add_image_flags(parser)
    add_figure_flag(parser, "results/votes.png")
    add_example_flags(parser)
    add_device_flag(parser)


if __name__ == "__main__":
    main()
