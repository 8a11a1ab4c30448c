"""A real daemon's metrics over the lives of jobs, and what it reports of its health."""

import asyncio
import contextlib
import signal

from tests.support.fleet import TIMEOUT, Fleet
from tests.support.nvml import GPU_IS_LOST, Host
from tests.support.proxy import Proxy
from tests.support.scrape import free_port, page, samples

from training_schemas.events import JobClaimed, JobCompleted, JobProgress

GPU = ("gpu", "SIMULATED-0")
FLUX = ("training_type", "FLUX_LORA")

# A daemon whose loop does not get past its first turn.
HANGING = """
import time
from training_worker.instrumentation import health
from training_worker.worker import worker
from training_worker.cli import main
from training_worker.observations import LoopTurned

async def hang(self):
    self._observe(LoopTurned())
    time.sleep(6)

health.LONGEST_SILENCE = 1
worker.Worker._pulse = hang
main()
"""


async def until_page(port: int, path: str, expected: tuple[int, str]) -> None:
    """Wait until a page has this."""
    async with asyncio.timeout(TIMEOUT):
        while await page(port, path) != expected:  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.05)


async def until_sample(port: int, name: str, labels: tuple[tuple[str, str], ...], expected: float) -> None:
    """Wait until a metric has this value."""
    async with asyncio.timeout(TIMEOUT):
        while (await samples(port)).get(name, {}).get(labels) != expected:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.05)


async def test_a_jobs_life_shows_in_the_metrics(fleet: Fleet) -> None:
    """How long it waited, its phases and steps, what it used, and how it ended."""
    port = free_port()
    await fleet.start(metrics_port=port, mode="steady", lease=2)
    await fleet.submit("one", max_train_steps=12)
    await fleet.until("one", JobProgress, 2)

    running = await samples(port)
    assert running["training_worker_jobs_running"] == {(FLUX,): 1}
    assert running["training_worker_card_busy"] == {(GPU,): 1}
    await fleet.until("one", JobCompleted)
    await until_sample(port, "training_worker_card_busy", (GPU,), 0)

    after = await samples(port)
    assert after["training_worker_jobs_total"] == {
        (("outcome", outcome), ("tier", "24gb"), FLUX): float(outcome == "completed")
        for outcome in ("completed", "failed", "cancelled")
    }
    assert after["training_worker_queue_wait_seconds_count"] == {(FLUX,): 1}
    phases = after["training_worker_phase_duration_seconds_count"]
    assert phases == {
        (("phase", phase), FLUX): 1
        for phase in ("starting", "cachingText", "loadingModel", "training", "sampling", "exporting")
    }
    assert after["training_worker_step_duration_seconds_count"] == {(FLUX,): 11}
    assert after["training_worker_last_loss"] == {(GPU, FLUX): 1 / 12}
    seconds = after["training_worker_gpu_seconds_total"][(("outcome", "completed"), FLUX)]
    assert after["training_worker_useful_gpu_seconds_total"][(("outcome", "completed"), FLUX)] == seconds
    assert sum(after["training_worker_wasted_gpu_seconds_total"].values()) == 0
    assert sum(after["training_worker_phase_duration_seconds_sum"].values()) <= seconds
    assert after["training_worker_lease_losses_total"] == {(): 0}


async def test_no_label_grows_with_the_jobs(fleet: Fleet) -> None:
    """After three jobs there are as many series as after one, and no job's id is among them."""
    port = free_port()
    await fleet.start(metrics_port=port)
    counts = []
    for job_id in ("portrait-1", "portrait-2", "portrait-3"):
        await fleet.submit(job_id)
        await fleet.events(job_id)
        await until_sample(port, "training_worker_card_busy", (GPU,), 0)
        scrape = await samples(port)
        assert job_id not in str(scrape)
        counts.append(sum(len(series) for series in scrape.values()))

    assert counts == [counts[0]] * 3


async def test_health_and_readiness_follow_the_broker_and_the_drain(proxy: Proxy, fleet: Fleet) -> None:
    """Alive all the while; ready only where jobs can be consumed."""
    port = free_port()
    daemon = await fleet.start(metrics_port=port, mode="slow", amqp_url=proxy.url, stop_grace=60)
    await until_page(port, "/readyz", (200, "ok\n"))

    proxy.down()
    await until_page(port, "/readyz", (503, "not connected to the broker\n"))
    assert await page(port, "/healthz") == (200, "ok\n")
    await proxy.up()
    await until_page(port, "/readyz", (200, "ok\n"))
    assert (await samples(port))["training_worker_broker_reconnects_total"] == {(): 1}

    await fleet.submit("last", max_train_steps=40)
    await fleet.until("last", JobProgress)
    daemon.signal(signal.SIGINT)
    await until_page(port, "/readyz", (503, "draining\n"))
    assert (await samples(port))["training_worker_draining"] == {(): 1}
    with contextlib.suppress(ConnectionError):
        assert (await page(port, "/healthz"))[0] == 200


