"""The documents describe what the code does."""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from training_presets import engines
from training_presets.ladder import MOST_ACCUMULATION
from training_schemas.events import EVENTS, JobDuplicate, JobEvent, JobPhase, decode_event
from training_schemas.jobs import TrainingJob
from training_schemas.progress import FailureReason, Phase
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_schemas.states import NEXT_STATES, TERMINAL_STATES, JobState, reported_state
from training_schemas.validation import decode_strictly
from training_worker.attempts.retry_policy import MOST_LOST, MOST_UNHEALTHY, POLICY
from training_worker.broker.names import Names
from training_worker.doctor.broker_policies import HARMS
from training_worker.doctor.engine_requirements import COMMIT, INVOKE, REPOSITORY
from training_worker.ownership.claim import Claim
from training_worker.ownership.ownership import Ownership

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "schemas" / "golden" / "events"


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a document in one language."""
    text = (ROOT / document).read_text()
    return [block.partition("```")[0] for block in text.split(f"```{language}\n")[1:]]


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir()))
def test_each_event_is_shown_as_it_is_on_the_wire(name: str) -> None:
    """docs/events.md has each golden event, whole; README names it."""
    shown = [json.loads(block) for block in blocks("docs/events.md", "json")]
    golden = json.loads((GOLDEN / name).read_bytes())

    assert golden in shown
    assert f"`{golden['type']}`" in (ROOT / "README.md").read_text()


def test_the_readmes_job_is_a_job() -> None:
    """What a reader copies is accepted."""
    job = decode_strictly(blocks("README.md", "json")[0].encode(), TrainingJob)

    assert job.job_id == "user_portrait"


def test_the_readmes_event_is_the_golden_one() -> None:
    """The example is not invented."""
    golden = json.loads((GOLDEN / "training.job.progress.v1.json").read_bytes())

    assert json.loads(blocks("README.md", "json")[1]) == golden


def test_the_readmes_python_makes_a_job() -> None:
    """The lines up to the broker run as they stand."""
    code = blocks("README.md", "python")[0].partition("api =")[0]
    names: dict[str, object] = {}

    exec(code, names)

    assert isinstance(names["job"], TrainingJob)


def test_every_setting_of_the_trainer_is_documented() -> None:
    """docs/trainer.md has a row for each parameter."""
    text = (ROOT / "docs" / "trainer.md").read_text()

    for parameters in (FluxLoraParameters, SdxlParameters):
        assert [name for name in parameters.__struct_encode_fields__ if f"`{name}`" not in text] == []


def rows(document: str, first_column: str) -> list[list[str]]:
    """The cells of a document's table, without the marks of code."""
    _, _, table = (ROOT / document).read_text().partition(f"| {first_column} |")
    lines = table.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def in_order(states: Iterable[str]) -> list[str]:
    """In an order that does not depend on how they are written."""
    return sorted(states)


def test_the_table_of_states_is_the_codes() -> None:
    """A row for each state in the enum's order, and in each what may follow; none is left out or invented."""
    documented = [(state, in_order(following.split())) for state, _, following in rows("docs/states.md", "state")]

    assert documented == [(state, in_order(NEXT_STATES[state])) for state in JobState]


def test_the_table_of_states_names_the_events_that_report_them() -> None:
    """All variants of the golden events are tried."""
    documented = {state: set(reported_by.split()) for state, reported_by, _ in rows("docs/states.md", "state")}
    reporting: dict[str, set[str]] = {state: set() for state in JobState}
    for event in variants():
        if (state := reported_state(event)) is not None:
            reporting[state].add(event.TYPE.split(".")[2])

    assert documented == reporting


def variants() -> Iterator[JobEvent]:
    """Each event of a job, and each phase and outcome that it can report."""
    for kind in EVENTS:
        match decode_event((GOLDEN / f"{kind}.json").read_bytes()).read():
            case JobPhase() as event:
                yield from (msgspec.structs.replace(event, phase=phase) for phase in Phase)
            case JobDuplicate() as event:
                outcomes = get_args(JobDuplicate.__annotations__["outcome"])
                yield from (msgspec.structs.replace(event, outcome=outcome) for outcome in outcomes)
            case JobEvent() as event:
                yield event


def test_the_terminal_states_are_named() -> None:
    """In one sentence, in the enum's order."""
    *most, last = [f"`{state}`" for state in JobState if state in TERMINAL_STATES]

    assert f"{', '.join(most)} and {last} are terminal" in (ROOT / "docs" / "states.md").read_text()


def test_the_table_of_reasons_is_the_policy() -> None:
    """A row for each reason in the enum's order, with its rule; none is left out or invented."""
    policy = [[reason, POLICY[reason].action, "yes" if POLICY[reason].counts else "no"] for reason in FailureReason]

    assert rows("docs/states.md", "reason") == policy


def test_the_diagram_of_states_shows_only_what_is_possible() -> None:
    """Each arrow between two states is in the table."""
    arrows = [line.split(" --> ") for line in blocks("docs/states.md", "mermaid")[0].splitlines() if "-->" in line]
    between = [(JobState(start.strip()), JobState(end)) for start, end in arrows if "[*]" not in (start.strip(), end)]

    assert [(start, end) for start, end in between if end not in NEXT_STATES[start]] == []
    assert {state for arrow in between for state in arrow} == set(JobState)


