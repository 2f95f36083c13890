r"""k-NN classification with a frozen backbone (DINO's eval_knn.py): no training, one pass over ImageNet.

    python dino/eval_knn.py --pretrained_weights output/dino/checkpoint.pth --data_path /path/to/imagenet
    torchrun --nproc-per-node 8 dino/eval_knn.py --arch vit_base --pretrained_weights ... --data_path ... \
        --dump_features features
    python dino/eval_knn.py ... --load_features features --nb_knn 20 --temperature 0.1     # without the pass

Images with the shorter side at 256, centre crop 224, bicubic; the teacher's global token (the class token, or LaSt's
for a backbone trained with it), of length 1; the --nb_knn nearest training images vote, each with
exp(cosine / temperature). Top-1 and top-5 on val for every k. The search runs in blocks that fit a small GPU (see
knn_search.py), on a CPU too. Cached features of other weights, images or preprocessing are refused.
"""

import argparse
import sys
from pathlib import Path

from dino_options import boolean, number
from eval_options import add_backbone_flags, add_data_flags

from last_vit.command_line import add_record_flags, command, positive


@command("knn_search:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_backbone_flags(parser)
    add_data_flags(parser)
    add = parser.add_argument_group("k-NN").add_argument
    add("--nb_knn", type=positive, nargs="+", default=[10, 20, 100, 200], help="values of k; default 10 20 100 200")
    add("--temperature", type=number(sys.float_info.min), default=0.07, help="of the votes; default 0.07")
    add("--use_cuda", type=boolean, default=True, help="search on the GPU, where there is one; default true")
    add("--dump_features", type=Path, metavar="DIR", help="write the features here")
    add("--load_features", type=Path, metavar="DIR", help="read them from here in place of a pass over the images")
    add_record_flags(parser)


if __name__ == "__main__":
    main()
