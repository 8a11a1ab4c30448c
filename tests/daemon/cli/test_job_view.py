"""What users see of a job: a line for each event, and a live view that works without a terminal, too."""

from typing import Any

import msgspec
import pytest
from rich.text import Text

from training_schemas.events import (
    EVENTS,
    Gpu,
    JobCancelled,
    JobCheckpoint,
    JobClaimed,
    JobCompleted,
    JobDataset,
    JobDuplicate,
    JobEvent,
    JobFailed,
    JobPhase,
    JobProgress,
    JobQueued,
    JobRefused,
    JobRejected,
    JobReleased,
    JobRetrying,
    JobSample,
    JobWarning,
)
from training_schemas.jobs import MemoryTier, TrainingType
from training_schemas.plans import SettingChange
from training_schemas.progress import DatasetSummary, FailureReason, Fault, Phase
from training_schemas.usage import Usage
from training_worker.cli.job_view import LiveView, PlainView, describe, make_view, money

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"

COMMON: dict[str, Any] = {"worker": "w1", "simulated": False, "job_id": "portrait", "attempt": 2, "sequence": 3}
USAGE = Usage(gpu_seconds=61.27, cost_usd=0.01234)
CARD = Gpu(uuid="GPU-1", name="NVIDIA L4", memory_mib=23034, tier=MemoryTier.GB24)
FAULTS = [Fault(path="loraRank", reason="too large"), Fault(path="", reason="not valid JSON")]
LOSSES: dict[str, Any] = {"first_loss": 1.0, "last_loss": 0.5, "fixed_loss_before": 1.0, "fixed_loss_after": 0.5}
CLAIMED = JobClaimed(**COMMON, training_type=TrainingType.FLUX_LORA, gpu=CARD, engine="diffusers", resume_step=0)
PROGRESS = JobProgress(
    **COMMON,
    phase=Phase.TRAINING,
    step=5,
    total_steps=100,
    loss=0.123456,
    learning_rate=1e-4,
    usage=USAGE,
    steps_per_minute=12.34,
    seconds_left=461.6,
)
RETRYING = JobRetrying(
    **COMMON,
    reason=FailureReason.DISK_FULL,
    message="cannot write",
    here=False,
    counted=True,
    delay_seconds=30.0,
    usage=USAGE,
)
FAILED = JobFailed(
    **COMMON,
    reason=FailureReason.CONFIG_INVALID,
    message="cannot train",
    faults=FAULTS,
    output_tail=[str(number) for number in range(9)],
    usage=USAGE,
)
COMPLETED = JobCompleted(**COMMON, **LOSSES, output_path="/models/a", steps=100, artifacts=[], usage=USAGE)

DATASET = JobDataset(
    **COMMON,
    summary=DatasetSummary(
        images=20,
        samples=40,
        buckets={"832x1216": 5, "1024x1024": 15},
        masks=0,
        captions=19,
        enlarged=2,
        duplicates=1,
        digest="d",
    ),
)
LINES: list[tuple[JobEvent, str]] = [
    (
        JobQueued(**COMMON, training_type=TrainingType.FLUX_LORA, tier=MemoryTier.GB24, preset="flux_24gb_balanced"),
        "queued for a GPU of 24gb, preset flux_24gb_balanced",
    ),
    (
        JobQueued(
            **COMMON,
            training_type=TrainingType.FLUX_LORA,
            tier=MemoryTier.GB40,
            preset="flux_40gb_balanced",
            changes=[SettingChange(setting="batchSize", before=8, after=2, why="to fit 36.0 GiB")],
        ),
        "queued for a GPU of 40gb, preset flux_40gb_balanced; batchSize 2 instead of 8, to fit 36.0 GiB",
    ),
    (JobRejected(**COMMON, faults=FAULTS), "rejected:\n  loraRank: too large\n  message: not valid JSON"),
    (CLAIMED, "attempt 2 on w1: NVIDIA L4, engine diffusers"),
    (
        msgspec.structs.replace(CLAIMED, resume_step=250),
        "attempt 2 on w1: NVIDIA L4, engine diffusers, resuming after step 250",
    ),
    (JobPhase(**COMMON, phase=Phase.TRAINING), "phase training"),
    (JobPhase(**COMMON, phase=Phase.CACHING_LATENTS, total=12), "phase cachingLatents (12)"),
    (JobPhase(**COMMON, phase=Phase.CACHING_LATENTS, total=0), "phase cachingLatents (0)"),
    (DATASET, "data set: 20 images, 19 captions, sizes 832x1216, 1024x1024"),
    (PROGRESS, "step 5/100  loss 0.1235  12.3 steps/min  7:42 left  61.3 GPU-s  0.0123 USD"),
    (
        msgspec.structs.replace(PROGRESS, steps_per_minute=None, seconds_left=None, usage=Usage(gpu_seconds=0.0)),
        "step 5/100  loss 0.1235  - steps/min  0.0 GPU-s  price unknown",
    ),
    (JobCheckpoint(**COMMON, step=250, path="/c"), "checkpoint at step 250: /c"),
    (JobSample(**COMMON, step=250, path="/s.png", prompt="a cat"), "sample at step 250: /s.png"),
    (JobWarning(**COMMON, message="[b]slow[/b]"), "warning: [b]slow[/b]"),
    (
        JobReleased(**COMMON, why="SIGTERM", step=250, usage=USAGE),
        "released after step 250 (SIGTERM); back in the queue",
    ),
    (RETRYING, "attempt 2 failed: diskFull: cannot write; retried in 30 s or later"),
    (
        msgspec.structs.replace(RETRYING, here=True, delay_seconds=0.0),
        "attempt 2 failed: diskFull: cannot write; retried here, at once",
    ),
    (
        JobDuplicate(**COMMON, outcome="completed", output_path="/models/a"),
        "submitted again after it was completed: nothing is trained",
    ),
    (JobRefused(**COMMON, digest="0123456789abcdef"), "refused a submission of another job with this id, 0123456789ab"),
    (COMPLETED, "completed: /models/a  61.3 GPU-s  0.0123 USD"),
    (
        FAILED,
        "\n  ".join(
            ["failed: configInvalid: cannot train", "loraRank: too large", "message: not valid JSON", *"45678"]
        ),
    ),
    (JobCancelled(**COMMON, step=5, usage=USAGE), "cancelled"),
]


