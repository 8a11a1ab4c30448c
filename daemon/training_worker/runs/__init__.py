"""A trainer's child process and its run folder."""
