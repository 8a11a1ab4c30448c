"""The worker's measurements of itself, served over HTTP."""
