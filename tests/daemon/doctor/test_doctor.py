"""What doctor finds: in environments that are as they should be, and in each that is not."""

import json
import os
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from training_schemas.jobs import EngineName, TrainingType
from training_worker.doctor import engines
from training_worker.doctor.engine_probe import LAST_LINES, SeenGpu, Wanted, probe
from training_worker.doctor.engine_requirements import COMMIT, DIFFUSERS, INVOKE, Requirement
from training_worker.doctor.engines import Examination, runs_on
from training_worker.doctor.findings import Finding, State, has_error
from training_worker.doctor.gpus import HostGpus
from training_worker.gpu.devices import GpuDevice
from training_worker.settings import EngineSettings, Settings, program_of

ROOT = Path(__file__).parents[3]
VARIABLE = "INVOKE_TRAINING_PYTHON"
# Of a fake interpreter, which answers at once.
LIMIT = 20.0
MADE_UP, REAL = (
    GpuDevice(uuid="GPU-1", name="NVIDIA L4", memory_mib=23034, simulated=simulated, usd_per_hour=None)
    for simulated in (True, False)
)
CARDS = HostGpus(devices=[MADE_UP])


@pytest.fixture(autouse=True)
def _own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that is started finds the packages of this very checkout."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon")))


def script(folder: Path, text: str) -> str:
    """A program that stands in an interpreter's place."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def invoke_answers() -> dict[str, Any]:
    """What an environment says in which everything is as it should be."""
    versions = {one.name: one.known or one.least or "1.0" for one in INVOKE.requirements}
    seen = [{"name": "NVIDIA L4", "capability": [8, 9]}]
    return {
        "python": "3.11.2",
        "packages": versions | {"invoke-training": "0.0.1"},
        "commit": COMMIT,
        "torch": {"version": "2.13.0", "cuda": "12.6", "architectures": ["sm_80", "sm_90"], "devices": seen},
        "modules": {INVOKE.module: {"seconds": 6.0}},
    }


def answering(folder: Path, answers: dict[str, Any], then: str = "") -> str:
    """An interpreter that says this, and does something else at its end."""
    lines = "\n".join(json.dumps({name: value}) for name, value in answers.items())
    return script(folder, f"cat <<'END'\n{lines}\nEND\n{then}")


def look(
    interpreter: str, *devices: GpuDevice, engine: EngineName = EngineName.INVOKE, limit: float = LIMIT
) -> dict[str, Finding]:
    """What is found of an engine with this interpreter, by name without the engine's."""
    settings = EngineSettings(command=program_of(engine, interpreter))
    found = list(Examination(engine, settings, list(devices)).findings(limit))
    assert all(finding.state is State.OK or finding.fix for finding in found)
    names = [finding.name.removeprefix(f"{engine}.") for finding in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


def not_ok(found: dict[str, Finding]) -> dict[str, State]:
    """The names of what is not as it should be, with how bad it is."""
    return {name: finding.state for name, finding in found.items() if finding.state is not State.OK}


def test_an_environment_that_is_as_it_should_be_has_no_finding_but_ok(tmp_path: Path) -> None:
    """It says versions, the commit, the card and what can be trained."""
    found = look(answering(tmp_path, invoke_answers()), REAL)

    assert not_ok(found) == {}
    assert found["numpy"].found == "1.26.4"
    assert found["commit"].found == "99c673d"
    assert found["cuda"].found == "torch 2.13.0 for CUDA 12.6: NVIDIA L4"
    assert [kind for kind in TrainingType if kind not in found["training"].found] == []


@pytest.mark.trainer
def test_the_built_in_trainers_environment_is_as_it_should_be() -> None:
    """The one that these tests run in, for real."""
    found = look(sys.executable, MADE_UP, engine=EngineName.DIFFUSERS, limit=120)

    assert not_ok(found) == {}
    assert found["training"].found.startswith("FLUX_LORA, ")


@pytest.fixture(scope="session")
def invoke_python(missing: Callable[[str], NoReturn]) -> str:
    """An interpreter that has invoke-training."""
    return os.environ.get(VARIABLE) or missing(f"{VARIABLE} names no interpreter that has invoke-training")


@pytest.mark.invoke
def test_an_environment_of_invoke_training_is_as_it_should_be(invoke_python: str) -> None:
    """The one that is named for the tests, for real."""
    found = look(invoke_python, MADE_UP, limit=120)

    assert not_ok(found) == {}
    assert found["commit"].found == "99c673d"
    assert INVOKE.module in found["training"].found


def test_no_interpreter_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    """Whether nothing is there, or something that cannot be executed."""
    (tmp_path / "file").touch()

    absent, unfit = look(str(tmp_path / "none")), look(str(tmp_path / "file"))

    assert absent["interpreter"].found == f"{tmp_path}/none is not there"
    assert unfit["interpreter"].found == f"{tmp_path}/file is not executable"
    assert "[engines.invoke] python" in str(absent["interpreter"].fix)


def test_a_program_that_the_kernel_does_not_start_is_an_error(tmp_path: Path) -> None:
    """As where a script's own interpreter is gone."""
    (tmp_path / "python").write_text("#!/no/such/program\n")
    (tmp_path / "python").chmod(0o755)

    assert not_ok(look(str(tmp_path / "python"))) == {"interpreter": State.ERROR}


def test_a_trainer_of_the_operators_own_is_only_looked_for(tmp_path: Path) -> None:
    """Nobody here knows what it needs, and it is not started."""
    program = script(tmp_path, f"touch {tmp_path}/started")
    examination = Examination(EngineName.DIFFUSERS, EngineSettings(command=[program, "-m", "mine"]), [REAL])

    [finding] = examination.findings(LIMIT)

    assert finding.state is State.OK
    assert f"{program} -m mine" in finding.found
    assert not (tmp_path / "started").exists()


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """What it said before is told, what it did is named, and its last lines are shown."""
    answers = {name: invoke_answers()[name] for name in ("python", "packages", "commit")}
    then = f"echo loading >&2\nsleep 600 &\necho $! >{tmp_path}/pid\nwait"
    began = time.monotonic()

    found = look(answering(tmp_path, answers, then), REAL, limit=1.0)

    assert time.monotonic() - began < LIMIT
    assert not_ok(found) == {"training": State.ERROR}
    assert found["training"].found == "importing torch: no end after 1 s\nloading"
    assert found["interpreter"].state is State.OK
    assert is_gone(int((tmp_path / "pid").read_text()))


def is_gone(pid: int) -> bool:
    """Whether a process ends within `LIMIT`; what is not reaped yet has ended."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_one_that_crashes_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    """And says while importing what."""
    answers = {name: value for name, value in invoke_answers().items() if name != "modules"}
    lines = "\n".join(f"echo line {number} >&2" for number in range(20))

    found = look(answering(tmp_path, answers, f"{lines}\nkill -SEGV $$"), REAL)

    assert not_ok(found) == {"training": State.ERROR}
    head, *last = found["training"].found.splitlines()
    assert head == f"importing {INVOKE.module}: killed by SIGSEGV"
    assert last == [f"line {number}" for number in range(20 - LAST_LINES, 20)]
    assert found["cuda"].state is State.OK


@pytest.mark.parametrize("rubbish", ["hello", '{"python": 3}', "[1]", "{", ""])
def test_one_that_prints_rubbish_is_no_interpreter(tmp_path: Path, rubbish: str) -> None:
    """Any program can be named by mistake; what it prints is shown."""
    found = look(script(tmp_path, f"printf '%s\\n' '{rubbish}'" if rubbish else ":"), REAL)

    assert not_ok(found) == {"interpreter": State.ERROR}
    assert "does not start as Python" in found["interpreter"].found
    assert rubbish in found["interpreter"].found


def test_no_secret_reaches_an_engines_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given what a trainer is given."""
    monkeypatch.setenv("TRAINING_AMQP_URL", "amqp://user:hidden@broker/")

    found = look(script(tmp_path, "env >&2; exit 1"), REAL)

    assert "HF_HUB_OFFLINE=1" in found["interpreter"].found
    assert "hidden" not in found["interpreter"].found


@pytest.mark.parametrize(
    ("name", "version", "state", "fix"),
    [
        ("numpy", "2.1.0", State.ERROR, "install numpy==1.26.4"),
        ("numpy", "1.26.3", State.WARNING, "install numpy==1.26.4"),
        ("peft", "0.12.0", State.ERROR, "install peft==0.11.1"),
        ("diffusers", "0.36.0", State.WARNING, "install diffusers==0.33.0"),
        ("torch", None, State.ERROR, "install torch"),
        ("bitsandbytes", None, State.WARNING, "install bitsandbytes"),
        (
            "invoke-training",
            None,
            State.ERROR,
            f"--no-deps 'git+https://github.com/invoke-ai/invoke-training@{COMMIT}'",
        ),
    ],
)
def test_a_package_that_is_missing_or_of_another_version(
    tmp_path: Path, name: str, version: str | None, state: State, fix: str
) -> None:
    """An error where it cannot work, a warning where nobody knows or few need it, with the command that mends it."""
    answers = invoke_answers()
    answers["packages"][name] = version

    found = look(answering(tmp_path, answers), REAL)

    assert not_ok(found) == {name: state}
    assert str(found[name].fix).endswith(fix)
    assert str(found[name].fix).startswith(f"{tmp_path}/python -m pip install ")


@pytest.mark.parametrize("commit", [None, "0" * 40])
def test_another_commit_is_a_warning(tmp_path: Path, commit: str | None) -> None:
    """It may train as well; nobody has tried."""
    found = look(answering(tmp_path, invoke_answers() | {"commit": commit}), REAL)

    assert not_ok(found) == {"commit": State.WARNING}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cuda": None}, "built without CUDA"),
        ({"devices": []}, "finds no GPU"),
        ({"architectures": ["sm_90", "compute_90"]}, "has no code for NVIDIA L4 (8.9)"),
        ({"error": "ImportError: libcudart.so"}, "cannot be imported: ImportError: libcudart.so"),
    ],
)
def test_a_torch_that_cannot_train_on_the_card_is_an_error(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    """Else the first job would find out."""
    answers = invoke_answers()
    answers["torch"] |= changed

    found = look(answering(tmp_path, answers), REAL)

    assert not_ok(found) == {"cuda": State.ERROR}
    assert words in found["cuda"].found


def test_a_card_that_torch_does_not_see_is_an_error(tmp_path: Path) -> None:
    """The driver shows two, and torch one."""
    found = look(answering(tmp_path, invoke_answers()), REAL, REAL)

    assert found["cuda"].state is State.ERROR
    assert "sees 1 of 2 GPUs" in found["cuda"].found


def test_torch_without_cuda_is_all_that_a_made_up_card_needs(tmp_path: Path) -> None:
    """Training runs on the CPU there."""
    answers = invoke_answers()
    answers["torch"] |= {"cuda": None, "devices": []}

    assert not_ok(look(answering(tmp_path, answers), MADE_UP)) == {}
    assert not_ok(look(answering(tmp_path, answers))) == {"cuda": State.ERROR}


def test_a_module_that_cannot_be_imported_is_an_error(tmp_path: Path) -> None:
    """With the import to try by hand."""
    modules = {INVOKE.module: {"error": "ModuleNotFoundError: No module named 'einops'"}}

    found = look(answering(tmp_path, invoke_answers() | {"modules": modules}), REAL)

    assert not_ok(found) == {"training": State.ERROR}
    assert "No module named 'einops'" in found["training"].found
    assert f"-c 'import {INVOKE.module}'" in str(found["training"].fix)


@pytest.mark.parametrize(
    ("architectures", "fits"),
    [
        (["sm_80"], True),
        (["sm_86", "sm_89"], True),
        (["sm_90", "sm_120"], False),
        (["sm_75"], False),
        (["compute_75"], True),
        (["compute_120"], False),
        (["sm_90a"], False),
        ([], True),
    ],
)
def test_code_runs_on_later_cards_of_its_major_version(architectures: list[str], fits: bool) -> None:
    """And what the driver compiles, on all later ones; a build that says nothing is believed."""
    assert runs_on(SeenGpu(name="NVIDIA L4", capability=(8, 9)), architectures) is fits


def test_requirements_know_their_bounds() -> None:
    """By numbers, not letters; builds and pre-releases count for nothing."""
    needed = Requirement(name="a", least="2.9", below="3")

    versions = {"2.10": True, "2.9+cu126": True, "2.9.0rc1": True, "2.8.9": False, "3.0": False, "x": False}
    assert {version: needed.allows(version) for version in versions} == versions
    assert needed.specifier == "a>=2.9,<3"


def test_the_built_in_trainer_needs_what_our_package_says() -> None:
    """The extra `trainer` and the check are one list."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert {one.specifier for one in DIFFUSERS.requirements} == set(project["optional-dependencies"]["trainer"])


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an installed distribution called ``invoke-training`` describes itself."""
    folder = tmp_path / "site" / "invoke_training-0.0.1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: invoke-training\nVersion: 0.0.1\n")
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    return folder


