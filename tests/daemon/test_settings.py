"""What an operator can set: a file, the environment over it, and errors that name the setting."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from training_schemas.jobs import EngineName, TrainingType
from training_worker import settings as settings_module
from training_worker.errors import SettingsError
from training_worker.settings import (
    DEFAULT_AMQP_URL,
    INVOKE_TRAINER,
    EngineSettings,
    Settings,
    default_engines,
    default_worker_id,
    load_settings,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its settings."""
    return tmp_path / "worker.toml"


def load(file: Path, text: str = "", **environment: str) -> Settings:
    """The settings of a file and of variables, named without their prefix."""
    file.write_text(text, "utf-8")
    return load_settings(file, {f"TRAINING_{name}": value for name, value in environment.items()})


def refusal(file: Path, text: str = "", **environment: str) -> str:
    """Why such settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load(file, text, **environment)
    return str(caught.value)


def test_without_a_file_and_without_variables_there_are_defaults(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """A broker on this host, the built-in engine, and no card made up."""
    monkeypatch.setattr(settings_module, "DEFAULT_FILE", file)

    settings = load_settings(None, {})

    assert settings == Settings()
    assert (settings.amqp_url, settings.prefix, settings.lease) == (DEFAULT_AMQP_URL, "training", 120)
    assert settings.engines.keys() == {EngineName.DIFFUSERS}
    assert (settings.gpus, settings.models, settings.prices) == ([], {}, {})


def test_the_default_file_is_read_where_it_exists(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Nobody has to name it."""
    monkeypatch.setattr(settings_module, "DEFAULT_FILE", file)
    file.write_text('prefix = "studio"')

    assert load_settings(None, {}).prefix == "studio"


def test_a_named_file_that_is_missing_is_an_error(file: Path) -> None:
    """Whoever names a file means it."""
    with pytest.raises(SettingsError, match=f"no such file: {re.escape(str(file))}"):
        load_settings(file, {})


def test_everything_can_be_set_in_the_file(file: Path) -> None:
    """Each kind of value has its form in TOML."""
    text = """
        worker_id = "gpu-7"
        amqp_url = "amqps://user@broker/vhost"
        prefix = "studio.eu"
        state_dir = "/srv/state"
        dataset_roots = ["/data/a", "/data/b"]
        output_roots = ["/out"]
        gpus = ["NVIDIA L4:23034MiB"]
        lease = 30
        grace = 5
        retry_delays = [1, 60]
        stall_preparing = 3600
        stall_training = 900.5
        max_isolation = 600.5
        stop_grace = 5
        metrics_port = 9100
        [models]
        "black-forest-labs/FLUX.1-dev" = "/models/flux"
        [prices]
        L4 = 0.5
        [engines.invoke]
        command = ["/opt/invoke/bin/python", "/opt/run.py"]
        training_types = ["SDXL_LORA"]
        standby = true
    """

    assert load(file, text) == Settings(
        worker_id="gpu-7",
        amqp_url="amqps://user@broker/vhost",
        prefix="studio.eu",
        state_dir=Path("/srv/state"),
        dataset_roots=[Path("/data/a"), Path("/data/b")],
        output_roots=[Path("/out")],
        gpus=["NVIDIA L4:23034MiB"],
        lease=30,
        grace=5,
        retry_delays=[1, 60],
        stall_preparing=3600,
        stall_training=900.5,
        max_isolation=600.5,
        stop_grace=5,
        metrics_port=9100,
        models={"black-forest-labs/FLUX.1-dev": Path("/models/flux")},
        prices={"L4": 0.5},
        engines=default_engines()
        | {
            EngineName.INVOKE: EngineSettings(
                command=["/opt/invoke/bin/python", "/opt/run.py"],
                training_types=[TrainingType.SDXL_LORA],
                standby=True,
            )
        },
    )


