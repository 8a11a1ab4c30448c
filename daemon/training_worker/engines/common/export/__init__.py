"""Results: names, descriptions and files that survive a loss of power."""
