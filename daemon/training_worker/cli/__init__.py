"""The command line."""

from training_worker.cli.app import main

__all__ = ["main"]
