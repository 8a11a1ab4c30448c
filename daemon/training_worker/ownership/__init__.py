"""Who holds a job: lock, lease and claim."""
