r"""Lazy aggregation layer by layer: where the patch most like the global token lies after every block of a model.

    python visualization/evaluate_layers.py --imagenet-root /path/to/imagenet --max-images 1000 \
        --model "ViT-Ti=timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@vit_tiny.safetensors" \
        --model "random=timm:vit_tiny_patch16_224@random" --top-k 1 7 0.5 --figure results/layers.png
    python visualization/evaluate_layers.py --images coco/val2017 --masks coco/annotations/instances_val2017.json ...

At every layer the score of a patch is its cosine to the global token that the model's own read-out (its trained pool)
makes of that layer's tokens, as they leave the block; the last row is what the head reads, after the final norm. Where
the read-out is not the class token, the same is given for the class token. Per layer:

- Point-in-Box: how often the best patch lies in the box; "small": boxes under a quarter of the image. With --images:
  how often it lies on an object, of the images that show both object and background.
- AUROC: how often a patch in the box scores higher than one outside (50 is chance), mean over images.
- high norm: the share of patches with more than three times their image's median norm, the share of those in the box,
  and the share that chance would put there. "norm": Point-in-Box of the norm as the score.

At the end, for the score, for LaSt's votes with each --top-k, and for their product (the score from 0 to 1 in its
image, times the votes): Point-in-Box, AUROC, with --imagenet-root CorLoc (the largest component of the patches above
mean + 1 standard deviation, boxed, overlaps the image's box by half), with --images coarse segmentation (the Jaccard
index of the patches above the mean with the pixels of the objects), and the share of the votes in the box.
"""

import argparse

from diagnostic_cli import add_figure_flag, add_hit_rule_flag, add_image_flags

from last_vit.command_line import add_model_flags, add_running_flags, command, patch_count, positive


@command("layer_statistics:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_model_flags(parser)
    add_image_flags(parser, or_imagenet=True)
    add_hit_rule_flag(parser)
    add = parser.add_argument
    add("--max-images", type=positive, help="take so many images at most, evenly spread over the list; default: all")
    k_help = "patches per channel that vote: numbers, or shares such as 0.5; default 1"
    add("--top-k", type=patch_count, nargs="+", default=[1], metavar="K", help=k_help)
    add_running_flags(parser)
    add_figure_flag(parser, "results/layers.png")


if __name__ == "__main__":
    main()
