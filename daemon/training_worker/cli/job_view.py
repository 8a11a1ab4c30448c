"""The views of a job: one live view on a terminal, plain lines elsewhere."""

import sys
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from training_presets.estimates import CostEstimate
from training_schemas.events import (
    TERMINAL_EVENTS,
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
from training_schemas.plans import SettingChange
from training_schemas.progress import Phase
from training_schemas.states import IllegalTransitionError, JobState, next_state, reported_state
from training_schemas.usage import Usage

BAR_WIDTH = 40


class View(Protocol):
    """A view that shows events; a context manager."""

    def show(self, event: JobEvent) -> None:
        """Show one more event."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def make_view(job_id: str) -> View:
    """Return the view that fits standard output."""
    return LiveView(job_id) if sys.stdout.isatty() else PlainView(job_id)


def describe(event: JobEvent) -> str:  # noqa: C901, PLR0911, PLR0912 - one line for each event
    """Describe an event in one line."""
    match event:
        case JobQueued():
            gpus = "a GPU" if event.gpu_count == 1 else f"{event.gpu_count} GPUs"
            return f"queued for {gpus} of {event.tier}, preset {event.preset}" + "".join(
                f"; {describe_change(change)}" for change in event.changes
            )
        case JobClaimed():
            after = f", resuming after step {event.resume_step}" if event.resume_step else ""
            several = f"{event.gpu.count} x " if event.gpu.count > 1 else ""
            return f"attempt {event.attempt} on {event.worker}: {several}{event.gpu.name}, engine {event.engine}{after}"
        case JobDataset(summary=found):
            return f"data set: {found.images} images, {found.captions} captions, sizes {', '.join(found.buckets)}"
        case JobPhase():
            return f"phase {event.phase}" + (f" ({event.total})" if event.total is not None else "")
        case JobProgress():
            return f"step {event.step}/{event.total_steps}  loss {event.loss:.4f}  {_pace(event)}  {money(event.usage)}"
        case JobCheckpoint():
            return f"checkpoint at step {event.step}: {event.path}"
        case JobSample():
            return f"sample at step {event.step}: {event.path}"
        case JobWarning():
            return f"warning: {event.message}"
        case JobReleased():
            return f"released after step {event.step} ({event.why}); back in the queue"
        case JobRetrying():
            where = "here, at once" if event.here else f"in {event.delay_seconds:.0f} s or later"
            return f"attempt {event.attempt} failed: {event.reason}: {event.message}; retried {where}"
        case JobDuplicate():
            return f"submitted again after it was {event.outcome}: nothing is trained"
        case JobRefused():
            return f"refused a submission of another job with this id, {event.digest[:12]}"
        case JobCompleted():
            return f"completed: {event.output_path}  {money(event.usage)}"
        case JobFailed():
            return "\n  ".join([f"failed: {event.reason}: {event.message}", *_faults(event), *event.output_tail[-5:]])
        case JobRejected():
            return "\n  ".join(["rejected:", *_faults(event)])
        case _:
            return event.TYPE.split(".")[2]


def describe_estimate(estimate: CostEstimate) -> str:
    """Describe an estimate in one line."""
    low, high = estimate.hours_range
    cost = "price unknown"
    if estimate.estimated_cost_usd is not None and estimate.cost_range_usd is not None:
        cheap, dear = estimate.cost_range_usd
        cost = f"{estimate.estimated_cost_usd:.2f} USD ({cheap:.2f}-{dear:.2f})"
    return (
        f"on an {estimate.card}: {estimate.peak_vram_gib:.1f} GiB, {estimate.training_hours:.2f} h "
        f"({low:.2f}-{high:.2f}), {estimate.steps_per_minute:.1f} steps/min, {cost}"
    )


def money(usage: Usage) -> str:
    """Format GPU-seconds and dollars."""
    cost = "price unknown" if usage.cost_usd is None else f"{usage.cost_usd:.4f} USD"
    return f"{usage.gpu_seconds:.1f} GPU-s  {cost}"


def _pace(event: JobProgress) -> str:
    if event.steps_per_minute is None or event.seconds_left is None:
        return "- steps/min"
    return f"{event.steps_per_minute:.1f} steps/min  {_duration(event.seconds_left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_change(change: SettingChange) -> str:
    """Describe a changed setting in one line."""
    return f"{change.setting} {change.after} instead of {change.before}, {change.why}"


def _faults(event: JobFailed | JobRejected) -> list[str]:
    return [f"{fault.path or 'message'}: {fault.reason}" for fault in event.faults]


class PlainView:
    """The plain view: a line for each event."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id

    def show(self, event: JobEvent) -> None:
        """Print the event."""
        print(f"{self._job_id}: {describe(event)}", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class LiveView:
    """The live view: past events as lines, and below them the present state, redrawn in place."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._state = JobState.SUBMITTED
        self._phase = Phase.STARTING
        self._progress: JobProgress | None = None

    def show(self, event: JobEvent) -> None:
        """Show one more event."""
        self._follow(event)
        match event:
            case JobPhase():
                self._phase = event.phase
            case JobProgress():
                self._progress = event
            case _:
                style = "bold" if isinstance(event, TERMINAL_EVENTS) else "dim"
                self._live.console.print(Text(f"{self._job_id}: {describe(event)}", style=style))
        self._live.update(self._render())

    def _follow(self, event: JobEvent) -> None:
        try:
            self._state = next_state(self._state, event)
        except IllegalTransitionError:
            # A view that was opened in the middle of a job's life adopts the state that the event reports.
            self._state = reported_state(event) or self._state

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        doing = f"{self._state}: {self._phase}" if self._state is JobState.PREPARING else str(self._state)
        table.add_row(Text(self._job_id, style="bold cyan"), Text(doing, style="yellow"))
        event = self._progress
        if event is None:
            return Group(table)
        table.add_row("step", Text(f"{event.step} of {event.total_steps}"))
        table.add_row("loss", Text(f"{event.loss:.4f}"))
        table.add_row("pace", Text(_pace(event)))
        table.add_row("cost so far", Text(money(event.usage)))
        return Group(table, ProgressBar(total=event.total_steps, completed=event.step, width=BAR_WIDTH))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()
