"""A real Prometheus, and what our alerts and our dashboard query of it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.cog.runtime import Runtime
from grafana_foundation_sdk.models.dashboard import Dashboard
from tests.support.fleet import ROOT
from tests.support.scrape import free_port, get

FOLDER = ROOT / "observability"
ALERTS = FOLDER / "alerts.yml"
DASHBOARD = FOLDER / "dashboard.json"

METRIC = re.compile(r"\b(?:training_worker|process)_[a-z_]+\b")


def alert_rules() -> list[dict[str, Any]]:
    """The rules of all groups."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def as_grafana_has_it(board: dict[str, Any]) -> dict[str, Any]:
    """The dashboard through Grafana's published types, without what they do not know. Raises for what they refuse."""
    register_default_plugins()
    known = Runtime().panelcfg_variants
    for panel in board["panels"]:
        assert panel["type"] in {*known, "row"}, f"Grafana has no panel {panel['type']}"
    read: dict[str, Any] = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
    return read


def panel_expressions() -> list[str]:
    """What the panels query, for all jobs and all workers."""
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    return [expression.replace("$job", ".*").replace("$instance", ".*") for expression in expressions]


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression names."""
    return set(METRIC.findall(expression))


def installed() -> bool:
    """Whether there are a Prometheus and its promtool on this machine."""
    return all(map(shutil.which, ("prometheus", "promtool")))


def promtool(*arguments: str, stdin: str | None = None) -> str:
    """What promtool reports; a test fails if it finds fault."""
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus:
    """A node that scrapes one worker each second, with our rules loaded."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return get(self._port, "/-/ready")[0] == 200
        except OSError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        status, text = get(self._port, f"/api/v1/{path}?{urlencode(parameters)}")
        assert status == 200, f"{parameters}: {text}"
        return json.loads(text)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[Prometheus]:
    """Scrape the worker that serves on this port."""
    folder.mkdir()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {"job_name": "training-worker", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]},
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(30)
