"""The engine ``invoke``: trains with invoke-training, which lives in an environment of its own."""
