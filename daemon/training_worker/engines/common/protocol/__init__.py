"""What a trainer exchanges with the daemon, and how it ends."""
