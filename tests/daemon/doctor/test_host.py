"""What doctor finds of a host and its weights, healthy and broken."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from training_worker.doctor import host, model_weights
from training_worker.doctor.findings import Finding, State
from training_worker.doctor.gpus import look_at_gpus
from training_worker.doctor.hub_token import find_token, token_path
from training_worker.gpu import nvml
from training_worker.gpu.nvml import DriverHangsError, Found
from training_worker.observations import Reading
from training_worker.settings import Settings

STAND_IN = "NVIDIA GeForce RTX 4090:24564MiB"
FLUX = "black-forest-labs/FLUX.1-dev"


def look(settings: Settings) -> dict[str, Finding]:
    found = [*host.check(settings, look_at_gpus(settings)), *model_weights.check(settings)]
    assert all(finding.state is State.OK or finding.fix for finding in found)
    return {finding.name: finding for finding in found}


def pipeline(folder: Path, *, ending: str = "safetensors") -> Path:
    """A folder as diffusers saves one, with two parts that have weights."""
    folder.mkdir()
    parts = {"transformer": ["diffusers", "X"], "vae": ["diffusers", "Y"], "image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"} | parts))
    for part in ("transformer", "vae"):
        (folder / part).mkdir()
        (folder / part / f"model.{ending}").write_bytes(b"x" * 100)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has no token of Hugging Face, and where it would be."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "models").mkdir()
    return Settings(
        gpus=[STAND_IN],
        state_dir=tmp_path / "state",
        output_roots=[tmp_path / "models"],
        models={FLUX: pipeline(tmp_path / "base")},
    )


def test_a_healthy_host_reports_what_it_has(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated GPUs are the one thing to report; folders that are not there yet are made later."""
    monkeypatch.setattr(host, "LEAST_MEMORY", 1)
    monkeypatch.setattr(host, "_synchronised", lambda: True)
    found = look(settings)

    assert {name for name, finding in found.items() if finding.state is not State.OK} == {"cards"}
    assert "GiB are free at" in found["disk.state"].found
    assert found[FLUX].found.startswith("FluxPipeline, ")


def test_a_host_without_gpus_is_reported_with_how_to_see_them(settings: Settings) -> None:
    """NVML shows none, and the settings make up none."""
    bare = Settings(state_dir=settings.state_dir, output_roots=settings.output_roots)

    found = look(bare)

    assert found["cards"].state is State.ERROR
    assert str(found["cards"].fix).startswith("nvidia-smi")
    assert found["models"].found == "no model is allowed"


class Driver:
    """Shows four GPUs, with the readings that the test gave it."""

    def __init__(self, **report: int) -> None:
        self.report = report

    def ask(self, question: object, _: float = 0) -> object:
        """In place of the real one."""
        uuids = [f"GPU-{letter}" for letter in "abcd"]
        if question is nvml.find:
            return [Found(uuid=uuid, name="NVIDIA L4", memory_mib=23034) for uuid in uuids]
        return {uuid: Reading(uuid=uuid, temperature_c=self.report.get(uuid[-1], 50)) for uuid in uuids}


