"""The wire of training-worker: jobs, events and commands, and what passes between the daemon and a trainer."""