def asked(*packages: str) -> tuple[dict[str, str | None] | None, str | None]:
    """Versions and the commit, from this interpreter."""
    probed = probe(sys.executable, Wanted(packages=packages, source="invoke-training"), LIMIT)
    assert probed.fault is None, probed.output
    return probed.answers.packages, probed.answers.commit


def test_the_commit_of_an_install_from_a_repository_is_as_pip_wrote_it(distribution: Path) -> None:
    """In `direct_url.json`."""
    origin = {"url": "https://example.org/a", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}
    (distribution / "direct_url.json").write_text(json.dumps(origin))

    assert asked("invoke-training", "no-such-thing") == ({"invoke-training": "0.0.1", "no-such-thing": None}, COMMIT)


def test_the_commit_of_an_editable_install_is_its_sources_now(distribution: Path, tmp_path: Path) -> None:
    """Not that of a repository which merely contains the folder."""
    source = tmp_path / "a source"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(source)]
    (source / "within").mkdir(parents=True)
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    origins = [{"url": folder.as_uri(), "dir_info": {"editable": True}} for folder in (source, source / "within")]

    found = []
    for origin in origins:
        (distribution / "direct_url.json").write_text(json.dumps(origin))
        found.append(asked()[1])

    assert found == [commit, None]


def test_an_install_that_does_not_say_where_it_is_from_has_no_commit(distribution: Path) -> None:
    """As one from an archive."""
    assert asked() == ({}, None)


