"""Checks of what a host has and lacks, made before a job needs it. Each group is a module, listed in `checks`."""
