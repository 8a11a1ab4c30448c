"""The process: its slots, signals, commands and heartbeat."""
