"""Train or evaluate an open-vocabulary detector (F-ViT) on a frozen CLIP, from a detectron2 LazyConfig file.

    python ov_detection/lazy_train.py --config-file ov_detection/configs/ov_coco/fvit_vitb16_last.py --num-gpus 8 \\
        model.clip.checkpoint=last_eva02_b_16.pt dataloader.train.dataset.image_root=/path/to/coco/train2017
    python ov_detection/lazy_train.py --config-file ov_detection/configs/ov_coco/fvit_vitb16_last.py --eval-only \\
        train.init_checkpoint=output/fvit_vitb16_last/model_final.pth

Data are made by ov_detection/make_ov_coco.py and ov_detection/make_ov_lvis.py; tools/eval_ov_coco.sh and
tools/eval_ov_lvis.sh evaluate. Class embeddings come from vocabulary.path (ov_detection/build_class_embeddings.py)
or, without one, from
the text tower of the config's own CLIP.

Processes are started by --num-gpus / --num-machines (detectron2's launcher; CPU processes where there is no GPU) or by
torchrun. --resume continues from the last checkpoint in train.output_dir; on a CPU the loss curve is then bit-identical
to that of a run that was never stopped.
"""

import argparse
import sys

from last_vit.lazy.command import lazy_parser, run_lazily


def main(argv: list[str] | None = None) -> int:
    """Parse and launch; returns the exit status."""
    parser = lazy_parser(__doc__, "model.roi_heads.beta=0.6", "open-vocabulary detection")
    return run_lazily(parser.parse_args(argv), run)


def run(args: argparse.Namespace) -> dict[str, float]:
    """Evaluate or train in this process; returns the last evaluation's metrics (in the main process)."""
    import torch
    from detectron2.engine import default_setup
    from ov_training import evaluate_checkpoint, train

    from last_vit.lazy.command import check_run, read_config

    cfg = read_config(args.config_file, args.opts, "in ov_detection/configs/")
    check_run(args, cfg)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    default_setup(cfg, args)
    if args.eval_only:
        return evaluate_checkpoint(cfg, device, args.row)
    return train(cfg, device, args.resume, args.row)


if __name__ == "__main__":
    sys.exit(main())
