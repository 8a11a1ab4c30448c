"""The command line: what it prints, and an exit status that tells whose turn it is."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from training_presets.cards import catalogue
from training_presets.measurements import measurements
from training_presets.planner import plan_job
from training_presets.presets import presets
from training_worker.cli import main
from training_worker.cli.app import app
from training_worker.client.job_builder import flux_lora_job
from training_worker.doctor import checks, engines
from training_worker.version import __version__

ROOT = Path(__file__).parents[3]
JOB = flux_lora_job(job_id="a", dataset_path="/d", output_path="/o", lora_rank=4)


class Program:
    """``training-worker`` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.out = ""
        self.err = ""

    def run(self, *arguments: str) -> int:
        """The exit status; what was printed is kept."""
        self._monkeypatch.setattr(sys, "argv", ["training-worker", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        code = exit_.value.code
        assert isinstance(code, int | None)
        return code or 0


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program, on a wide screen and without settings of this machine."""
    for name in [name for name in os.environ if name.startswith("TRAINING_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    return Program(capsys, monkeypatch)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """A valid job in a file."""
    path = tmp_path / "job.json"
    path.write_bytes(msgspec.json.encode(JOB))
    return path


def test_presets_are_listed_for_programs(program: Program) -> None:
    """As JSON, with all that a preset sets."""
    assert program.run("presets", "--json") == 0

    assert json.loads(program.out) == [msgspec.to_builtins(preset) for preset in presets().values()]
    assert program.err == ""


def test_presets_are_listed_for_people(program: Program) -> None:
    """All ten, each with its tier, and what it needs."""
    assert program.run("presets") == 0

    assert [name for name in presets() if name not in program.out] == []
    assert re.search(r"flux_40gb_quality\W+FLUX_LORA\W+2\W+4\W+2000\W+32\W+none\W+40gb\W", program.out)


def test_a_plan_is_shown_for_programs(program: Program, job_file: Path) -> None:
    """The same that the intake makes of the job."""
    assert program.run("plan", str(job_file), "--json") == 0

    shown = json.loads(program.out)
    assert shown.pop("estimate")["memoryTier"] == plan_job(JOB).tier
    assert [one["tier"] for one in shown.pop("tiers")] == ["24gb", "40gb", "80gb"]
    assert shown == json.loads(msgspec.json.encode(plan_job(JOB)))


def test_a_plan_is_shown_for_people(program: Program, job_file: Path) -> None:
    """Type, preset and tier, and every setting."""
    assert program.run("plan", str(job_file)) == 0

    assert "FLUX_LORA, preset flux_24gb_balanced, GPUs of 24gb or more" in " ".join(program.out.split())
    assert re.search(r"loraRank\W+4\W", program.out)
    assert re.search(r"gradientAccumulationSteps\W+8\W", program.out)


def test_a_job_is_read_from_standard_input(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """For pipes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(msgspec.json.encode(JOB))))

    assert program.run("plan", "-", "--json") == 0

    assert json.loads(program.out)["preset"] == "flux_24gb_balanced"


@pytest.mark.parametrize("command", ["plan", "submit"])
def test_a_bad_job_ends_with_65_and_a_line_for_each_fault(program: Program, tmp_path: Path, command: str) -> None:
    """Each with the path of the field. Nothing is published: there is no broker to publish to."""
    bad: dict[str, Any] = msgspec.to_builtins(JOB) | {"loraRank": 0, "jobId": "a b", "unheardOf": 1}
    (tmp_path / "bad.json").write_text(json.dumps(bad))

    assert program.run(command, str(tmp_path / "bad.json")) == 65

    lines = program.err.splitlines()
    assert program.out == ""
    assert {line.split(": ")[0] for line in lines} == {"training-worker"}
    assert sorted(line.split(": ")[1] for line in lines) == ["jobId", "loraRank", "unheardOf"]


