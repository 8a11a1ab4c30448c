"""Optimizers, and rounding for weights in 16 bits."""
