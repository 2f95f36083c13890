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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Detectron2's flags, which are the release's; read without importing detectron2 or torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig .py file")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in train.output_dir")
    parser.add_argument("--eval-only", action="store_true", help="evaluate train.init_checkpoint and stop")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes per machine, one per GPU (default 1)")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="rank of this machine")
    parser.add_argument("--dist-url", default="auto", help="tcp://host:port of the first machine; needed for several")
    parser.add_argument("--row", help="show the result in README's classification table under this label")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="key=value", help="config overrides, such as model.top_k=7"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Parse and launch; a user's error becomes one message and exit status 2, also from a spawned process."""
    args = parse_args(argv)
    try:
        _launch(args)
    except ImportError as error:
        print(f"lazy_train.py: error: {error}; run make setup, or pip install -r requirements.txt", file=sys.stderr)
        return 2
    except (ValueError, OSError, FloatingPointError) as error:
        from last_vit.runtime import error_text

        print(f"lazy_train.py: error: {error_text(error)}", file=sys.stderr)
        return 2
    return 0


def _launch(args: argparse.Namespace) -> None:
    import torch
    from detectron2.engine import launch
    from torch.multiprocessing import ProcessExitedException

    from last_vit.runtime import process_group

    if torch.distributed.is_torchelastic_launched():
        with process_group():
            run(args)
        return
    num_gpus = torch.cuda.device_count()
    if args.num_gpus < 1 or (num_gpus and args.num_gpus > num_gpus):
        raise ValueError(f"--num-gpus must be in [1, {num_gpus or 'the number of cores'}], got {args.num_gpus}")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("--num-machines above 1 needs --dist-url tcp://<first machine>:<port>")
    if args.num_gpus * args.num_machines == 1:
        run(args)
        return
    try:
        launch(_run_spawned, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
    except ProcessExitedException as error:
        raise SystemExit(error.exit_code) from None  # the process has said why


def _run_spawned(args: argparse.Namespace) -> None:
    """`run` in a process of detectron2's launcher, which would wrap a user's error into two stack traces."""
    from last_vit.runtime import error_text, rank

    try:
        run(args)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"lazy_train.py: error: {error_text(error)} (process {rank()})", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def run(args: argparse.Namespace) -> dict[str, float]:
    """Evaluate or train in this process; returns the last evaluation's metrics."""
    import torch
    from cls_evaluator import check_classes, evaluate, write_evaluation
    from cls_training import build_model, train
    from detectron2.config import LazyConfig, instantiate
    from detectron2.engine import default_setup

    from last_vit.checkpoint import load_checkpoint
    from last_vit.lazy_overrides import apply_overrides

    if not Path(args.config_file).is_file():
        raise FileNotFoundError(f"no config file {args.config_file}; the recipes are cls_pretrain/conf.py and configs/")
    cfg = apply_overrides(LazyConfig.load(args.config_file), args.opts)
    output_dir = Path(cfg.train.output_dir)
    if not (args.resume or args.eval_only) and (output_dir / "last_checkpoint").exists():
        raise FileExistsError(
            f"{output_dir} holds the checkpoints of an earlier run: continue it with --resume, or choose another "
            f"train.output_dir"
        )
    if args.eval_only and not cfg.train.init_checkpoint:
        raise ValueError("--eval-only needs train.init_checkpoint=/path/to/checkpoint.pth")
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
