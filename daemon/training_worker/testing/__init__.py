"""The parts of the project that other projects' tests may start."""