@pytest.mark.parametrize(("event", "line"), LINES, ids=lambda value: type(value).__name__)
def test_an_event_is_told_in_words(event: JobEvent, line: str) -> None:
    """What a user wants to know of it."""
    assert describe(event) == line


def test_every_event_of_a_job_is_told_above() -> None:
    """A new event comes with its words."""
    assert {type(event) for event, _ in LINES} == {kind for kind in EVENTS.values() if issubclass(kind, JobEvent)}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.4, "59:59"), (3600.0, "1:00:00"), (360_000.0, "100:00:00")],
)
def test_what_is_left_is_told_in_minutes_or_hours(seconds: float, told: str) -> None:
    """Rounded to seconds."""
    assert f"  {told} left  " in describe(msgspec.structs.replace(PROGRESS, seconds_left=seconds))


def test_a_card_that_costs_nothing_is_told_as_that() -> None:
    """Zero is a price."""
    assert money(Usage(gpu_seconds=60.0, cost_usd=0.0)) == "60.0 GPU-s  0.0000 USD"


def test_the_plain_view_is_a_line_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with the job's id, nothing coloured, nothing redrawn."""
    with PlainView("portrait") as view:
        for event, _ in LINES:
            view.show(event)

    assert capsys.readouterr().out == "".join(f"portrait: {line}\n" for _, line in LINES)


def test_without_a_terminal_the_view_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """A log wants lines."""
    assert isinstance(make_view("portrait"), PlainView)


def test_the_live_view_leaves_turning_points_behind_as_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phases and steps are drawn and overdrawn; all else stays. Without a terminal there are no control characters."""
    monkeypatch.setenv("COLUMNS", "200")
    with LiveView("portrait") as view:
        for event, _ in LINES:
            view.show(event)

    shown = capsys.readouterr().out
    passing = (JobPhase, JobProgress)
    for event, line in LINES:
        assert (f"portrait: {line}\n" in shown) is not isinstance(event, passing)
    assert "\x1b" not in shown


def test_the_live_view_draws_the_present_state(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Job, phase, step, loss, pace and cost, and how far it is."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with LiveView("portrait") as view:
        view.show(JobPhase(**COMMON, phase=Phase.TRAINING))
        view.show(PROGRESS)

    shown = capsys.readouterr().out
    for part in ("portrait", "training", "5 of 100", "0.1235", "12.3 steps/min  7:42 left", "61.3 GPU-s  0.0123 USD"):
        assert part in shown


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([JobPhase(**COMMON, phase=Phase.CACHING_TEXT)], "preparing: cachingText"),
        ([PROGRESS], "training"),
        ([CLAIMED, PROGRESS, RETRYING], "retrying"),
        ([CLAIMED, PROGRESS, LINES[0][0]], "training"),
    ],
    ids=["a phase of the preparation", "opened in the middle", "an attempt that failed", "a second submission"],
)
def test_the_live_view_says_the_state_of_the_job(
    events: list[JobEvent], state: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in its life the view was opened; during the preparation, with the phase."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with LiveView("portrait") as view:
        for event in events:
            view.show(event)

    # Drawn for the last time when the view is closed.
    _, _, drawn = Text.from_ansi(capsys.readouterr().out).plain.rpartition("portrait  ")
    assert drawn.splitlines()[0].strip() == state


def test_the_live_view_gives_the_cursor_back_when_the_user_interrupts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal is left as it was found, and the interruption goes on."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")

    def interrupted() -> None:
        with LiveView("portrait") as view:
            view.show(PROGRESS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    shown = capsys.readouterr().out
    assert -1 < shown.rfind(HIDE_CURSOR) < shown.rfind(SHOW_CURSOR)
