"""A node of the tests' own that has RabbitMQ's management API."""

from pathlib import Path

from training_worker.testing.local_broker import PrivateBroker, free_port

PLUGINS = (
    "rabbitmq_management",
    "rabbitmq_management_agent",
    "rabbitmq_web_dispatch",
    "amqp_client",
    "cowboy",
    "cowlib",
    "ranch",
)
PLAIN = "management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n"
# What governs a queue is known once the queue has been counted, and that collected: every 5 s each, but here.
COUNTING = "collect_statistics_interval = 500\n"
QUEUE_TICK = "application:set_env(rabbit, quorum_tick_interval, 500)."
TLS = """
management.ssl.ip = 127.0.0.1
management.ssl.port = {port}
management.ssl.cacertfile = {ca}
management.ssl.certfile = {certificate}
management.ssl.keyfile = {key}
"""


class ManagedBroker(PrivateBroker):
    """The API listens on ``management_port`` of the loopback interface, set up by ``management``."""

    def __init__(self, folder: Path, management: str = PLAIN, config: str = "", **files: Path) -> None:
        self.management_port = free_port()
        super().__init__(folder, config=management.format(port=self.management_port, **files) + COUNTING + config)

    def _lay_out(self) -> None:
        super()._lay_out()
        for name in PLUGINS:
            for plugin in self._libraries(name):
                connection = self.folder / "plugins" / plugin.name
                connection.unlink(missing_ok=True)
                connection.symlink_to(plugin)
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")

    def management_url(self, user: str, password: str = "secret", scheme: str = "http") -> str:
        """Where this user sends requests."""
        return f"{scheme}://{user}:{password}@127.0.0.1:{self.management_port}/"