def test_a_module_may_do_anything_when_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Print, or exit: the rest is told all the same."""
    (tmp_path / "torch.py").write_text("print('hello')\nraise ImportError('no torch here')\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    probed = probe(sys.executable, Wanted(modules=("exits", "json")), LIMIT)

    answers = probed.answers
    assert (answers.torch and answers.torch.error) == "ImportError: no torch here"
    assert {name: one.error for name, one in (answers.modules or {}).items()} == {
        "exits": "SystemExit: 0",
        "json": None,
    }
    assert probed.output.endswith("SystemExit: 0")
    assert probed.fault is None


def both(tmp_path: Path, folder: str) -> Settings:
    """A worker whose two engines have interpreters that say that their packages are in this folder."""
    (tmp_path / "invoke").mkdir()
    (tmp_path / "diffusers").mkdir()
    engines_ = {
        EngineName.DIFFUSERS: answering(tmp_path / "diffusers", {"python": "3.11.2", "folder": folder}),
        EngineName.INVOKE: answering(tmp_path / "invoke", {"folder": folder} | invoke_answers()),
    }
    return Settings(
        engines={name: EngineSettings(command=program_of(name, python)) for name, python in engines_.items()}
    )


def test_an_engine_in_the_daemons_own_environment_is_told_to_move(tmp_path: Path) -> None:
    """It is told no package to install: that would take the built-in trainer's away."""
    found = {one.name: one for one in engines.check(both(tmp_path, sysconfig.get_path("purelib")), CARDS, LIMIT)}

    assert [name for name in found if name.startswith("invoke.")] == ["invoke.interpreter"]
    moved = found["invoke.interpreter"]
    assert moved.state is State.ERROR
    assert "is the environment of another engine" in moved.found
    assert str(moved.fix).startswith("python3 -m venv /opt/invoke-training && /opt/invoke-training/bin/python -m pip ")
    assert "peft==0.11.1" in str(moved.fix)
    assert any(name.startswith("diffusers.") for name in found)


