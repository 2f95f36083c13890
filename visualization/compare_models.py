r"""One picture of what models look at: patch scores and votes, image by image, model beside model.

    python visualization/compare_models.py --imagenet-root data/imagenet \
        --model CLS=cls_pretrain/conf.py@cls.pth --model "LaSt K=1=cls_pretrain/conf.py@last.pth"
    python visualization/compare_models.py --images photos/ --only cat.jpg dog.jpg --model DINO=dino:vit_small/16@d.pth

Rows are images drawn by --seed (of ImageNet's only those with one object) or named by --only, columns the image with
the outline of its objects and, per model, its patch score and its votes. Votes are those of LaSt's selection with the
model's own K; a model that is not pooled with LaSt takes that of the first model which is, and K = 1 without one. (A
channel that is zero everywhere, as many are behind a ConvNet's ReLU, votes for the first patch.) The mark is the best
patch: a disc when its centre lies on an object, a diamond when it does not, a square where that is not known. Colours
run from each map's lowest to its highest value (votes from 0), so they compare patches of one image, never images or
models. Below a column stand the rows whose best patch is on an object, or the share of all its votes that are.
"""

import argparse

from diagnostic_cli import add_example_flags, add_figure_flag, add_image_flags

from last_vit.command_line import add_device_flag, add_model_flags, command


@command("model_maps:compare")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_model_flags(parser)
    add_image_flags(parser, or_imagenet=True)
    add_figure_flag(parser, "results/compare_models.png")
    add_example_flags(parser)
    parser.add_argument("--only", nargs="+", metavar="FILE", help="names of the images to show, in this order")
    add_device_flag(parser)


if __name__ == "__main__":
    main()
