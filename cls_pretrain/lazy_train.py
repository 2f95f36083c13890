"""Train or evaluate an ImageNet classifier with any read-out, from a detectron2 LazyConfig file.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/conf.py --num-gpus 8 \\
        dataloader.train.dataset.root=/path/to/imagenet
    python cls_pretrain/lazy_train.py --config-file cls_pretrain/conf.py --eval-only \\
        train.init_checkpoint=ViT_190k.pth dataloader.test.dataset.root=/path/to/imagenet/val

Processes are started by --num-gpus / --num-machines (detectron2's launcher; CPU processes where there is no GPU) or by
torchrun. --resume continues from the last checkpoint in train.output_dir; on a CPU the loss curve is then bit-identical
to that of a run that was never stopped. The record of the last evaluation goes into train.output_dir, or with --row
into results/; that of the best by train.best_metric stays beside its weights, model_best.pth.
"""

import argparse

from last_vit.command_line import add_lazy_train_flags, command


@command("cls_training:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_lazy_train_flags(parser, "model.top_k=7", "classification")


if __name__ == "__main__":
    main()
