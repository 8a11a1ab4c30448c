"""A node that closes the channel of a consumer that holds a delivery for too long."""

from pathlib import Path

from training_worker.testing.local_broker import PrivateBroker

CONSUMER_TIMEOUT = 10.0

# Instead of 30 minutes, in rabbitmq.conf.
CONSUMER_TIMEOUT_CONFIG = f"consumer_timeout = {CONSUMER_TIMEOUT * 1000:.0f}"

# A channel looks at the age of its oldest delivery once a tick, which is a minute long, and which rabbitmq.conf has no
# name for: this goes to advanced.config.
CHANNEL_TICK = "[{rabbit, [{channel_tick_interval, 1000}]}]."


def consumer_timeout_node(folder: Path) -> PrivateBroker:
    """A node, not started yet, with a consumer timeout that strikes within a second after it ran out."""
    node = PrivateBroker(folder, config=CONSUMER_TIMEOUT_CONFIG)
    node.folder.mkdir(parents=True)
    (node.folder / "advanced.config").write_text(CHANNEL_TICK)
    return node