def test_an_interpreter_stands_for_the_command_of_our_own_program(file: Path) -> None:
    """invoke-training's comes beside the built-in engine; that one may have an environment of its own, too."""
    engines = load(file, 'engines.invoke.python = "/opt/invoke/bin/python"').engines
    own = load(file, 'engines.diffusers.python = "/opt/trainer/bin/python"').engines

    assert engines[EngineName.DIFFUSERS] == default_engines()[EngineName.DIFFUSERS]
    assert engines[EngineName.INVOKE].command == ["/opt/invoke/bin/python", str(INVOKE_TRAINER)]
    assert engines[EngineName.INVOKE].training_types == list(TrainingType)
    assert own.keys() == {EngineName.DIFFUSERS}
    assert own[EngineName.DIFFUSERS].command[0] == "/opt/trainer/bin/python"


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("WORKER_ID", "gpu-7", "gpu-7"),
        ("AMQP_URL", "amqp://user:pa=ss@broker/", "amqp://user:pa=ss@broker/"),
        ("STATE_DIR", "/srv/state", Path("/srv/state")),
        ("LEASE", "30", 30.0),
        ("MAX_ISOLATION", "600.5", 600.5),
        ("GRACE", "5", 5),
        ("RETRY_DELAYS", "[1, 60]", [1, 60]),
        ("STALL_PREPARING", "3600", 3600.0),
        ("STALL_TRAINING", "900.5", 900.5),
        ("METRICS_PORT", "9100", 9100),
        ("GPUS", '["a:1MiB", "b:2MiB"]', ["a:1MiB", "b:2MiB"]),
        ("GPUS", "[]", []),
        ("DATASET_ROOTS", '["/data"]', [Path("/data")]),
        ("MODELS", '{ "a/b" = "/models/b" }', {"a/b": Path("/models/b")}),
        ("PRICES", "{ L4 = 0.5, T4 = 1 }", {"L4": 0.5, "T4": 1.0}),
    ],
)
def test_every_kind_of_setting_can_be_set_in_the_environment(
    file: Path, variable: str, text: str, value: object
) -> None:
    """Text and numbers as they are, lists and tables as TOML."""
    assert getattr(load(file, **{variable: text}), variable.lower()) == value


def test_every_setting_has_a_variable(file: Path) -> None:
    """An unfit value is refused under each of the names: none is passed over."""
    for field in msgspec.structs.fields(Settings):
        assert refusal(file, **{field.name.upper(): "["})


def test_the_environment_wins_over_the_file(file: Path) -> None:
    """Each setting by itself; a list is replaced, not extended."""
    settings = load(file, 'prefix = "a"\nlease = 30\ngpus = ["a:1MiB"]', PREFIX="b", GPUS='["b:2MiB"]')

    assert (settings.prefix, settings.lease, settings.gpus) == ("b", 30.0, ["b:2MiB"])


