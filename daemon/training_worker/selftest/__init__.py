"""The self-tests of a host's GPUs: made at the worker's start, and remembered for as long as nothing changes."""
