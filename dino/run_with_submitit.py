"""Train with main_dino.py on a Slurm cluster: one job, one task per GPU, continued when Slurm stops it.

    python dino/run_with_submitit.py --nodes 2 --ngpus 8 --partition gpu --arch vit_small \\
        --data_path /path/to/imagenet/train --output_dir /shared/dino

All flags of main_dino.py are passed on. --output_dir must be on storage that every node sees; "%j" in it becomes the
job's number. A job that runs into its time limit, or is preempted, is queued again and resumes from its checkpoint.
Needs submitit: pip install submitit.
"""

import argparse
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_options import add_flags, check_options

from last_vit.command_line import command_parser, run_command_line

try:
    import submitit
except ImportError:  # not needed for --help; `_run` says so
    submitit = None

_SCRIPT = Path(__file__).resolve().with_name("main_dino.py")


class Training:
    """The job: each of its tasks runs main_dino.py with the same flags (`words`), told its rank by submitit."""

    def __init__(self, words: list[str], output_dir: str) -> None:
        self.words = words
        self.output_dir = output_dir
        self.meeting = uuid.uuid4().hex

    def __call__(self) -> None:
        """Run one task to its end; RuntimeError where main_dino.py failed, whose message is in the job's log."""
        job = submitit.JobEnvironment()
        folder = Path(self.output_dir.replace("%j", str(job.job_id))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        meeting = folder / f".{self.meeting}_init"
        words = [sys.executable, str(_SCRIPT), *self.words]
        words += ["--output_dir", str(folder), "--dist_url", f"file://{meeting}"]
        ranks = {"RANK": job.global_rank, "WORLD_SIZE": job.num_tasks, "LOCAL_RANK": job.local_rank}
        environment = {**os.environ, **{name: str(value) for name, value in ranks.items()}}
        done = subprocess.run(words, env=environment, preexec_fn=_ignore_preemption, check=False)
        if done.returncode:
            raise RuntimeError(f"main_dino.py ended with status {done.returncode} in task {job.global_rank}")
        if job.global_rank == 0:
            meeting.unlink(missing_ok=True)

    def checkpoint(self) -> Any:
        """What submitit queues when Slurm stops the job: the same training, meeting elsewhere."""
        return submitit.helpers.DelayedSubmission(Training(self.words, self.output_dir))


def job_parser(main_flags: bool = True) -> argparse.ArgumentParser:
    """The flags of job and training, or without `main_flags` those that main_dino.py is not to get as they are."""
    if main_flags:
        parser = command_parser("run_with_submitit.py", __doc__)
        add_flags(parser)
    else:
        parser = argparse.ArgumentParser(add_help=False)
        for flag in ("--output_dir", "--dist_url"):
            parser.add_argument(flag)
    parser.allow_abbrev = False  # an abbreviated flag of the job would be handed on to main_dino.py
    add = parser.add_argument_group("job").add_argument
    add("--ngpus", type=int, default=8, help="GPUs, and so tasks, per node; default 8")
    add("--nodes", type=int, default=2, help="default 2")
    add("--timeout", type=int, default=2800, help="limit of the job in minutes; default 2800")
    add("--partition", help="default: the cluster's own")
    add("--use_volta32", action="store_true", help="ask for nodes with the feature volta32gb")
    add("--comment", default="", help="for the scheduler")
    add("--cluster", choices=("slurm", "local"), default="slurm", help="local: tasks on this machine, to try out")
    return parser


def job_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """What submitit's executor is told, from the flags of the job."""
    tasks, minutes = args.ngpus, args.timeout
    parameters = {"name": "dino", "nodes": args.nodes, "tasks_per_node": tasks, "timeout_min": minutes}
    if args.cluster == "local":
        return parameters
    parameters |= {"gpus_per_node": tasks, "cpus_per_task": 10, "mem_gb": 40 * tasks, "slurm_signal_delay_s": 120}
    optional = {
        "slurm_partition": args.partition,
        "slurm_constraint": "volta32gb" if args.use_volta32 else None,
        "slurm_comment": args.comment,
    }
    return parameters | {name: value for name, value in optional.items() if value}


def main(argv: Sequence[str] | None = None) -> None:
    """Submit and say where the logs go; a local job is waited for."""
    words = job_parser(main_flags=False).parse_known_args(argv)[1]
    run_command_line(job_parser(), lambda args: _run(args, words), argv)


def _run(args: argparse.Namespace, words: list[str]) -> None:
    if submitit is None:
        raise ImportError("run_with_submitit.py needs submitit: pip install submitit")
    check_options(args)
    try:
        executor = submitit.AutoExecutor(folder=args.output_dir, cluster=args.cluster)
    except RuntimeError as error:
        raise ValueError(f"{error}: submit from a machine with Slurm's sbatch, or try --cluster local") from error
    executor.update_parameters(**job_parameters(args))
    job = executor.submit(Training(words, args.output_dir))
    print(f"job {job.job_id}; logs and checkpoints in {job.paths.folder}")
    if args.cluster == "local":
        job.results()


def _ignore_preemption() -> None:
    """Leave Slurm's warning signals to submitit, which answers by queueing the job again."""
    for name in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)


if __name__ == "__main__":
    main()
