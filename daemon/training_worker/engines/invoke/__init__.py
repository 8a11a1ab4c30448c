"""The engine ``invoke``: trains with invoke-training, which lives in an environment of its own.

Its program reads ``spec.json`` and appends to ``progress.jsonl``, as the built-in trainer does. What upstream gets
wrong is put right here: the data set is checked before anything is loaded, losses that are no numbers end the run, the
last step leaves a checkpoint, stops are heeded, and results bear the names and the scale that other programs read.
"""
