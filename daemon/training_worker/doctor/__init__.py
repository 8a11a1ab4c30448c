"""What a host has and lacks, found before a job needs it. Each group of checks is a module, listed in `checks`."""
