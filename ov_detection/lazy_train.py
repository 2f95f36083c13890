"""Train or evaluate an open-vocabulary detector (F-ViT) on a frozen CLIP, from a detectron2 LazyConfig file.

    python ov_detection/lazy_train.py --config-file ov_detection/configs/ov_coco/fvit_vitb16_last.py --num-gpus 8 \\
        model.clip.checkpoint=last_eva02_b_16.pt dataloader.train.dataset.image_root=/path/to/coco/train2017
    python ov_detection/lazy_train.py --config-file ov_detection/configs/ov_coco/fvit_vitb16_last.py --eval-only \\
        train.init_checkpoint=output/fvit_vitb16_last/model_final.pth

Data are made by ov_detection/make_ov_coco.py and ov_detection/make_ov_lvis.py; tools/eval_ov_coco.sh and
tools/eval_ov_lvis.sh evaluate. Class embeddings come from vocabulary.path (ov_detection/build_class_embeddings.py) or,
without one, from the text tower of the config's own CLIP.

Lengths are in epochs (train.epochs, train.eval_epochs, train.checkpoint_epochs, train.lr_steps), and an iteration has
train.lr_batch_size images on any number of GPUs, by gradient accumulation where there are fewer (ov_training.plan_run).

Processes are started by --num-gpus / --num-machines (detectron2's launcher; CPU processes where there is no GPU) or by
torchrun. --resume continues from the last checkpoint in train.output_dir; on a CPU the loss curve is then bit-identical
to that of a run that was never stopped. The record of the last evaluation goes into train.output_dir, or with --row
into results/; that of the best by train.best_metric stays beside its weights, model_best.pth.
"""

import argparse

from last_vit.command_line import add_lazy_train_flags, command


@command("ov_training:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_lazy_train_flags(parser, "model.roi_heads.beta=0.6", "open-vocabulary detection")


if __name__ == "__main__":
    main()
