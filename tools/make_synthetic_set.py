"""Draw a synthetic data set and write it in an official layout, for any command that reads files.

    python tools/make_synthetic_set.py --layout voc --split val --num-images 640 --output data/synthetic-voc

Images, boxes, masks and captions are those of last_vit/data/synthetic.py: one labelled object each, in a cluttered
scene; the same flags always draw the same images, and train and val share none. `voc` writes VOC2012/ with class and
object masks, `imagenet` class folders and XML boxes, `coco` instances_*.json and captions_*.json. Beside them stands
class_names.txt, one class per line in the order of the labels, as --class-names takes it.
"""

import argparse
from pathlib import Path

from last_vit.command_line import command, positive


def _run(args: argparse.Namespace) -> None:
    from last_vit.data.synthetic import SyntheticObjects, write_coco, write_imagenet, write_voc

    write = {"voc": write_voc, "imagenet": write_imagenet, "coco": write_coco}[args.layout]
    sizes = (args.image_size, args.num_classes, args.seed)
    sets = [SyntheticObjects(args.num_images, split, *sizes) for split in args.split]
    if args.output.exists() and any(args.output.iterdir()):
        raise ValueError(f"{args.output} holds files already; give an empty folder, or remove it")
    for samples in sets:
        write(samples, args.output)
        print(f"wrote {len(samples):,} {samples.split} images of {len(samples.classes)} classes to {args.output}")
    names = "".join(f"{name}\n" for name in sets[0].classes)
    (args.output / "class_names.txt").write_text(names, encoding="ascii")


@command(_run)
def main(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add = parser.add_argument
    add("--layout", choices=("voc", "imagenet", "coco"), required=True)
    add("--output", type=Path, required=True, help="folder to write to; made if missing, refused if not empty")
    add("--split", choices=("train", "val"), nargs="+", default=["val"], help="one or both; default val")
    add("--num-images", type=positive, default=640, help="per split; default 640")
    add("--image-size", type=positive, default=64, help="side in pixels; default 64")
    add("--num-classes", type=positive, default=32, help="default 32")
    add("--seed", type=int, default=0, help="default 0")


if __name__ == "__main__":
    main()
