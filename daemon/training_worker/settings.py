"""The settings of a worker: a TOML file, and over it the environment.

Each setting ``name`` can be given as ``TRAINING_NAME`` in the environment: text as it is, everything else as a TOML
value. Settings are read once, by the command line, and passed in.
"""

import os
import re
import socket
import sys
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from msgspec import Meta, field

from training_presets.cards import CardSpec
from training_schemas.jobs import EngineName, GpuCount, TrainingType
from training_worker.errors import SettingsError

DEFAULT_FILE = Path("/etc/training-worker/worker.toml")
# Not imported: it runs in environments that have none of our other modules.
INVOKE_TRAINER = Path(__file__).parent / "engines" / "invoke"
DEFAULT_AMQP_URL = "amqp://guest:guest@127.0.0.1:5672/"
AMQP_URL = "^amqps?://"
MANAGEMENT_URL = "^https?://"
ENVIRONMENT_PREFIX = "TRAINING_"


def default_worker_id() -> str:
    """Return the host's name, made fit for a routing key."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()).strip("-_")[:128] or "worker"


class SelfTestMode(StrEnum):
    """Whose kernels are tested when the worker starts."""

    GPUS = "gpus"
    """Those of each real GPU; a simulated one has none."""
    CPU = "cpu"
    """Those of the CPU in place of every GPU, with small shapes: to try a worker without a GPU."""
    OFF = "off"


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of an engine: how its trainer is started and what it can train.

    The run folder is added to ``command`` as its last argument.
    ``python``, the interpreter of an environment that has the engine's libraries, stands for the command that runs our
    own program for it. With ``standby``, a trainer waits on each idle GPU with its libraries loaded; the command must
    support that.
    """

    command: Annotated[list[str], Meta(min_length=1)] = []
    python: Annotated[str, Meta(min_length=1)] | None = None
    training_types: Annotated[list[TrainingType], Meta(min_length=1)] = field(
        default_factory=lambda: list(TrainingType)
    )
    standby: bool = False


def program_of(engine: EngineName, python: str) -> list[str]:
    """Return the command of our own program for an engine, in the environment of an interpreter."""
    if engine is EngineName.INVOKE:
        return [python, str(INVOKE_TRAINER)]
    return [python, "-m", "training_worker.engines.diffusers"]


def default_engines() -> dict[EngineName, EngineSettings]:
    """Return the built-in trainer, in the daemon's own environment."""
    return {EngineName.DIFFUSERS: EngineSettings(command=program_of(EngineName.DIFFUSERS, sys.executable))}