def test_variables_that_are_no_settings_are_left_alone(file: Path) -> None:
    """The environment belongs to others, too."""
    file.write_text("")

    assert load_settings(file, {"TRAINING_DATA": "/x", "PREFIX": "x", "LEASE": "x"}) == Settings()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lease = 1", "lease"),
        ("lease = nan", "lease"),
        ("stop_grace = 0", "stop_grace"),
        ("grace = 0", "grace"),
        ("grace = 1.5", "grace"),
        ("grace = 86401", "grace"),
        ("retry_delays = []", "retry_delays"),
        ("retry_delays = [0]", "retry_delays"),
        ("retry_delays = 30", "retry_delays"),
        ("stall_preparing = 0", "stall_preparing"),
        ("stall_training = -1", "stall_training"),
        ("max_isolation = -1", "max_isolation"),
        ("metrics_port = 0", "metrics_port"),
        ("metrics_port = 65536", "metrics_port"),
        ('prefix = ""', "prefix"),
        ('prefix = "a b"', "prefix"),
        ('worker_id = "host.name"', "worker_id"),
        ("worker_id = 7", "worker_id"),
        ('amqp_url = "http://broker/"', "amqp_url"),
        ("state_dir = 7", "state_dir"),
        ('gpus = "L4:23034MiB"', "gpus"),
        ("prices = { L4 = -1 }", "prices"),
        ("models = { flux = 7 }", "models"),
        ("engines = { magic = {} }", "magic"),
        ('engines.invoke = { command = [], training_types = ["SDXL_LORA"] }', "command"),
        ("engines.invoke = { standby = true }", "engines.invoke: either `python` or `command`"),
        ('engines.invoke = { command = ["a"], python = "b" }', "engines.invoke: either `python` or `command`"),
        ('engines.invoke = { command = ["a"], training_types = [] }', "training_types"),
        ('engines.invoke = { command = ["a"], training_types = ["SD3"] }', "SD3"),
        ('unheard_of = "a"', "unheard_of"),
        ("lease = \n", "line 1"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(file: Path, text: str, named: str) -> None:
    """The operator is told where to look."""
    message = refusal(file, text)

    assert message.startswith("cannot read settings: ")
    assert named in message


@pytest.mark.parametrize(("variable", "text"), [("GPUS", "[1"), ("GPUS", "a:1MiB"), ("LEASE", "soon"), ("PREFIX", "")])
def test_a_wrong_variable_is_refused_by_its_name(file: Path, variable: str, text: str) -> None:
    """As it is in the file: with the name of the setting."""
    assert variable in refusal(file, **{variable: text}).upper()


def test_a_refusal_does_not_repeat_the_brokers_password(file: Path) -> None:
    """Refusals reach logs."""
    assert "secret" not in refusal(file, 'amqp_url = "amqp//user:secret@broker/"')


def test_bytes_that_are_no_text_are_refused(file: Path) -> None:
    """With the name of the file."""
    file.write_bytes(b'prefix = "\xff"')

    with pytest.raises(SettingsError, match=re.escape(str(file))):
        load_settings(file, {})


def test_the_brokers_address_can_be_a_secret_in_a_file(file: Path, tmp_path: Path) -> None:
    """As systemd credentials are; the line's end is no part of it."""
    secret = tmp_path / "amqp_url"
    secret.write_text("amqp://user:secret@broker/\n")

    assert load(file, AMQP_URL_FILE=str(secret)).amqp_url == "amqp://user:secret@broker/"


def test_a_secret_that_is_missing_is_an_error_that_names_it(file: Path, tmp_path: Path) -> None:
    """Not the default address instead."""
    message = refusal(file, f'amqp_url_file = "{tmp_path / "missing"}"')

    assert message.startswith("cannot read amqp_url_file: ")
    assert str(tmp_path / "missing") in message


@pytest.mark.parametrize("content", [b"", b"http://user:secret@broker/", b"amqp://\xff@secret/"])
def test_a_secret_that_is_no_address_is_refused_without_repeating_it(
    file: Path, tmp_path: Path, content: bytes
) -> None:
    """It is held to the same form as an address in the settings."""
    secret = tmp_path / "credential"
    secret.write_bytes(content)

    message = refusal(file, AMQP_URL_FILE=str(secret))

    assert "amqp_url_file" in message
    assert "secret" not in message


def test_the_hosts_name_makes_an_id_fit_for_a_routing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dots separate the words of a routing key; what is left over may be nothing."""
    ids: dict[str, Any] = {}
    for name in ("gpu7.studio.example", "-gpu_7-", "...", "g" * 200, "gpü7"):
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)
        ids[name] = default_worker_id()

    assert ids == {
        "gpu7.studio.example": "gpu7-studio-example",
        "-gpu_7-": "gpu_7",
        "...": "worker",
        "g" * 200: "g" * 128,
        "gpü7": "gp-7",
    }


def test_an_address_in_the_environment_counts_more_than_a_file_named_in_the_settings(file: Path) -> None:
    """Both say where the broker is; the environment is over the file."""
    file.write_text('amqp_url_file = "/no/such/file"')

    settings = load_settings(file, {"TRAINING_AMQP_URL": "amqp://here/"})

    assert settings.amqp_url == "amqp://here/"


def test_the_files_for_tls_come_into_the_address(tmp_path: Path) -> None:
    """As the AMQP library reads them, whatever the address had."""
    names = ("ca.pem", "cert.pem", "key.pem")
    for name in names:
        (tmp_path / name).touch()
    ca, cert, key = (str(tmp_path / name) for name in names)
    environ = {
        "TRAINING_AMQP_URL": "amqps://broker/?heartbeat=5",
        "TRAINING_AMQP_CA_FILE": ca,
        "TRAINING_AMQP_CERT_FILE": cert,
        "TRAINING_AMQP_KEY_FILE": key,
    }

    query = parse_qs(urlsplit(load_settings(None, environ).amqp_url).query)

    assert query == {"heartbeat": ["5"], "cafile": [ca], "certfile": [cert], "keyfile": [key]}


@pytest.mark.parametrize(
    ("url", "file", "reason"),
    [
        (
            "amqps://broker/",
            "/no/such.pem",
            "cannot read amqp_ca_file: /no/such.pem does not exist, or this user may not read it",
        ),
        ("amqp://broker/", "/etc/hosts", "amqp_ca_file: the broker's address does not begin with amqps://"),
    ],
)
def test_files_for_tls_that_do_not_help_are_refused(url: str, file: str, reason: str) -> None:
    """Without TLS they would do nothing; missing, each attempt would fail for no reason given."""
    with pytest.raises(SettingsError, match=re.escape(reason)):
        load_settings(None, {"TRAINING_AMQP_URL": url, "TRAINING_AMQP_CA_FILE": file})
