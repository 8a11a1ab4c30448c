"""A real Prometheus scrapes a real daemon, loads our rules, and answers what the dashboard queries."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support.fleet import TIMEOUT, Fleet
from tests.support.nvml import Host
from tests.support.prometheus import alert_rules, installed, panel_expressions, prometheus, promtool
from tests.support.scrape import free_port, page

# What a worker that is well has nothing of.
EMPTY_WHEN_WELL = ("prediction_ratio", "last_progress", "card_kernels{verdict!~")

# A GPU that reports all that it can, and one Xid that is a program's fault.
GPU = (
    "gpu 0 24564 GPU-1 NVIDIA GeForce RTX 4090",
    *("held 1000", "temperature 61", "power 300500", "energy 1000", "utilisation 97", "throttle 4", "ecc 0", "xid 13"),
)


@pytest.fixture(autouse=True)
def needs_prometheus(missing: Callable[[str], NoReturn]) -> None:
    """All of these run the real program."""
    if not installed():
        missing("no prometheus and promtool are installed")


async def until(condition: Callable[[], bool]) -> None:
    """Wait, without holding up the loop."""
    async with asyncio.timeout(TIMEOUT):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.2)


async def test_the_scrape_of_a_worker_that_has_worked_has_no_fault(fleet: Fleet) -> None:
    """By promtool's rules for names, types and help texts."""
    port = free_port()
    await fleet.start(metrics_port=port)
    await fleet.submit("portrait")
    await fleet.events("portrait")

    _, text = await page(port, "/metrics")

    assert await asyncio.to_thread(promtool, "check", "metrics", stdin=text) == ""


async def test_prometheus_scrapes_a_worker_and_loads_the_rules(fleet: Fleet, host: Host, tmp_path: Path) -> None:
    """No alert fires for a worker that is well; one that is stopped is reported; each panel's query has an answer."""
    port = free_port()
    host.describe(*GPU)
    fleet.host = host.variables
    daemon = await fleet.start(metrics_port=port, mode="steady", card_check_interval=0.2)
    with prometheus(tmp_path / "prometheus", port) as node:
        await until(node.ready)
        await until(lambda: bool(node.query("training_worker_card_up == 1")))
        await fleet.submit("portrait", max_train_steps=40)
        await fleet.events("portrait")
        await until(lambda: bool(node.query('training_worker_jobs_total{outcome="completed"} == 1')))

        groups = await asyncio.to_thread(node.ask, "rules")
        rules = [rule for group in groups["groups"] for rule in group["rules"]]
        assert [rule["name"] for rule in rules] == [rule["alert"] for rule in alert_rules()]
        await until(lambda: not _health(node.ask("rules"), "unknown"))
        assert _health(await asyncio.to_thread(node.ask, "rules"), "err") == []
        assert (await asyncio.to_thread(node.ask, "alerts"))["alerts"] == []
        silent = [query for query in panel_expressions() if not await asyncio.to_thread(node.query, query)]
        assert [query for query in silent if not any(name in query for name in EMPTY_WHEN_WELL)] == []

        daemon.kill()
        await until(lambda: "TrainingWorkerDown" in str(node.ask("alerts")))


def _health(groups: dict[str, list[dict[str, list[dict[str, str]]]]], health: str) -> list[str]:
    return [rule["name"] for group in groups["groups"] for rule in group["rules"] if rule["health"] == health]