Seconds = Annotated[float, Meta(gt=0)]
Delay = Annotated[int, Meta(ge=1, le=86_400)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an operator can set. Times are seconds.

    With ``amqps://``, ``amqp_ca_file`` holds the authorities that may vouch for the broker, and ``amqp_cert_file`` with
    ``amqp_key_file`` identify the worker. ``gpus`` stands in where there is no GPU, as ``"NVIDIA GeForce RTX
    4090:24564MiB"``. ``only_gpus`` are the GPUs to use, by UUID or by index; without it, all. With ``gpus_per_job``
    above 1, that many equal GPUs serve together the jobs that ask for as many, and no others. ``management_url`` is the
    broker's management API, which only doctor asks, and only if it is given. ``models`` is the allow-list: the name
    that a job uses, and the pipeline folder on this host. ``prices`` are US dollars an hour by a part of a GPU's name,
    and ``cards`` are kinds of GPUs that the catalogue lacks or lists differently. ``lease`` is how long a job stays
    with a worker that is gone, and ``grace`` how much longer it waits for that worker afterwards; ``max_isolation`` is
    how long a trainer continues alone, and ``stop_grace`` how long it may take to stop. ``retry_delays`` are how long a
    failed job waits before its second attempt, its third, and so on. A trainer that records nothing new for
    ``stall_preparing``, or while it trains for ``stall_training``, counts as stalled. What the encoders make of images
    and captions is kept for other jobs, up to ``cache_limit`` GiB. What nobody will ask for any more is removed after
    ``keep_days``, and what ended jobs left beyond ``keep_limit`` GiB, the oldest first. Without ``metrics_port`` no
    metrics are served. GPUs are read every ``card_check_interval``, for at most ``driver_timeout``; one that is hotter
    than ``hottest_card`` degrees Celsius, or otherwise unhealthy, gets no jobs until ``healthy_probes`` readings in a
    row are good. A heartbeat is published every ``heartbeat``. What ``self_test`` names is tested before its first job,
    and again when its driver or its libraries have changed.
    """

    worker_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")] = field(
        default_factory=default_worker_id
    )
    amqp_url: Annotated[str, Meta(pattern=AMQP_URL)] = DEFAULT_AMQP_URL
    amqp_url_file: str | None = None
    amqp_ca_file: Path | None = None
    amqp_cert_file: Path | None = None
    amqp_key_file: Path | None = None
    management_url: Annotated[str, Meta(pattern=MANAGEMENT_URL)] | None = None
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")] = "training"
    state_dir: Path = Path("/var/lib/training-worker")
    dataset_roots: list[Path] = field(default_factory=lambda: [Path("/datasets")])
    output_roots: list[Path] = field(default_factory=lambda: [Path("/models")])
    models: dict[str, Path] = {}
    gpus: list[str] = []
    only_gpus: list[str] = []
    gpus_per_job: GpuCount = 1
    prices: dict[str, Annotated[float, Meta(ge=0)]] = {}
    cards: list[CardSpec] = []
    engines: dict[EngineName, EngineSettings] = field(default_factory=default_engines)
    lease: Annotated[float, Meta(ge=2)] = 120
    grace: Delay = 30
    retry_delays: Annotated[list[Delay], Meta(min_length=1)] = field(default_factory=lambda: [30, 120, 600])
    stall_preparing: Seconds = 1800
    stall_training: Seconds = 600
    max_isolation: Seconds = 1800
    stop_grace: Seconds = 60
    cache_limit: Annotated[float, Meta(ge=0)] = 20
    card_check_interval: Seconds = 15
    driver_timeout: Seconds = 20
    hottest_card: Annotated[float, Meta(gt=0)] = 92
    healthy_probes: Annotated[int, Meta(ge=1)] = 3
    heartbeat: Seconds = 30
    self_test: SelfTestMode = SelfTestMode.GPUS
    keep_days: Annotated[float, Meta(ge=1)] = 14
    keep_limit: Annotated[float, Meta(ge=0)] = 100
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Meta(ge=1, le=65535)] | None = None


def load_settings(file: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read the settings. Without ``file``, the default one where it exists. Raises `SettingsError`."""
    table = _merge(_read_file(file), _read_environment(environ))
    try:
        settings = msgspec.convert(table, Settings, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"cannot read settings: {error}") from None
    # An engine that the settings name is added to the built-in one, or replaces it.
    given = {name: _resolved(name, engine) for name, engine in settings.engines.items()}
    settings = msgspec.structs.replace(settings, engines=default_engines() | given)
    if settings.amqp_url_file is not None:
        settings = msgspec.structs.replace(settings, amqp_url=_url_of(settings.amqp_url_file))
    return msgspec.structs.replace(settings, amqp_url=with_certificates(settings))


def _url_of(file: str) -> str:
    try:
        url = Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read amqp_url_file: {error}") from None
    if not re.match(AMQP_URL, url):
        raise SettingsError("cannot read amqp_url_file: its content is no address amqp:// or amqps://")
    return url


def with_certificates(settings: Settings) -> str:
    """Return the broker's address with the files for TLS, as the AMQP library expects them. Raises `SettingsError`."""
    files = {
        "cafile": ("amqp_ca_file", settings.amqp_ca_file),
        "certfile": ("amqp_cert_file", settings.amqp_cert_file),
        "keyfile": ("amqp_key_file", settings.amqp_key_file),
    }
    given = {key: (name, path) for key, (name, path) in files.items() if path is not None}
    if given and not settings.amqp_url.startswith("amqps://"):
        names = ", ".join(name for name, _ in given.values())
        raise SettingsError(f"cannot read settings: {names}: the broker's address does not begin with amqps://")
    for name, path in given.values():
        # Checked now: the library would fail on each of its attempts, and not name the file.
        if not os.access(path, os.R_OK):
            raise SettingsError(f"cannot read {name}: {path} does not exist, or this user may not read it")
    query = urlencode({key: str(path) for key, (_, path) in given.items()})
    joint = "&" if "?" in settings.amqp_url else "?"
    return f"{settings.amqp_url}{joint}{query}" if query else settings.amqp_url


def _resolved(name: EngineName, engine: EngineSettings) -> EngineSettings:
    if (engine.python is None) == (not engine.command):
        raise SettingsError(f"cannot read settings: engines.{name}: either `python` or `command` is needed")
    if engine.python is None:
        return engine
    return msgspec.structs.replace(engine, command=program_of(name, engine.python))


def _merge(file: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    # Both settings give the address: one in the environment takes precedence over a file named in the settings file.
    if "amqp_url" in environment:
        file.pop("amqp_url_file", None)
    return file | environment


def _path(kind: type, value: Any) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise TypeError(f"expected a path, got {value!r}")
    return Path(value)


def _read_file(file: Path | None) -> dict[str, Any]:
    path = file or DEFAULT_FILE
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if file is None:
            return {}
        raise SettingsError(f"cannot read settings: no such file: {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read settings: {path}: {error}") from None


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    fields = {f"{ENVIRONMENT_PREFIX}{item.name.upper()}": item for item in msgspec.structs.fields(Settings)}
    return {fields[key].name: _environment_value(key, value) for key, value in environ.items() if key in fields}


def _environment_value(key: str, value: str) -> Any:
    if not value.startswith(("[", "{")):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"cannot read settings: environment variable {key}: {error}") from None
