r"""Single-object discovery without labels: one box per image, and how often it is right (CorLoc; paper Tab. 7).

    python dino/eval_object_discovery.py --model "DINO LaSt=dino:vit_small/16@output/dino/checkpoint.pth" \
        --method patch-score lost dino-seg tokencut --voc-root VOCdevkit/VOC2012 --voc-split trainval
    python dino/eval_object_discovery.py --model ... --coco-images train2014 \
        --coco-json annotations/instances_train2014.json --coco-list coco_20k_filenames.txt
    torchrun --nproc-per-node 8 dino/eval_object_discovery.py ...     # every image once, whatever the number

Images at their own resolution, padded with zeros at the right and the bottom to whole patches, as LOST does. A box is
right when it overlaps any annotated object by half (IoU >= 0.5); every image counts. The paper says of its own method
no more than "mean + 1 std" of the patch score; `--component` says what becomes of the patches above that.

Prints, and writes to results/, CorLoc, the mean overlap, and images per second of the forward pass (one for all methods
of the command) and of each method's box extraction, loading left out; under torchrun, those of one process. For
comparison, CorLoc of a box around the whole image, which needs no model.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from last_vit.command_line import MODEL_HELP, command_parser, positive, run_command_line

if TYPE_CHECKING:
    import torch
    from discover_boxes import DiscoveryPass
    from discovery_images import DiscoveryImages
    from discovery_methods import DiscoveryMethod
    from object_lists import ObjectList

    from last_vit.models import ModelArgument, TrainedModel


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("eval_object_discovery.py", __doc__)
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="MODEL", help=MODEL_HELP)
    methods = parser.add_argument_group("methods")
    add = methods.add_argument
    add(
        "--method",
        nargs="+",
        choices=("patch-score", "lost", "dino-seg", "tokencut"),
        default=["patch-score"],
        help="default patch-score",
    )
    add(
        "--component",
        nargs="+",
        choices=("peak", "largest", "all"),
        default=["peak"],
        help="patch-score: box the part of the mask with the best patch, its largest part, or all of it; each becomes "
        "a row; default peak",
    )
    add(
        "--global-token",
        choices=("trained", "cls", "last", "mean"),
        default="trained",
        help="patch-score: the token that patches are compared with; default trained: what the model is pooled with",
    )
    add("--k-patches", type=positive, default=100, help="lost: candidates for the seed's friends; default 100")
    add("--dino-seg-head", type=int, default=4, help="dino-seg: attention head, counted from 0; default 4")
    add("--mended", action="store_true", help="dino-seg: without the three slips of the published code")
    images = parser.add_argument_group("images: one of VOC, COCO and ImageNet")
    add = images.add_argument
    add("--voc-root", type=Path, help="VOCdevkit/VOC2007, VOCdevkit/VOC2012 or a folder in that layout")
    add("--voc-split", default="trainval", help="list in ImageSets/Main; default trainval")
    add("--coco-images", type=Path, help="folder of COCO's images")
    add("--coco-json", type=Path, help="COCO's instances_*.json")
    add("--coco-list", type=Path, help="take only the images named in this file, one per line; default: all")
    add("--imagenet-root", type=Path, help="folder in ImageNet's layout: its val split with XML boxes")
    add("--num-images", type=positive, help="take so many images, evenly spread over the list; default: all")
    add("--skip-broken", action="store_true", help="leave out and count what is missing, unreadable or does not fit")
    add("--dataset-name", help='in the results, such as "VOC07 trainval"; default: after the folders')
    running = parser.add_argument_group("running")
    add = running.add_argument
    add("--batch-size", type=positive, default=1, help="images of one padded size per step, at most; default 1")
    add("--num-workers", type=int, default=4, help="loading processes; default 4")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; default auto")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the forward pass; default float32")
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--per-class", action="store_true", help="also CorLoc among the images that show each class")
    add("--save-boxes", type=Path, help="write the boxes: model -> method -> image -> [x1, y1, x2, y2] (JSON)")
    add("--pictures", type=Path, help="folder for pictures of hits and misses, one sheet per model and method")
    add("--num-pictures", type=positive, default=12, help="images per sheet, half of them hits; default 12")
    add("--seed", type=int, default=0, help="of the choice of pictures; default 0")
    add("--output", default="corloc", help="beginning of the names of the files in results/; default corloc")
    add("--table", action="store_true", help='show the results in README\'s table, in rows "<model>, <method>"')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from discovery_output import gather_results, print_table, save_boxes, write_records

    from last_vit.models import parse_model_arguments
    from last_vit.runtime import is_main_process, process_group

    boxes = {}
    with process_group(args.device) as device:
        objects = open_objects(args)
        for argument in parse_model_arguments(args.model):
            trained = argument.load()
            methods = choose_methods(args, trained)
            start = time.perf_counter()
            images, patch_size, done = evaluate(args, argument, trained, objects, methods, device)
            seconds = time.perf_counter() - start
            results = gather_results(done, len(images))
            boxes[argument.name] = {result.method.name: result.boxes for result in results}
            if not is_main_process():
                continue
            print_table(argument, objects, results, patch_size, device)
            for path in write_records(args, argument, trained, objects, results, patch_size, seconds, device):
                print(f"written {path}")
            if args.pictures is not None:
                from discovery_pictures import draw_sheets

                for path in draw_sheets(args, argument, trained.model, images, results, patch_size):
                    print(f"written {path}")
        if args.save_boxes is not None and is_main_process():
            save_boxes(args.save_boxes, boxes)
            print(f"written {args.save_boxes}")


def open_objects(args: argparse.Namespace) -> "ObjectList":
    """The images that the flags name, with their objects.

    Raises:
        ValueError: Not exactly one layout, or as the readers in `object_lists`.
        FileNotFoundError: As those.
    """
    from discovery_images import leave_out_broken
    from object_lists import list_coco_objects, list_imagenet_objects, list_voc_objects

    coco = (args.coco_images, args.coco_json)
    layouts = {"--voc-root": args.voc_root, "--coco-images and --coco-json": coco[0] or coco[1]}
    layouts["--imagenet-root"] = args.imagenet_root
    given = [flag for flag, value in layouts.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"the images come from one of {', '.join(layouts)}; got {' and '.join(given) or 'none'}")
    if None in coco and (any(coco) or args.coco_list is not None):
        raise ValueError("COCO needs both --coco-images and --coco-json; --coco-list chooses among their images")
    if args.voc_root is not None:
        objects = list_voc_objects(args.voc_root, args.voc_split, args.skip_broken)
    elif args.imagenet_root is not None:
        objects = list_imagenet_objects(args.imagenet_root, skip_broken=args.skip_broken)
    else:
        objects = list_coco_objects(*coco, args.coco_list, args.skip_broken)
    if args.num_images is not None:
        total, number = len(objects.images), args.num_images
        if number > total:
            raise ValueError(f"--num-images {number} is more than the {total} images that there are")
        objects = objects._replace(images=[objects.images[i * total // number] for i in range(number)])
    return leave_out_broken(objects) if args.skip_broken else objects


def choose_methods(args: argparse.Namespace, trained: "TrainedModel") -> "list[DiscoveryMethod]":
    """The methods that the flags name, each once, with the choices that the flags make for them.

    Raises:
        ValueError: A negative head, or a last attention layer that a method needs and that cannot be read.
    """
    import discovery_methods as known
    from last_attention import find_attention_layer

    if args.dino_seg_head < 0:
        raise ValueError(f"--dino-seg-head counts heads from 0, got {args.dino_seg_head}")
    made = {
        "patch-score": [
            known.patch_score_method(component, args.global_token, trained.selection())
            for component in dict.fromkeys(args.component)
        ],
        "lost": [known.lost_method(args.k_patches)],
        "dino-seg": [known.dino_seg_method(args.dino_seg_head, not args.mended)],
        "tokencut": [known.tokencut_method()],
    }
    methods = [method for name in dict.fromkeys(args.method) for method in made[name]]
    if any(method.needs_attention for method in methods):
        find_attention_layer(trained.model)
    return methods


def evaluate(
    args: argparse.Namespace,
    argument: "ModelArgument",
    trained: "TrainedModel",
    objects: "ObjectList",
    methods: "list[DiscoveryMethod]",
    device: "torch.device",
) -> "tuple[DiscoveryImages, int, DiscoveryPass]":
    """Run one model over this process's share of the images.

    Returns:
        The images as the model takes them, its patch size in pixels, and the pass.

    Raises:
        ValueError: A model of fixed input size and images of other sizes, or as `discover_boxes`.
    """
    import torch
    from discover_boxes import discover_boxes
    from discovery_images import DiscoveryImages, build_native_loader
    from tqdm import tqdm

    from last_vit.models import find_patch_size
    from last_vit.runtime import is_main_process

    prep = trained.preprocessing
    model = trained.model.to(device)
    patch_size = find_patch_size(model, prep.crop)
    check_sizes(argument, trained, objects, patch_size)
    images = DiscoveryImages(objects, prep.mean, prep.std)
    loader = build_native_loader(images, patch_size, args.batch_size, args.num_workers)
    batches = tqdm(loader, desc=argument.name, unit="batch", disable=None if is_main_process() else True, leave=False)
    classes = objects.classes if args.per_class else ()
    dtype = getattr(torch, args.dtype)
    return images, patch_size, discover_boxes(model, batches, methods, patch_size, device, classes, dtype)


def check_sizes(argument: "ModelArgument", trained: "TrainedModel", objects: "ObjectList", patch_size: int) -> None:
    """Refuse a model of fixed input size for images of other sizes, before the first of them is met.

    Raises:
        ValueError: The message counts them and says which models take any size.
    """
    from last_vit.models import takes_any_size

    side = trained.preprocessing.crop
    if takes_any_size(trained.model, side, patch_size):
        return
    grid = side // patch_size
    other = [each for each in objects.images if {-(-length // patch_size) for length in each.frame_hw} != {grid}]
    if other:
        height, width = other[0].frame_hw
        raise ValueError(
            f"model {argument.name!r} takes {side} x {side} pixels only, and {len(other)} of {len(objects.images)} "
            f"images are of other sizes, such as {other[0].path.name} ({width} x {height}, width x height), which "
            "object discovery does not resize; dino:<arch>/<patch>@FILE takes any size and reads the weights of DINO "
            "and of timm's plain ViTs without classifier"
        )


if __name__ == "__main__":
    main()
