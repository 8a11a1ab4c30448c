"""A run from its spec to its result: preparation, steps, checkpoints, sampling."""