def test_slots_are_reported_as_the_settings_make_them(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs that are left to somebody else are none of this worker's, hot as they may be."""
    monkeypatch.setattr(nvml, "ask", Driver(d=99).ask)
    chosen = msgspec.structs.replace(settings, only_gpus=["0", "GPU-b"], gpus_per_job=2)

    found = look(chosen)["cards"]

    assert (found.state, found.found) == (State.OK, "2 NVIDIA L4 together, each with 23034 MiB")


def test_a_gpu_that_would_get_no_jobs_is_reported_with_the_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the worker would report it."""
    monkeypatch.setattr(nvml, "ask", Driver(b=93).ask)

    found = look(settings)["cards"]

    assert found.state is State.ERROR
    assert found.found.endswith("; GPU-b gets no jobs: too hot: 93 C, over 92 C")


def test_a_driver_that_hangs_when_gpus_are_read_is_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each GPU that it does not answer for."""

    def ask(question: object, limit: float = 0) -> object:
        if question is nvml.find:
            return Driver().ask(question)
        raise DriverHangsError(f"the driver has not answered within {limit:g} s")

    monkeypatch.setattr(nvml, "ask", ask)

    found = look(settings)["cards"]

    assert found.state is State.ERROR
    assert found.found.count("gets no jobs: the driver has not answered within 20 s") == 4


def test_gpus_that_the_settings_name_in_vain_are_reported(settings: Settings) -> None:
    """The worker would not start; all else is looked at."""
    found = look(msgspec.structs.replace(settings, only_gpus=["7"]))

    assert found["cards"].state is State.ERROR
    assert found["cards"].found.startswith("cannot start: only_gpus names '7'")
    assert "gpus_per_job" in str(found["cards"].fix)
    assert "disk.state" in found


def test_a_disk_that_is_too_small_names_what_it_is_too_small_for(
    settings: Settings, small_disk: Callable[[Path, int], Path]
) -> None:
    """With what a usual job of each type needs."""
    small_disk(settings.output_roots[0], 64 * 2**20)

    found = look(settings)["disk.output0"]

    assert found.state is State.ERROR
    assert "FLUX_LORA (" in found.found
    assert str(found.fix).startswith("du ")


def test_an_output_root_that_is_a_file_cannot_be_written(settings: Settings) -> None:
    """With the command that makes the folder."""
    root = settings.output_roots[0]
    root.rmdir()
    root.touch()

    found = look(settings)["disk.output0"]

    assert found.state is State.ERROR
    assert found.fix == f"install -d -o training-worker -g training-worker {root}"


@pytest.mark.parametrize(
    ("now", "synchronised", "state"),
    [(0.0, True, State.ERROR), (2e9, False, State.WARNING), (2e9, None, State.OK), (2e9, True, State.OK)],
)
def test_a_clock_must_be_set(now: float, synchronised: bool | None, state: State) -> None:
    """Whether a time server keeps it is not known everywhere, and that is no fault."""
    assert host.clock(now, synchronised).state is state


def _gone(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def _no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _torn_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def _no_part(folder: Path) -> None:
    (folder / "vae").rename(folder.with_name("vae"))


def _pickled(folder: Path) -> None:
    (folder / "vae" / "model.safetensors").rename(folder / "vae" / "model.bin")


def _empty(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_gone, "is no folder"),
        (_no_index, "has no model_index.json"),
        (_torn_index, "model_index.json: Input data was truncated"),
        (_no_part, "lacks vae"),
        (_pickled, "pickles alone"),
        (_empty, "holds no weights"),
    ],
)
def test_weights_that_are_broken_are_reported_with_what_downloads_them(
    settings: Settings, harm: Callable[[Path], None], reason: str
) -> None:
    """The command that downloads them."""
    harm(settings.models[FLUX])

    found = look(settings)[FLUX]

    assert found.state is State.ERROR
    assert reason in found.found
    assert f"hf download {FLUX} --local-dir {settings.models[FLUX]}" in str(found.fix)


