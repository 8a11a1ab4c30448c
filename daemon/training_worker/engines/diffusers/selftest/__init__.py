"""The self-test of a GPU: which kernels are right on it, and how fast it is. Each is tried in a process of its own."""