async def test_a_hung_loop_shows_in_the_liveness_probe(fleet: Fleet) -> None:
    """Who answers is a thread of its own, which the loop cannot hold up."""
    port = free_port()
    await fleet.start(metrics_port=port, online=False, program=("-c", HANGING))

    async with asyncio.timeout(TIMEOUT):
        while (answer := await answered(port))[0] != 503:  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.1)
    assert answer[1].startswith("the event loop has not turned for ")


async def test_a_job_that_was_taken_over_is_a_lost_lease(proxy: Proxy, fleet: Fleet) -> None:
    """It shows where it was lost, and nowhere else."""
    first_port, second_port = free_port(), free_port()
    first = await fleet.start("first", mode="slow", amqp_url=proxy.url, lease=2, metrics_port=first_port)
    await fleet.submit("portrait", max_train_steps=200)
    await fleet.until("portrait", JobProgress)
    async with asyncio.timeout(TIMEOUT):
        while (await samples(first_port))["training_worker_lease_renewals_total"][()] < 2:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.05)
    proxy.down()
    await fleet.start("second", mode="slow", lease=2, metrics_port=second_port)
    await fleet.until("portrait", JobClaimed, 2)
    await proxy.up()

    await first.until_logged("superseded")
    await until_sample(first_port, "training_worker_lease_losses_total", (), 1)
    await until_sample(first_port, "training_worker_attempts_total", (("outcome", "superseded"), FLUX), 1)
    assert (await samples(second_port))["training_worker_lease_losses_total"] == {(): 0}
    await fleet.api.cancel("portrait")
    await fleet.events("portrait")


async def test_a_daemon_that_re_attaches_to_a_trainer_counts_on(fleet: Fleet) -> None:
    """What the one before it has counted is not counted again, and the job's wait neither."""
    port = free_port()
    first = await fleet.start(metrics_port=port, mode="steady")
    await fleet.submit("portrait", max_train_steps=60)
    await fleet.until("portrait", JobProgress, 20)
    first.kill()
    second = await fleet.start(metrics_port=port, mode="steady")
    await second.until_logged("trainer_found")
    await fleet.until("portrait", JobCompleted)
    await until_sample(port, "training_worker_card_busy", (GPU,), 0)

    after = await samples(port)
    # What the first had published just before it was killed may not have been noted.
    assert after["training_worker_step_duration_seconds_count"][(FLUX,)] < 50
    assert set(after["training_worker_phase_duration_seconds_count"]) == {
        (("phase", phase), FLUX) for phase in ("training", "sampling", "exporting")
    }
    assert "training_worker_queue_wait_seconds_count" not in after
    assert after["training_worker_rejoins_total"] == {(): 1}
    assert after["training_worker_attempts_total"][(("outcome", "completed"), FLUX)] == 1


async def test_a_gpus_readings_show_and_go_away_with_it(fleet: Fleet, host: Host) -> None:
    """Of each GPU of a slot by itself; whether jobs are consumed, of the slot as a whole."""
    port = free_port()
    readings = ("temperature 61", "power 300500", "energy 5000000", "utilisation 97", "throttle 1", "ecc 0", "held 564")
    first, second = (f"24564 GPU-{number} NVIDIA GeForce RTX 4090" for number in (1, 2))
    host.describe(f"gpu 0 {first}", *readings, f"gpu 0 {second}", "xid 13")
    fleet.host = host.variables
    await fleet.start(metrics_port=port, gpus_per_job=2, card_check_interval=0.2, healthy_probes=1)
    slot, one, two = (("gpu", gpu) for gpu in ("GPU-1,GPU-2", "GPU-1", "GPU-2"))
    await until_sample(port, "training_worker_card_up", (slot,), 1)
    await until_sample(port, "training_worker_card_xids_total", (two, ("xid", "13")), 1)

    well = await samples(port)
    assert well["training_worker_card_temperature_celsius"] == {(one,): 61}
    assert well["training_worker_card_power_watts"] == {(one,): 300.5}
    assert well["training_worker_card_utilisation_ratio"] == {(one,): 0.97}
    assert well["training_worker_card_memory_used_bytes"] == {(one,): 564 * 2**20, (two,): 0}
    assert well["training_worker_card_memory_free_bytes"] == {(one,): 24000 * 2**20, (two,): 24564 * 2**20}
    assert well["training_worker_card_ecc_uncorrected_errors_total"] == {(one,): 0}
    assert set(well["training_worker_card_throttled"].values()) == {0}

    host.describe(f"gpu {GPU_IS_LOST} {first}", f"gpu 0 {second}")
    await until_sample(port, "training_worker_card_up", (slot,), 0)
    sick = await samples(port)
    assert "training_worker_card_temperature_celsius" not in sick
    assert sick["training_worker_card_memory_free_bytes"] == {(two,): 24564 * 2**20}


async def answered(port: int) -> tuple[int, str]:
    """What it reports of its liveness, once it reports anything."""
    with contextlib.suppress(OSError):
        return await page(port, "/healthz")
    return 0, ""
