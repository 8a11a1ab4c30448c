"""Files that other programs load, and images that show how a run went."""
