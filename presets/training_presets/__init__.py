"""What can be trained on what, and with which settings. Pure functions and data files."""
