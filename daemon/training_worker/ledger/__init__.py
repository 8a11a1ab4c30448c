"""What was recorded of a job: the ledger, read and followed."""
