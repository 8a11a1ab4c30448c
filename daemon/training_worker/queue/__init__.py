"""A job before its claim: admitted, planned, waiting, or given up as a dead letter."""
