"""A whole training run on any machine: a broker, a tiny model, a daemon and its trainer."""
