"""What the two trainers that are described by a LazyConfig share: command line, step, run, checkpoints."""
