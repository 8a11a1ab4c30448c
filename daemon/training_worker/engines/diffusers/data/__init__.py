"""A data set: its files, captions, masks, sizes, and what is wrong with it."""
