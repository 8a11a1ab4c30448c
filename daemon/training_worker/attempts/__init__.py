"""One owned job, from its claim to its completion."""
