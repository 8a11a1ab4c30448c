"""Data sets: what is found in them, what is checked, and what is told of them."""
