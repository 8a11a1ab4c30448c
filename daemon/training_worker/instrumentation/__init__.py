"""What the worker measures of itself, served over HTTP."""