def test_faults_of_the_plan_are_reported_in_the_same_way(program: Program, tmp_path: Path) -> None:
    """A valid message can be a job that cannot be planned."""
    bad: dict[str, Any] = msgspec.to_builtins(JOB) | {"preset": "x", "gpuMemoryTier": "8gb"}
    (tmp_path / "bad.json").write_text(json.dumps(bad))

    assert program.run("plan", str(tmp_path / "bad.json")) == 65

    assert [line.split(": ")[1] for line in program.err.splitlines()] == ["preset", "gpuMemoryTier"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_job_at_all_ends_with_65_and_one_line(program: Program, tmp_path: Path, content: bytes) -> None:
    """Whatever the file holds."""
    (tmp_path / "bad.json").write_bytes(content)

    assert program.run("plan", str(tmp_path / "bad.json")) == 65

    assert len(program.err.splitlines()) == 1
    assert program.err.startswith("training-worker: message: ")


def test_a_file_that_cannot_be_read_ends_with_65_and_its_name(program: Program, tmp_path: Path) -> None:
    """Missing, or a folder."""
    assert program.run("plan", str(tmp_path / "missing.json")) == 65
    assert program.err == f"training-worker: {tmp_path / 'missing.json'}: No such file or directory\n"
    assert program.run("plan", str(tmp_path)) == 65
    assert program.err == f"training-worker: {tmp_path}: Is a directory\n"


@pytest.mark.parametrize(
    "arguments", [["submit", "FILE"], ["cancel", "a"], ["watch", "a"], ["pause", "all"], ["dead", "list"]]
)
def test_a_broker_that_is_away_ends_with_69_and_one_line(
    program: Program, job_file: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Trying again later may help; the password is not repeated."""
    monkeypatch.setenv("TRAINING_AMQP_URL", "amqp://user:secret@127.0.0.1:9/")

    assert program.run(*(str(job_file) if argument == "FILE" else argument for argument in arguments)) == 69

    lines = [line for line in program.err.splitlines() if line.startswith("training-worker: ")]
    assert len(lines) == 1
    assert "secret" not in program.err


def test_wrong_settings_end_with_78_and_one_line(program: Program, tmp_path: Path) -> None:
    """Starting the daemon again does not help: the operator must change something."""
    config = tmp_path / "worker.toml"
    assert program.run("run", "--config", str(config)) == 78
    assert program.err == f"training-worker: cannot read settings: no such file: {config}\n"

    config.write_text("lease = 0")
    assert program.run("run", "--config", str(config)) == 78
    assert len(program.err.splitlines()) == 1


def test_a_host_without_any_gpu_ends_with_78(tmp_path: Path) -> None:
    """In a process of its own, which is shown no driver: this machine may have one."""
    (tmp_path / "libnvidia-ml.so.1").touch()
    (tmp_path / "worker.toml").touch()
    path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRAINING_")}
    environment = inherited | {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(tmp_path)}
    command = [sys.executable, "-m", "training_worker", "run", "--config", str(tmp_path / "worker.toml")]

    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert ended.returncode == 78
    assert ended.stderr == "training-worker: cannot start: NVML shows no GPU, and the settings list none under `gpus`\n"


def test_a_mistyped_command_ends_with_2(program: Program) -> None:
    """As of every program."""
    assert program.run("pln") == 2
    assert "pln" in program.err


def test_the_program_prints_what_it_can_do(program: Program) -> None:
    """Every command is in the help."""
    assert program.run("--help") == 0

    assert [name for name in app.commands if name not in program.out] == []


def test_the_program_prints_its_version(program: Program) -> None:
    """For reports of bugs."""
    assert program.run("--version") == 0

    assert __version__ in program.out


LINE = (
    "plan --type FLUX_LORA --gpu RTX_4090 --resolution 512 --batch-size 1 --rank 4 --quantize nf4 --optimizer adamw8bit"
)
LINE += " --gradient-checkpointing --cache-text --cache-latents --steps 700"


def line(*more: str, gpu: str = "RTX 4090") -> list[str]:
    """The arguments of a plan from settings on the line."""
    return [gpu if argument == "RTX_4090" else argument for argument in LINE.split()] + list(more)


def test_settings_on_the_line_are_used_as_they_are(program: Program) -> None:
    """Memory by phase and part, time and price, as JSON."""
    assert program.run(*line("--json")) == 0

    answer = json.loads(program.out)
    assert answer["feasible"]
    assert 8 < answer["peakVramGiB"] < 11
    assert answer["breakdown"]["training"]["total"] == pytest.approx(
        sum(answer["breakdown"]["training"].values()) / 2, abs=0.01
    )
    assert answer["peakVramGiB"] == pytest.approx(
        max(phase["total"] for phase in answer["breakdown"].values()), abs=0.01
    )
    assert 0.4 < answer["secondsPerStep"] < 1.2
    assert answer["usd"] == pytest.approx(answer["hours"] * 0.60, abs=0.001)
    assert answer["changes"] == []


def test_what_does_not_fit_is_reported_with_both_figures(program: Program) -> None:
    """And is no error of the command."""
    arguments = [argument for argument in line("--json") if argument not in ("--quantize", "nf4")]

    assert program.run(*arguments) == 0
    answer = json.loads(program.out)
    assert not answer["feasible"]
    assert re.fullmatch(r"needs \d+\.\d GiB, and the GPU has 24\.0", answer["reason"])


def test_without_a_gpu_all_of_them_are_shown(program: Program) -> None:
    """A line each."""
    arguments = [argument for argument in line() if argument not in ("--gpu", "RTX 4090")]

    assert program.run(*arguments) == 0
    assert [gpu.name for gpu in catalogue().cards if gpu.name.split()[-1] not in program.out] == []


def test_an_unknown_gpu_is_refused_with_those_that_are_known(program: Program) -> None:
    """The status is that of wrong input."""
    assert program.run(*line(gpu="GTX 1080")) == 65
    assert "unknown GPU 'GTX 1080'; known: RTX 3060" in program.err


def test_a_jobs_plan_on_a_gpu_goes_down_the_ladder(program: Program, job_file: Path) -> None:
    """With what was changed."""
    assert program.run("plan", str(job_file), "--gpu", "A100 80GB", "--json") == 0

    assert json.loads(program.out)["gpu"] == "A100 80GB"


def test_a_plan_of_nothing_prints_what_it_can_plan(program: Program) -> None:
    """Rather than show help."""
    assert program.run("plan") == 65
    assert "name a job file, or --preset, or --type" in program.err


def test_the_models_are_held_against_published_figures(program: Program) -> None:
    """As JSON with a summary, and as a table for people."""
    assert program.run("plan", "--check", "--json") == 0
    found = json.loads(program.out)
    assert len(found["rows"]) == len(measurements())
    assert found["summary"]["memoryMedian"] <= 0.1

    assert program.run("plan", "--check") == 0
    assert "in the median" in program.out


def test_memory_is_drawn_over_resolution_and_batch(program: Program, tmp_path: Path) -> None:
    """As an image."""
    assert program.run(*line("--plot", str(tmp_path / "plot.png"))) == 0

    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_preset_is_planned_without_a_job(program: Program) -> None:
    """For its family's LoRA, or for the type that is named; on one GPU with its own memory."""
    assert program.run("plan", "--preset", "flux_40gb_quality", "--json") == 0
    assert json.loads(program.out)["parameters"]["loraRank"] == 32

    assert (
        program.run("plan", "--preset", "sdxl_quality", "--type", "SDXL_FINETUNE", "--gpu", "RTX 4090", "--json") == 0
    )
    assert json.loads(program.out)["settings"]["optimizer"] == "adafactor"

    assert program.run("plan", "--preset", "nonsense") == 65
    assert "unknown preset 'nonsense'; one of flux_24gb_aggressive" in program.err


def test_the_images_need_not_be_square(program: Program) -> None:
    """Both sides count; what is no size is refused."""
    peaks = []
    for size in ("768", "768x1024", "1024"):
        arguments = [size if argument == "512" else argument for argument in line("--json")]
        assert program.run(*arguments, "--batch-size", "4") == 0
        peaks.append(json.loads(program.out)["peakVramGiB"])

    assert peaks == sorted(set(peaks))
    for size in ("32", "512x", "4096", "large"):
        assert program.run(*[size if argument == "512" else argument for argument in line()]) == 2


def test_an_operators_prices_and_gpus_count(program: Program, tmp_path: Path) -> None:
    """From a worker's settings."""
    (tmp_path / "worker.toml").write_text(
        'prices = { "RTX 4090" = 36.0 }\n[[cards]]\nname = "XYZ 1"\nmemory_mib = 8192\n'
        "sustained_tflops = 10\nbandwidth_gbs = 100\nusd_per_hour = 0.5\n"
    )
    config = ("--config", str(tmp_path / "worker.toml"), "--json")

    assert program.run(*line(*config)) == 0
    answer = json.loads(program.out)
    assert answer["usd"] == pytest.approx(answer["hours"] * 36, rel=0.01)
    assert program.run(*line(*config, gpu="XYZ 1")) == 0
    answer = json.loads(program.out)
    assert not answer["feasible"]
    assert answer["usd"] == pytest.approx(answer["hours"] * 0.5, rel=0.01)


@pytest.fixture
def engine_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a worker whose one engine is a program of the operator's own, which is there; no more is seen."""
    monkeypatch.setattr(checks, "GROUPS", {engines.GROUP: engines.check})
    (tmp_path / "trainer").write_text("#!/bin/sh\n")
    (tmp_path / "trainer").chmod(0o755)
    file = tmp_path / "worker.toml"
    file.write_text(
        f'gpus = ["NVIDIA GeForce RTX 4090:24564MiB"]\n[engines.diffusers]\ncommand = ["{tmp_path}/trainer"]\n'
    )
    return file


def test_a_host_without_an_error_is_well(program: Program, engine_settings: Path) -> None:
    """Every finding is a line."""
    assert program.run("doctor", "--config", str(engine_settings)) == 0

    assert re.search(r"diffusers\.interpreter +ok +a program of your own", program.out)
    assert "fix:" not in program.out
    assert program.err == ""


def test_an_error_of_the_host_is_reported_with_what_fixes_it(
    program: Program, engine_settings: Path, tmp_path: Path
) -> None:
    """On a line of its own, whole, however narrow the screen; and the exit status shows it."""
    with engine_settings.open("a") as file:
        file.write(f'[engines.invoke]\npython = "{tmp_path}/{"far/" * 30}python"\n')

    assert program.run("doctor", "--config", str(engine_settings)) == 1

    found = program.out.splitlines()
    [number] = [number for number, line in enumerate(found) if re.search(r"invoke\.interpreter +error +", line)]
    assert found[number].endswith("far/python is not there")
    assert found[number + 1].lstrip().startswith("fix: [engines.invoke] python = ")


def test_findings_are_shown_for_programs(program: Program, engine_settings: Path, tmp_path: Path) -> None:
    """As a list, with the same exit status."""
    with engine_settings.open("a") as file:
        file.write(f'[engines.invoke]\npython = "{tmp_path}/none"\n')

    assert program.run("doctor", "--config", str(engine_settings), "--json") == 1

    findings = json.loads(program.out)
    assert [(one["group"], one["name"], one["state"]) for one in findings] == [
        ("engines", "diffusers.interpreter", "ok"),
        ("engines", "invoke.interpreter", "error"),
        ("engines", "types", "ok"),
    ]
    assert [name for name in ("found", "fix", "mend") if not findings[1][name]] == []
    assert program.err == ""


def test_what_an_engine_printed_cannot_steer_the_terminal(program: Program, engine_settings: Path) -> None:
    """Whatever it was."""
    python = engine_settings.with_name("python")
    python.write_text("#!/bin/sh\nprintf '\\033[2Jboo' >&2\nexit 7\n")
    python.chmod(0o755)
    with engine_settings.open("a") as file:
        file.write(f'[engines.invoke]\npython = "{python}"\n')

    assert program.run("doctor", "--config", str(engine_settings)) == 1

    assert "exit status 7" in program.out
    assert "boo" in program.out
    assert "\033[2J" not in program.out


def test_doctor_with_bad_settings_ends_with_78(program: Program, tmp_path: Path) -> None:
    """As every command that reads them."""
    (tmp_path / "worker.toml").write_text("lease = 0")

    assert program.run("doctor", "--config", str(tmp_path / "worker.toml")) == 78

    assert program.err.startswith("training-worker: cannot read settings: ")


def test_settings_are_checked_without_the_broker_s_address(program: Program, tmp_path: Path) -> None:
    """On a reload, where the credential that it is in cannot be read; nothing is run."""
    file = tmp_path / "worker.toml"
    good = 'amqp_url_file = "/nowhere"\ngpus = ["Stand-in:8192MiB"]\n'
    file.write_text(good)
    assert program.run("run", "--check", "--config", str(file)) == 0

    # A daemon that ended for this would leave its trainers alone.
    file.write_text(f"{good}gpus_per_job = 2")
    assert program.run("run", "--check", "--config", str(file)) == 78
    assert "gpus_per_job is 2, and 1 of Stand-in are not a multiple" in program.err

    file.write_text('lease = "soon"')
    assert program.run("run", "--check", "--config", str(file)) == 78
    assert "`$.lease`" in program.err


def test_settings_for_tls_are_checked_without_the_key(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is a credential, too: a reload does not fail for it. What is named in the settings is looked at."""
    monkeypatch.setenv("TRAINING_AMQP_URL_FILE", "/nowhere")
    monkeypatch.setenv("TRAINING_AMQP_KEY_FILE", "/nowhere")
    file, certificate = tmp_path / "worker.toml", tmp_path / "worker.pem"
    file.write_text(f'amqp_ca_file = "{certificate}"\namqp_cert_file = "{certificate}"\ngpus = ["A:8192MiB"]')
    certificate.touch()
    assert program.run("run", "--check", "--config", str(file)) == 0

    certificate.unlink()
    assert program.run("run", "--check", "--config", str(file)) == 78
    assert "cannot read amqp_ca_file" in program.err