def test_weights_of_another_user_are_reported_with_chmod(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything: what the system answers is faked."""
    closed = settings.models[FLUX] / "vae" / "model.safetensors"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))

    found = look(settings)[FLUX]

    assert found.found == f"{closed} cannot be read by this user"
    assert str(found.fix).startswith("chmod -R a+rX ")


TERMS = f"https://huggingface.co/{FLUX}"
SECRET = "hf_abcdefghijk"


def written(path: Path, text: str = f"{SECRET}\n") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_gated_model_needs_a_token_first(settings: Settings, home: Path) -> None:
    """The commands stand in order, with where the terms are."""
    _gone(settings.models[FLUX])

    found = look(settings)[FLUX]

    assert f"this user has no token, in HF_TOKEN or {home}/.cache/huggingface/token" in found.found
    commands, _, remark = str(found.fix).partition("  # ")
    assert commands == f"hf auth login && hf download {FLUX} --local-dir {settings.models[FLUX]}"
    assert remark.endswith(TERMS)


def test_a_gated_model_with_a_token_needs_an_account_that_agreed(settings: Settings, home: Path) -> None:
    """Nobody here can know whether it did; the token is not printed."""
    _gone(settings.models[FLUX])
    path = written(home / ".cache" / "huggingface" / "token")

    found = look(settings)[FLUX]

    assert found.found.endswith(f"the model is gated, and a token is in {path}")
    assert str(found.fix).startswith("hf download ")
    assert "has not agreed to the terms" in str(found.fix)
    assert TERMS in str(found.fix)
    assert SECRET not in f"{found}"


def test_a_model_that_is_not_gated_needs_no_token(settings: Settings) -> None:
    """SDXL is one."""
    name = "stabilityai/stable-diffusion-xl-base-1.0"

    found = look(msgspec.structs.replace(settings, models={name: Path("/no/such")}))[name]

    assert found.fix == f"hf download {name} --local-dir /no/such"
    assert "token" not in found.found


def test_pickles_are_left_out_of_the_download(settings: Settings) -> None:
    """Before the remark, not in it."""
    _pickled(settings.models[FLUX])

    commands, _, remark = str(look(settings)[FLUX].fix).partition("  # ")

    assert commands.endswith("--exclude '*.bin' '*.ckpt' '*.pt' '*.pth'")
    assert remark.endswith(TERMS)


@pytest.mark.parametrize(
    ("variables", "file", "place"),
    [
        ({}, None, None),
        ({}, "home/.cache/huggingface/token", "home/.cache/huggingface/token"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/huggingface/token", "xdg/huggingface/token"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "home/.cache/huggingface/token", None),
        ({"HF_HOME": "{}/hub"}, "hub/token", "hub/token"),
        ({"HF_HOME": "~/hub"}, "home/hub/token", "home/hub/token"),
        ({"HF_HOME": "$HOME/hub"}, "home/hub/token", "home/hub/token"),
        ({"HF_HOME": "{}/hub", "HF_TOKEN_PATH": "{}/mine"}, "mine", "mine"),
        ({"HF_HOME": "{}/hub", "HF_TOKEN_PATH": "{}/mine"}, "hub/token", None),
        ({"HF_TOKEN": SECRET}, None, "HF_TOKEN"),
        ({"HF_TOKEN": SECRET}, "home/.cache/huggingface/token", "HF_TOKEN"),
        ({"HF_TOKEN": ""}, "home/.cache/huggingface/token", "home/.cache/huggingface/token"),
        ({"HF_TOKEN": " ", "HUGGING_FACE_HUB_TOKEN": SECRET}, None, None),
        ({"HUGGING_FACE_HUB_TOKEN": SECRET}, None, "HUGGING_FACE_HUB_TOKEN"),
    ],
)
def test_a_token_is_found_where_the_hubs_library_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], file: str | None, place: str | None
) -> None:
    """In the same order."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    if file is not None:
        written(tmp_path / file)

    found = find_token()

    assert found == (str(tmp_path / place) if place is not None and place == file else place)


@pytest.mark.trainer
def test_the_hubs_library_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the variables as it is imported: each place is tried in a process of its own."""
    path = written(tmp_path / "x" / "token")
    program = (
        "from huggingface_hub import constants, get_token; print(constants.HF_TOKEN_PATH, get_token() is not None)"
    )
    for variables in ({"HF_HOME": "$HOME/../x"}, {"HF_TOKEN_PATH": path}, {"HF_TOKEN": " "}, {"XDG_CACHE_HOME": "/y"}):
        with monkeypatch.context() as context:
            for name, value in variables.items():
                context.setenv(name, value)
            output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

            assert output.split() == [str(token_path()), str(find_token() is not None)]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_file_is_no_token(home: Path, text: str) -> None:
    """Nor one that cannot be read."""
    path = Path(written(home / ".cache" / "huggingface" / "token", text))
    assert find_token() is None

    path.unlink()
    path.mkdir()
    assert find_token() is None
