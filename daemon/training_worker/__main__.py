"""``python -m training_worker``: the program ``training-worker``."""

from training_worker.cli import main

main()
