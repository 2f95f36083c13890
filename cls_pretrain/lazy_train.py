"""Train or evaluate an ImageNet classifier with any read-out, from a detectron2 LazyConfig file.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/conf.py --num-gpus 8 \\
        dataloader.train.dataset.root=/path/to/imagenet
    python cls_pretrain/lazy_train.py --config-file cls_pretrain/conf.py --eval-only \\
        train.init_checkpoint=ViT_190k.pth dataloader.test.dataset.root=/path/to/imagenet/val

Processes are started by --num-gpus / --num-machines (detectron2's launcher; CPU processes where there is no GPU) or by
torchrun. --resume continues from the last checkpoint in train.output_dir; on a CPU the loss curve is then bit-identical
to that of a run that was never stopped.
"""

import argparse
import sys
from pathlib import Path

from last_vit.lazy.command import lazy_parser, run_lazily


def main(argv: list[str] | None = None) -> int:
    """Parse and launch; a user's error becomes one message and exit status 2, also from a spawned process."""
    parser = lazy_parser(__doc__, "model.top_k=7", "classification")
    return run_lazily(parser.parse_args(argv), run)


def run(args: argparse.Namespace) -> dict[str, float]:
    """Evaluate or train in this process; returns the last evaluation's metrics."""
    import torch
    from cls_evaluator import check_classes, evaluate, write_evaluation
    from cls_training import build_model, train
    from detectron2.config import instantiate
    from detectron2.engine import default_setup

    from last_vit.checkpoint import load_checkpoint
    from last_vit.lazy.command import check_run, read_config

    cfg = read_config(args.config_file, args.opts, "cls_pretrain/conf.py and configs/")
    check_run(args, cfg)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    default_setup(cfg, args)
    if not args.eval_only:
        return train(cfg, device, args.resume, args.row)
    model, checkpoint = build_model(cfg).to(device), Path(cfg.train.init_checkpoint)
    trained_with = load_checkpoint(model, checkpoint)["pooling"]
    if trained_with is not None and trained_with["pool"] != model.pooling["pool"]:
        raise ValueError(
            f"{checkpoint} was trained with pool {trained_with['pool']!r}, the config pools with "
            f"{model.pooling['pool']!r}: give model.pool={trained_with['pool']}"
        )
    loader = instantiate(cfg.dataloader.test)
    check_classes(cfg, loader)
    result = evaluate(model, loader, device, **cfg.evaluation)
    write_evaluation(result, cfg, model, checkpoint, device, trained_with, args.row)
    return result.metrics


if __name__ == "__main__":
    sys.exit(main())
