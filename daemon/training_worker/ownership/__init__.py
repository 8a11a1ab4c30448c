"""The ownership of a job: lock, lease and claim."""
