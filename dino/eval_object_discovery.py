r"""Single-object discovery without labels: one box per image, and how often it is right (CorLoc; paper Tab. 7).

    python dino/eval_object_discovery.py --model "DINO LaSt=dino:vit_small/16@output/dino/checkpoint.pth" \
        --method patch-score lost dino-seg tokencut --voc-root VOCdevkit/VOC2012 --voc-split trainval
    python dino/eval_object_discovery.py --model ... --coco-images train2014 \
        --coco-json annotations/instances_train2014.json --coco-list coco_20k_filenames.txt
    torchrun --nproc-per-node 8 dino/eval_object_discovery.py ...     # every image once, whatever the number

Images at their own resolution, unless --resize says another, padded with zeros at the right and the bottom to whole
patches, as LOST does. A box is right when it overlaps any annotated object by half (IoU >= 0.5); every image counts.
The paper says of its own method no more than "mean + 1 std" of the patch score; `--component` says what becomes of the
patches above that.

Prints, and keeps in a record, CorLoc, the mean overlap, and images per second of the forward pass (one for all methods
of the command) and of each method's box extraction, loading left out; under torchrun, those of one process. For
comparison, CorLoc of a box around the whole image, which needs no model.
"""

import argparse
from pathlib import Path

from eval_options import add_method_flags, add_resize_flag

from last_vit.command_line import MODEL_HELP, add_running_flags, command, positive


@command("discovery_results:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="MODEL", help=MODEL_HELP)
    add_method_flags(parser.add_argument_group("methods"))
    images = parser.add_argument_group("images: one of VOC, COCO and ImageNet")
    add = images.add_argument
    add("--voc-root", type=Path, help="VOCdevkit/VOC2007, VOCdevkit/VOC2012 or a folder in that layout")
    add("--voc-split", default="trainval", help="list in ImageSets/Main; default trainval")
    add("--coco-images", type=Path, help="folder of COCO's images")
    add("--coco-json", type=Path, help="COCO's instances_*.json")
    add("--coco-list", type=Path, help="take only the images named in this file, one per line; default: all")
    add("--imagenet-root", type=Path, help="folder in ImageNet's layout: its val split with XML boxes")
    add("--num-images", type=positive, help="take so many images, evenly spread over the list; default: all")
    add_resize_flag(images)
    add("--skip-broken", action="store_true", help="leave out and count what is missing, unreadable or does not fit")
    add("--dataset-name", help='in the results, such as "VOC07 trainval"; default: after the folders')
    running = parser.add_argument_group("running")
    add_running_flags(running, batch_size=1)
    running.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the forward pass; default float32"
    )
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--per-class", action="store_true", help="also CorLoc among the images that show each class")
    add("--save-boxes", type=Path, help="write the boxes: model -> method -> image -> [x1, y1, x2, y2] (JSON)")
    add("--pictures", type=Path, help="folder for pictures of hits and misses, one sheet per model and method")
    add("--num-pictures", type=positive, default=12, help="images per sheet, half of them hits; default 12")
    add("--seed", type=int, default=0, help="of the choice of pictures; default 0")


if __name__ == "__main__":
    main()
