"""What a run does while it trains."""
