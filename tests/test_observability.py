"""Alerts and dashboard are well-formed, query what exists, and fire when they should."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests.support.fleet import ROOT
from tests.support.prometheus import (
    ALERTS,
    alert_rules,
    as_grafana_has_it,
    dashboard,
    installed,
    metrics_of,
    panel_expressions,
    promtool,
)

from training_worker.instrumentation.prometheus import Metrics

OPERATIONS = ROOT / "docs" / "operations.md"
FIRES = {"labels": "{}", "value": 1}
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"], "gauge": [""]}

# For each alert, after how many minutes it must fire for which series, as promtool writes them.
FIRING: dict[str, tuple[int, dict[str, str]]] = {
    "TrainingWorkerDown": (5, {'up{job="training-worker"}': "0x60"}),
    "TrainingWorkerRestarting": (30, {'process_start_time_seconds{job="training-worker"}': "0+60x60"}),
    "TrainingWorkerNotConnected": (6, {"training_worker_broker_connected": "0x60"}),
    "TrainingWorkerReconnecting": (30, {"training_worker_broker_reconnects_total": "0+1x60"}),
    "TrainingWorkerPaused": (361, {"training_worker_paused": "1x400"}),
    "TrainingWorkerDrainingLong": (721, {"training_worker_draining": "1x800"}),
    "TrainingJobsFailing": (
        60,
        {
            'training_worker_failures_total{reason="trainerCrashed"}': "0+0.1x60",
            'training_worker_attempts_total{outcome="retried"}': "0+0.1x60",
        },
    ),
    "TrainingHostUnfit": (10, {'training_worker_failures_total{reason="diskFull"}': "0x5 1x5"}),
    "TrainingGpuTimeWasted": (
        60,
        {
            'training_worker_wasted_gpu_seconds_total{outcome="retried"}': "0+60x60",
            'training_worker_gpu_seconds_total{outcome="retried"}': "0+120x60",
        },
    ),
    "TrainingLeasesLost": (10, {"training_worker_lease_losses_total": "0x5 1x5"}),
    "TrainingLeasesNotRenewed": (30, {"training_worker_lease_renewal_failures_total": "0+1x60"}),
    "TrainingNoProgress": (
        50,
        {
            'training_worker_card_busy{gpu="GPU-1"}': "1x60",
            'training_worker_card_last_progress_timestamp_seconds{gpu="GPU-1"}': "0x60",
        },
    ),
    "TrainingCardQuarantined": (3, {'training_worker_card_up{gpu="GPU-1"}': "0x60"}),
    "TrainingCardHot": (11, {'training_worker_card_temperature_celsius{gpu="GPU-1"}': "88x60"}),
    "TrainingSlowerThanPlanned": (
        60,
        {
            'training_worker_prediction_ratio_bucket{of="step_seconds",le="2"}': "0x60",
            'training_worker_prediction_ratio_bucket{of="step_seconds",le="2.5"}': "0+1x60",
            'training_worker_prediction_ratio_bucket{of="step_seconds",le="+Inf"}': "0+1x60",
        },
    ),
    "TrainingMoreMemoryThanPlanned": (
        60,
        {
            'training_worker_prediction_ratio_bucket{of="peak_memory",le="1.1"}': "0x60",
            'training_worker_prediction_ratio_bucket{of="peak_memory",le="1.25"}': "0+1x60",
            'training_worker_prediction_ratio_bucket{of="peak_memory",le="+Inf"}': "0+1x60",
        },
    ),
    "TrainingQueueSlow": (
        60,
        {
            'training_worker_queue_wait_seconds_bucket{training_type="FLUX_LORA",le="3600"}': "0x60",
            'training_worker_queue_wait_seconds_bucket{training_type="FLUX_LORA",le="7200"}': "0+1x60",
            'training_worker_queue_wait_seconds_bucket{training_type="FLUX_LORA",le="+Inf"}': "0+1x60",
        },
    ),
    "TrainingDiskLow": (11, {"training_worker_state_disk_free_bytes": "5000000000x60"}),
}

WELL = {
    'up{job="training-worker"}': "1x800",
    'process_start_time_seconds{job="training-worker"}': "60x800",
    "training_worker_broker_connected": "1x800",
    "training_worker_broker_reconnects_total": "0x400 1x400",
    "training_worker_paused": "0x800",
    "training_worker_draining": "0x800",
    'training_worker_failures_total{reason="datasetInvalid"}': "0x400 1x400",
    'training_worker_attempts_total{outcome="completed"}': "0+1x800",
    'training_worker_wasted_gpu_seconds_total{outcome="retried"}': "0+1x800",
    'training_worker_gpu_seconds_total{outcome="completed"}': "0+60x800",
    "training_worker_lease_losses_total": "0x800",
    "training_worker_lease_renewal_failures_total": "0x400 1x400",
    'training_worker_card_busy{gpu="GPU-1"}': "1x800",
    'training_worker_card_last_progress_timestamp_seconds{gpu="GPU-1"}': "0+60x800",
    'training_worker_prediction_ratio_bucket{of="step_seconds",le="1"}': "0+1x800",
    'training_worker_prediction_ratio_bucket{of="step_seconds",le="+Inf"}': "0+1x800",
    'training_worker_queue_wait_seconds_bucket{training_type="FLUX_LORA",le="60"}': "0+1x800",
    'training_worker_queue_wait_seconds_bucket{training_type="FLUX_LORA",le="+Inf"}': "0+1x800",
    # An Xid that quarantines for a minute, and a short spell of heat.
    'training_worker_card_up{gpu="GPU-1"}': "1x389 0x1 1x409",
    'training_worker_card_temperature_celsius{gpu="GPU-1"}': "75x385 89x8 75x405",
    'training_worker_card_throttled{gpu="GPU-1",reason="power cap"}': "1x800",
    'training_worker_card_throttled{gpu="GPU-1",reason="hardware thermal slowdown"}': "0x385 1x8 0x405",
    "training_worker_state_disk_free_bytes": "50000000000x800",
    "training_worker_state_disk_size_bytes": "100000000000x800",
}


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names of all series that a worker can have."""
    families = list(Metrics(ROOT).registry.collect())
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


