"""Files that other programs load, and pictures of how a run went."""
