"""How figures are printed."""

import statistics


def percentiles(seconds: list[float]) -> str:
    """Median, 99th percentile and extremes, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    figures = {"p50": cuts[49], "p99": cuts[98], "min": min(seconds), "max": max(seconds)}
    return ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in figures.items())


def spread(seconds: list[float]) -> str:
    """Median and extremes of a few, in seconds."""
    figures = {"p50": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return ", ".join(f"{name} {value:.2f} s" for name, value in figures.items())


def print_row(what: str, value: str) -> None:
    """One figure."""
    print(f"{what:32} {value}", flush=True)
