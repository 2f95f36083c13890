r"""How often each position is selected over a data set, for several K, and how many of the votes fall on the object.

    python visualization/visualize_token_selection.py \
        --checkpoint ViT_190k.pth --imagenet-root /path/to/imagenet --batch-size 32
    python visualization/visualize_token_selection.py \
        --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=cls_pretrain/conf.py@last.pth \
        --images coco/val2017 --masks coco/annotations/instances_val2017.json --k 1 7 0.5

The first is the release's command (its script, too, takes 500 random images and K = 1); the second compares models on
any folder. One row of maps per model, one map per K: a position's share of all votes over that of uniform voting, so 1
is uniform for every grid. The selection is LaSt's with the model's own variant and --k in place of its own K; a model
that is not pooled with LaSt is asked which patches LaSt would keep. With --boxes or --masks: the share of the votes
inside the object, next to that of uniform voting, over the images that show both object and background. One record
per model and K.

Read the numbers beside those of random weights (SPEC@random), which can put as many votes inside as trained ones do. A
channel that is zero on every patch, as after a ConvNet's ReLU, is a tie, whose vote goes to the first patch at K = 1:
the top left corner.
"""

import argparse

from diagnostic_cli import add_checkpoint_flag, add_figure_flag, add_image_flags

from last_vit.command_line import add_model_flags, add_running_flags, command, patch_count, positive


@command("vote_statistics:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line; --checkpoint, --imagenet-root and --batch-size are the release's."""
    add_model_flags(parser, required=False)
    add_image_flags(parser, or_imagenet=True)
    add_running_flags(parser)
    add_figure_flag(parser, "results/token_selection.png")
    add = parser.add_argument
    add_checkpoint_flag(parser)
    add(
        "--k",
        nargs="+",
        type=patch_count,
        default=[1],
        metavar="K",
        help="patches kept per channel, several for one map each: numbers (7) or shares (0.5); default 1",
    )
    add("--num-images", type=positive, default=500, help="drawn by --seed; all where there are fewer; default 500")
    add("--seed", type=int, default=0, help="which images; default 0")


if __name__ == "__main__":
    main()
