"""What the trainer exchanges with the daemon: records, requests, stops, exit codes."""
