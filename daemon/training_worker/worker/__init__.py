"""The worker process: its slots, signals, commands and heartbeat."""
