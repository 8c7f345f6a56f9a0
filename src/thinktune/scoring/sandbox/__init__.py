"""Running programs that a model wrote, apart from everything else."""
