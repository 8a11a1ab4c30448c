"""Data sets: what is found in them, what is checked, and what is reported of them."""
