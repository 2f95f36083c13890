r"""Accuracy and Point-in-Box over training, several runs in one picture (paper Sec. 4.2, figure 3).

    python visualization/plot_dynamics.py --run CLS=output/vitb16_cls --run LaSt=output/vitb16_last
    python visualization/plot_dynamics.py --imagenet-root /path/to/imagenet \
        --model CLS=cls_pretrain/configs/vitb16_in1k.py@output/vitb16_cls --model DINO=dino:vit_small/16@output/dino

--run reads the evaluations that a cls_pretrain run logs (train.eval_period, dataloader.test.dataset.boxes=True): top-1
over all validation images, Point-in-Box as the run's own `evaluation` options say. Runs of one NAME, such as the seeds
of a recipe, share a colour. --model SPEC@FOLDER measures instead every checkpoint of a folder whose name ends in a
number, on the single-object images only, as evaluate_patch_hit.py does, and writes one record each. The two
protocols differ, so one picture takes one of them. Thin lines are what a random patch (dotted) and the image's centre
(dashed) would score. Runs of different batch sizes are drawn over their iterations all the same.
"""

import argparse

from diagnostic_cli import add_figure_flag, add_imagenet_flags, add_protocol_flags

from last_vit.command_line import add_loading_flags, add_model_flags, add_token_flag, command


@command("training_curve:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run", action="append", metavar="[NAME=]FOLDER", help="output folder of a cls_pretrain run; once per run"
    )
    add_figure_flag(parser, "results/dynamics.png")
    measured = parser.add_argument_group("checkpoints that are measured here, in place of --run")
    add_model_flags(measured, required=False)
    add_imagenet_flags(measured, source)
    measured.add_argument("--dataset-name", help="data set in the results; default: from --imagenet-root")
    measured.add_argument("--skip-broken", action="store_true", help="leave out and count images that are unreadable")
    add_token_flag(measured)
    add_protocol_flags(measured)
    add_loading_flags(measured)
    # what evaluate_patch_hit.py has flags for
    parser.set_defaults(output="dynamics", row=None, opts=[], top_k=None, variant=None)


if __name__ == "__main__":
    main()
