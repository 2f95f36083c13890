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

from dino_options import build_parser

_CPUS_PER_TASK = 10
_MEM_GB_PER_GPU = 40
_SECONDS_BEFORE_LIMIT = 120


class Training:
    """The job: each of its tasks runs main_dino.py with the same flags, told its rank by submitit.

    Args:
        script: Path of main_dino.py.
        words: Its command line, without --dist_url.
        output_dir: Folder of the run; may hold "%j".
    """

    def __init__(self, script: str, words: list[str], output_dir: str) -> None:
        self.script = script
        self.words = words
        self.output_dir = output_dir
        self.meeting = uuid.uuid4().hex

    def __call__(self) -> None:
        """Run one task to its end.

        Raises:
            RuntimeError: main_dino.py failed; its message is in the job's log.
        """
        import submitit

        job = submitit.JobEnvironment()
        folder = Path(self.output_dir.replace("%j", str(job.job_id))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        meeting = folder / f".{self.meeting}_init"
        words = [sys.executable, self.script, *self.words]
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
        import submitit

        return submitit.helpers.DelayedSubmission(Training(self.script, self.words, self.output_dir))


def parse_command(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The flags of job and training, and the words of the command line that are main_dino.py's."""
    parser = build_parser(__doc__)
    parser.allow_abbrev = False  # an abbreviated flag of the job would be handed on to main_dino.py
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for target in (parser.add_argument_group("job"), own):
        add = target.add_argument
        add("--ngpus", type=int, default=8, help="GPUs, and so tasks, per node; default 8")
        add("--nodes", type=int, default=2, help="default 2")
        add("--timeout", type=int, default=2800, help="limit of the job in minutes; default 2800")
        add("--partition", help="default: the cluster's own")
        add("--use_volta32", action="store_true", help="ask for nodes with the feature volta32gb")
        add("--comment", default="", help="for the scheduler")
        add("--cluster", choices=("slurm", "local"), default="slurm", help="local: tasks on this machine, to try out")
    args = parser.parse_args(argv)
    words = own.parse_known_args(argv)[1]
    return args, _without(words, ("--output_dir", "--dist_url"))


def job_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """What submitit's executor is told, from the flags of the job."""
    parameters: dict[str, Any] = {
        "name": "dino",
        "nodes": args.nodes,
        "tasks_per_node": args.ngpus,
        "timeout_min": args.timeout,
    }
    if args.cluster == "local":
        return parameters
    parameters |= {
        "gpus_per_node": args.ngpus,
        "cpus_per_task": _CPUS_PER_TASK,
        "mem_gb": _MEM_GB_PER_GPU * args.ngpus,
        "slurm_signal_delay_s": _SECONDS_BEFORE_LIMIT,
    }
    optional = {
        "slurm_partition": args.partition,
        "slurm_constraint": "volta32gb" if args.use_volta32 else None,
        "slurm_comment": args.comment,
    }
    return parameters | {name: value for name, value in optional.items() if value}


def submit(argv: Sequence[str] | None = None) -> Any:
    """Send the job.

    Returns:
        submitit's job.

    Raises:
        ImportError: submitit is not installed.
        ValueError: A flag's value; no Slurm on this machine.
    """
    args, words = parse_command(argv)
    try:
        import submitit
    except ImportError as error:
        raise ImportError("run_with_submitit.py needs submitit: pip install submitit") from error
    from dino_options import check_options

    check_options(args)
    try:
        executor = submitit.AutoExecutor(folder=args.output_dir, cluster=args.cluster)
    except RuntimeError as error:
        raise ValueError(f"{error}: submit from a machine with Slurm's sbatch, or try --cluster local") from error
    executor.update_parameters(**job_parameters(args))
    script = str(Path(__file__).resolve().with_name("main_dino.py"))
    return executor.submit(Training(script, words, args.output_dir))


def main(argv: Sequence[str] | None = None) -> int:
    """Submit and say where the logs go; a local job is waited for."""
    try:
        job = submit(argv)
    except (ImportError, ValueError, OSError) as error:
        print(f"run_with_submitit.py: error: {error}", file=sys.stderr)
        return 2
    print(f"job {job.job_id}; logs and checkpoints in {job.paths.folder}")
    if type(job).__name__ == "LocalJob":
        job.results()
    return 0


def _without(words: list[str], flags: tuple[str, ...]) -> list[str]:
    """Words without these flags and their values."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in flags:
            skip = True
        elif not word.startswith(tuple(f"{flag}=" for flag in flags)):
            kept.append(word)
    return kept


def _ignore_preemption() -> None:
    """Leave Slurm's warning signals to submitit, which answers by queueing the job again."""
    for name in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