def test_the_limits_of_the_policy_are_documented() -> None:
    """The figures in the text are those of the code."""
    text = " ".join((ROOT / "docs" / "states.md").read_text().split())

    assert f"After {MOST_LOST} such attempts" in text
    assert f"After {MOST_UNHEALTHY} such attempts" in text
    assert f"Accumulation ends at {MOST_ACCUMULATION}" in text


def steps_in(document: str, heading: str) -> list[str]:
    """The functions that the first column of the table below a heading names, in its order."""
    table = (ROOT / document).read_text().partition(heading)[2].partition("\n|---|---|\n")[2].partition("\n\n")[0]
    cells = [line.split("|")[1].strip() for line in table.splitlines()]
    return [cell.strip("`") for cell in cells if cell.startswith("`")]


def calls_in(function: Callable[..., object]) -> list[str]:
    """The names of what a function's source calls, in its order, each where it is called last."""
    names = re.findall(r"\.(\w+)\(", inspect.getsource(function))
    return list(dict.fromkeys(reversed(names)))[::-1]


def test_the_claims_steps_are_documented_in_their_order() -> None:
    """docs/protocol.md has each step, where it is done."""
    inner = calls_in(Claim._lock_and_announce)
    steps = [step for call in calls_in(Claim.make) for step in (inner if call == "_lock_and_announce" else [call])]

    documented = steps_in("docs/protocol.md", "**Claim**")
    assert documented == [step for step in steps if step in documented]
    public = {name for name, _ in inspect.getmembers(Claim, inspect.iscoroutinefunction) if not name.startswith("_")}
    # Ends of the two short ways out, described in the text below the table.
    assert public - set(documented) == {"make", "close", "step_back"}


def test_the_steps_of_a_release_are_documented_in_their_order() -> None:
    """Their order is what keeps a released job from being lost."""
    documented = steps_in("docs/protocol.md", "(`Ownership.give_back`)")

    assert documented == [call for call in calls_in(Ownership.give_back) if call in documented]
    assert len(documented) == 5


def test_every_name_on_the_broker_is_documented() -> None:
    """docs/protocol.md's table has a row for each."""
    names = Names("training")
    text = (ROOT / "docs" / "protocol.md").read_text()
    fixed = [getattr(names, name) for name, kind in vars(Names).items() if isinstance(kind, property)]

    assert [name for name in fixed if f"`{name}`" not in text] == []
    for name in (names.lease("<job>"), names.owner("<job>"), f"{names.retry}.<seconds>"):
        assert f"`{name}`" in text


def test_invoke_training_is_installed_as_doctor_wants_it() -> None:
    """What a reader copies from docs/invoke.md has every distribution, in the version that is known to work."""
    arguments = blocks("docs/invoke.md", "sh")[0].split()

    versions = {argument.partition("==")[0]: argument.partition("==")[2] for argument in arguments}
    assert [one.name for one in INVOKE.requirements if one.name not in versions] == []
    assert {one.name: one.known for one in INVOKE.requirements if one.known}.items() <= versions.items()
    assert f"'git+{REPOSITORY}@{COMMIT}'" in arguments


def documented_shortcomings() -> set[str]:
    """The settings in the table of what invoke-training cannot do, but for those of a job alone."""
    return {setting for setting, *_ in rows("docs/invoke.md", "setting | for")} - {"gpuCount", "gpuMemoryTier"}


def test_every_setting_has_its_name_in_invoke_training() -> None:
    """Each parameter is in the table of what it becomes, or in that of what invoke-training cannot do."""
    documented = {name for names, *_ in rows("docs/invoke.md", "setting") for name in names.split(", ")}
    settings = {name for kind in (FluxLoraParameters, SdxlParameters) for name in kind.__struct_encode_fields__}

    assert documented | documented_shortcomings() == settings


def test_every_shortcoming_of_invoke_trainings_is_documented() -> None:
    """What the code looks for is in the table, and nothing else is."""
    names: dict[str, str] = {}
    for kind in (FluxLoraParameters, SdxlParameters):
        names |= dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))
    looked_for = set(re.findall(r'yield "(\w+)"', inspect.getsource(engines)))

    assert documented_shortcomings() == {names[name] for name in looked_for}


def test_what_the_sandbox_leaves_open_is_explained() -> None:
    """docs/systemd.md has a reason for each line of systemd's table that is not ticked, and for no other."""
    table = blocks("docs/systemd.md", "text")[1]
    left_open = [line.split()[1] for line in table.splitlines() if line.startswith("✗")]

    _, _, reasons = (ROOT / "docs" / "systemd.md").read_text().partition("| line | |\n|---|---|\n")
    explained = re.findall(r"^\| `(.*?)` \|", reasons.partition("\n\n")[0], re.MULTILINE)
    assert [line.replace("\\|", "|") for line in explained] == left_open


def test_the_policies_that_do_harm_are_those_that_doctor_knows() -> None:
    """Each key has its row, and no other."""
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.partition("| key | on | what it does |")[2].partition("\n\n")[0]
    keys = {key for row in table.splitlines()[2:] for key in re.findall(r"`([a-z-]+)`", row.split("|")[1])}

    assert keys - {"reject-publish"} == {harm.key for harm in HARMS}
