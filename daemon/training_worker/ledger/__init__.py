"""The ledger, read and followed: what was recorded of each job."""