@pytest.fixture
def rules(missing: Callable[[str], NoReturn]) -> Path:
    """Our rules, where promtool is here to try them."""
    if not installed():
        missing("no prometheus and promtool are installed")
    return ALERTS


def test_alerts_query_metrics_that_exist(exported: set[str]) -> None:
    """Each of them for one at least; Prometheus's own `up` is always there."""
    for rule in alert_rules():
        named = metrics_of(rule["expr"])
        assert named - exported == set(), rule["alert"]
        assert named or "up{" in rule["expr"], rule["alert"]


def test_panels_query_metrics_that_exist(exported: set[str]) -> None:
    """And every metric of ours is on one of them."""
    named = set().union(*map(metrics_of, panel_expressions()))

    assert named - exported == set()
    seen = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in named}
    every = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exported}
    assert {name for name in every if name.startswith("training_worker")} - seen == set()


def test_each_alert_states_what_is_wrong_and_where_it_is_explained() -> None:
    """docs/operations.md has a line for each, under the name that its address has."""
    text = OPERATIONS.read_text()
    for rule in alert_rules():
        name = rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert f"#### {name}\n" in text, name


def test_each_metric_is_documented(exported: set[str]) -> None:
    """docs/operations.md has a row for each of ours."""
    text = OPERATIONS.read_text()
    names = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exported}

    assert [name for name in sorted(names) if name.startswith("training_worker") and f"`{name}`" not in text] == []


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """Its data source is a variable, its panels have ids of their own and do not overlap."""
    board = dashboard()
    panels = board["panels"]
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]

    assert board["uid"] == "training-worker"
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "job", "instance"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    for panel in panels:
        for source in [panel, *panel.get("targets", [])] if panel["type"] != "row" else []:
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    """Its own types keep all that is in it: a name with a slip, which Grafana would silently drop, is found."""
    board = dashboard()

    assert list(dropped(board, as_grafana_has_it(board))) == []


def dropped(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Where they lack something of ours, or have something else."""
    match ours, theirs:
        case dict(), dict():
            for key, value in ours.items():
                yield from dropped(value, theirs.get(key), f"{path}/{key}")
        case list(), list() if len(ours) == len(theirs):
            for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                yield from dropped(one, other, f"{path}/{index}")
        case _:
            if ours != theirs:
                yield path


def test_promtool_finds_no_fault_in_the_rules(rules: Path) -> None:
    """Syntax, and no rule twice."""
    assert f"SUCCESS: {len(alert_rules())} rules found" in promtool("check", "rules", str(rules))


def test_each_alert_fires_when_it_should(rules: Path, tmp_path: Path) -> None:
    """And it alone is expected for what is wrong."""
    assert list(FIRING) == [rule["alert"] for rule in alert_rules()]
    cases = [
        case(
            series, minutes, f'count(ALERTS{{alertname="{name}",alertstate="firing"}})', [{"labels": "{}", "value": 1}]
        )
        for name, (minutes, series) in FIRING.items()
    ]

    run_cases(cases, tmp_path)


def test_a_gpu_that_is_throttled_for_heat_is_reported_once(rules: Path, tmp_path: Path) -> None:
    """However many reasons there are for it; a GPU that is gone is not reported as hot."""
    heat = {
        'training_worker_card_temperature_celsius{gpu="GPU-1"}': "89x20 _x40",
        'training_worker_card_throttled{gpu="GPU-1",reason="hardware thermal slowdown"}': "1x20 _x40",
        'training_worker_card_throttled{gpu="GPU-1",reason="hardware slowdown"}': "1x20 _x40",
        'training_worker_card_throttled{gpu="GPU-2",reason="power brake"}': "1x60",
    }
    query = 'count(ALERTS{alertname="TrainingCardHot",alertstate="firing"})'

    run_cases([case(heat, m, query, [{"labels": "{}", "value": count}]) for m, count in ((15, 2), (40, 1))], tmp_path)


def test_no_alert_fires_for_a_worker_that_is_well(rules: Path, tmp_path: Path) -> None:
    """A failure in a while, a lost connection and a renewal that failed are nothing to wake anybody for."""
    run_cases([case(WELL, minutes, "ALERTS", []) for minutes in (60, 400, 410, 790)], tmp_path)


def case(series: dict[str, str], minutes: int, expression: str, samples: list[Any]) -> dict[str, object]:
    """A test as promtool reads it: what the expression is after so long."""
    return {
        "interval": "1m",
        "input_series": [{"series": with_instance(name), "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": f"{minutes}m", "exp_samples": samples}],
    }


def with_instance(series: str) -> str:
    """The series of one worker."""
    name, _, labels = series.partition("{")
    return f'{name}{{instance="w1"' + (f",{labels}" if labels else "}")


def run_cases(cases: list[dict[str, object]], folder: Path) -> None:
    """Have promtool try them."""
    file = folder / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": cases}))
    promtool("test", "rules", str(file))
