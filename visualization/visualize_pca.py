r"""First three principal components of the foreground's patch features as colours (paper figure 7).

    python visualization/visualize_pca.py --images coco/val2017 --masks coco/annotations/instances_val2017.json \
        --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=cls_pretrain/conf.py@last.pth --figure results/pca.png

Rows are images, columns models. Foreground are the patches that are object by --boxes or --masks; without annotations
those whose patch score is above the image's mean, as in the paper's coarse segmentation: the model's own idea of its
foreground, which for a model with score artifacts is the background. The rest shows the image, dark and grey. --fit
image takes the components of each image alone, --fit set those of the foreground of all images, one colour code for all
rows. Colours compare patches under one fit, never models: of a component even the sign is arbitrary.
"""

import argparse

from diagnostic_cli import add_example_flags, add_figure_flag, add_image_flags

from last_vit.command_line import add_model_flags, add_running_flags, command


@command("patch_pca:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_model_flags(parser)
    add_image_flags(parser)
    add_running_flags(parser)
    add_figure_flag(parser, "results/pca.png")
    parser.add_argument(
        "--fit", choices=("image", "set"), default="image", help="what the components are of; default image"
    )
    add_example_flags(parser)


if __name__ == "__main__":
    main()
