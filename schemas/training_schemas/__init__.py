"""The wire format of training-worker: jobs, events, commands, and what the daemon and a trainer exchange."""