def test_the_built_in_trainer_in_invoke_trainings_environment_is_told_to_move(tmp_path: Path) -> None:
    """And the other is looked at as ever."""
    found = {one.name: one for one in engines.check(both(tmp_path, "/opt/invoke/site-packages"), CARDS, LIMIT)}

    assert [name for name in found if name.startswith("diffusers.")] == ["diffusers.interpreter"]
    assert "leave it out" in str(found["diffusers.interpreter"].fix)
    assert found["invoke.peft"].state is State.OK


def test_engines_in_environments_of_their_own_are_both_looked_at(tmp_path: Path) -> None:
    """As are a real interpreter and one that says nothing of where it is."""
    settings = both(tmp_path, "/opt/invoke/site-packages")
    answering(tmp_path / "diffusers", {"python": "3.11.2", "folder": "/another"})

    found = {one.name: one for one in engines.check(settings, CARDS, LIMIT)}

    assert found["diffusers.interpreter"].state is State.OK
    assert found["invoke.interpreter"].state is State.OK
    assert probe(sys.executable, Wanted(), LIMIT).answers.folder == sysconfig.get_path("purelib")


def test_training_types_without_an_engine_are_told(tmp_path: Path) -> None:
    """A queue holds jobs of all types of a family."""
    engine = EngineSettings(command=[script(tmp_path, ":")], training_types=[TrainingType.FLUX_LORA])

    found = list(engines.check(Settings(engines={EngineName.DIFFUSERS: engine}), CARDS))

    assert found[-1].state is State.WARNING
    assert found[-1].found.endswith("no sdxl job is consumed")
    assert not has_error(found)
