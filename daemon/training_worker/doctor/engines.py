"""The checks of the engines in the settings: whether each starts, and whether its environment is complete."""

import re
import shlex
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import msgspec

from training_schemas.jobs import EngineName, TrainingType
from training_worker.attempts.engine_selection import served_types
from training_worker.doctor.engine_probe import LIMIT, Probed, SeenGpu, Torch, Wanted, probe
from training_worker.doctor.engine_requirements import (
    COMMIT,
    ENVIRONMENTS,
    INVOKE,
    REPOSITORY,
    Environment,
    Requirement,
)
from training_worker.doctor.findings import Finding, State
from training_worker.doctor.gpus import HostGpus
from training_worker.gpu.devices import GpuDevice
from training_worker.runs.environment import bare_environment
from training_worker.settings import EngineSettings, Settings, program_of

GROUP = "engines"
SHORT = 7
# Seconds for an interpreter to report where it is.
START_LIMIT = 20.0
OWN = "/opt/invoke-training"
MOVES = {
    EngineName.DIFFUSERS: "[engines.diffusers] in the settings: leave it out, for the daemon's own environment",
    EngineName.INVOKE: f"python3 -m venv {OWN} && {OWN}/bin/python -m pip install "
    + " ".join(shlex.quote(one.specifier) for one in INVOKE.requirements)
    + f" && {OWN}/bin/python -m pip install --no-deps 'git+{REPOSITORY}@{COMMIT}'"
    + f'  # then [engines.invoke] python = "{OWN}/bin/python" in the settings',
}
# As in the names of architectures that torch was built for, such as sm_90 or compute_120.
ARCHITECTURE = re.compile(r"(?P<kind>sm|compute)_(?P<major>\d+)(?P<minor>\d)[a-z]?")


def check(settings: Settings, host: HostGpus, limit: float = LIMIT) -> Iterator[Finding]:
    """Check each engine, for ``limit`` seconds at most."""
    examinations = {name: Examination(name, engine, host.devices) for name, engine in settings.engines.items()}
    stray = _stray(examinations)
    for name, examination in examinations.items():
        yield from [examination.misplaced()] if name is stray else examination.findings(limit)
    yield _types(settings)


def _stray(examinations: dict[EngineName, "Examination"]) -> EngineName | None:
    """Return the engine whose interpreter is another engine's environment, if there is one."""
    folders = [examination.packages_folder() for examination in examinations.values()]
    known = [folder for folder in folders if folder is not None]
    if len(set(known)) == len(known):
        return None
    # The daemon's own environment is that of the built-in trainer.
    return EngineName.INVOKE if sysconfig.get_path("purelib") in known else EngineName.DIFFUSERS


def _types(settings: Settings) -> Finding:
    missing = [kind for kind in TrainingType if kind not in served_types(settings)]
    families = sorted({kind.family for kind in missing})
    if not missing:
        return Finding(group=GROUP, name="types", state=State.OK, found="every training type is served")
    return Finding(
        group=GROUP,
        name="types",
        state=State.WARNING,
        found=f"the built-in trainer is not to train {', '.join(missing)}: no {' or '.join(families)} job is consumed",
        fix=f"training_types of engines.{EngineName.DIFFUSERS} in the settings: add them, or leave the setting out",
    )


class Examination:
    """The check of one engine on a host with these GPUs; none if the host has none and the settings simulate none."""

    def __init__(self, name: EngineName, engine: EngineSettings, devices: list[GpuDevice]) -> None:
        self._name = name
        self._engine = engine
        self._devices = devices
        self._interpreter = engine.command[0]
        self._pip = f"{shlex.quote(self._interpreter)} -m pip install"

    def findings(self, limit: float) -> Iterator[Finding]:
        """Yield all findings about the engine."""
        path = shutil.which(self._interpreter, path=bare_environment().get("PATH"))
        if path is None:
            yield self._no_interpreter()
        elif self._environment is None:
            yield self._ok("interpreter", f"a program of your own, {shlex.join(self._engine.command)}: only found")
        else:
            yield from self._probed(path, self._environment, limit)

    def packages_folder(self) -> str | None:
        """Return the package folder of the interpreter; None if it is none, or a program of the operator's own."""
        path = shutil.which(self._interpreter, path=bare_environment().get("PATH"))
        if path is None or self._environment is None:
            return None
        try:
            return probe(path, Wanted(), START_LIMIT).answers.folder
        except OSError:
            return None

    def misplaced(self) -> Finding:
        """Report an interpreter shared with an engine that needs other versions: a fix for one would harm the other."""
        found = f"{self._interpreter} is the environment of another engine, which needs other versions"
        return self._error("interpreter", found, MOVES[self._name])

    @property
    def _environment(self) -> Environment | None:
        """Return what the engine needs, if it runs our own program."""
        ours = program_of(self._name, self._interpreter)
        return ENVIRONMENTS.get(self._name) if self._engine.command[: len(ours)] == ours else None

    def _probed(self, path: str, needs: Environment, limit: float) -> Iterator[Finding]:
        packages = tuple(one.name for one in needs.requirements)
        sources = (needs.source,) if needs.source else ()
        wanted = Wanted(packages=(*sources, *packages), source=needs.source, modules=(needs.module,))
        try:
            probed = probe(path, wanted, limit)
        except OSError as error:
            yield self._error("interpreter", f"{path} cannot be started: {error}", self._setting)
            return
        answers = probed.answers
        if answers.python is not None:
            yield self._ok("interpreter", f"Python {answers.python}, {path}")
        if answers.packages is not None:
            yield from self._packages(answers.packages, needs)
        if needs.source is not None and answers.packages is not None and answers.packages.get(needs.source):
            yield self._commit(answers.commit)
        if answers.torch is not None:
            yield self._torch(answers.torch)
        if answers.modules is not None:
            yield self._training(probed, needs.module)
        elif probed.fault is not None or answers.python is None:
            yield self._broken(probed, path, needs.module)

    def _no_interpreter(self) -> Finding:
        path = Path(self._interpreter)
        why = "is not executable" if path.is_file() else "is not there"
        return self._error("interpreter", f"{self._interpreter} {why}", self._setting)

    @property
    def _setting(self) -> str:
        return f'[engines.{self._name}] python = "/path/to/environment/bin/python" in the settings'

    def _packages(self, versions: dict[str, str | None], needs: Environment) -> Iterator[Finding]:
        if needs.source is not None:
            yield self._source(needs.source, versions.get(needs.source))
        for requirement in needs.requirements:
            yield self._package(requirement, versions.get(requirement.name))

    def _source(self, name: str, version: str | None) -> Finding:
        if version is None:
            return self._error(name, "not installed", self._install_source)
        return self._ok(name, version)

    @property
    def _install_source(self) -> str:
        return f"{self._pip} --no-deps 'git+{REPOSITORY}@{COMMIT}'"

    def _package(self, needed: Requirement, version: str | None) -> Finding:
        fix = f"{self._pip} {shlex.quote(needed.specifier)}"
        if version is None and needed.optional is not None:
            return self._warning(needed.name, f"not installed: needed for {needed.optional}", fix)
        if version is None:
            return self._error(needed.name, "not installed", fix)
        if not needed.allows(version):
            bounds = msgspec.structs.replace(needed, known=None).specifier
            return self._error(needed.name, f"{version}, where {bounds} is needed", fix)
        if needed.known not in (None, version):
            return self._warning(needed.name, f"{version}, tried with {needed.known} alone", fix)
        return self._ok(needed.name, version)

    def _commit(self, commit: str | None) -> Finding:
        if commit == COMMIT:
            return self._ok("commit", commit[:SHORT])
        found = "not known" if commit is None else commit[:SHORT]
        fix = self._install_source.replace("--no-deps", "--no-deps --force-reinstall")
        return self._warning("commit", f"{found}, tried with {COMMIT[:SHORT]} alone", fix)

    def _torch(self, torch: Torch) -> Finding:
        built = f"torch {torch.version} for CUDA {torch.cuda}"
        if torch.error is not None:
            return self._error("cuda", f"torch cannot be imported: {torch.error}", self._reinstall)
        if self._devices and all(device.simulated for device in self._devices):
            return self._ok("cuda", f"torch {torch.version}; trains on the CPU, because the GPUs are simulated")
        if torch.cuda is None:
            fix = f"{self._reinstall}  # built with CUDA"
            return self._error("cuda", f"torch {torch.version} is built without CUDA", fix)
        if not torch.devices:
            return self._error(
                "cuda", f"{built} finds no GPU", f"nvidia-smi  # the driver must support CUDA {torch.cuda}"
            )
        return self._seen_gpus(torch, built)

    @property
    def _reinstall(self) -> str:
        # Not with --force-reinstall, which also brings the newest version of all that torch itself needs.
        builds = "torch torchvision" if self._name is EngineName.INVOKE else "torch"
        return f"{self._pip.replace(' install', ' uninstall -y')} {builds} && {self._pip} {builds}"

    def _seen_gpus(self, torch: Torch, built: str) -> Finding:
        unfit = [device for device in torch.devices if not runs_on(device, torch.architectures)]
        if unfit:
            these = ", ".join(f"{device.name} ({device.capability[0]}.{device.capability[1]})" for device in unfit)
            return self._error("cuda", f"{built} has no code for {these}", self._reinstall)
        names = ", ".join(device.name for device in torch.devices)
        wanted = sum(device.count for device in self._devices)
        if len(torch.devices) < wanted:
            found = f"{built} sees {len(torch.devices)} of {wanted} GPUs: {names}"
            return self._error("cuda", found, "nvidia-smi -L  # the GPUs that the driver sees")
        return self._ok("cuda", f"{built}: {names}")

    def _training(self, probed: Probed, module: str) -> Finding:
        imported = (probed.answers.modules or {})[module]
        types = ", ".join(self._engine.training_types)
        if imported.error is None and probed.fault is None:
            return self._ok("training", f"{types}; {module} in {imported.seconds:.1f} s")
        why = imported.error or f"{probed.fault} at the end"
        return self._error("training", f"{types} cannot run: {module}: {why}", self._by_hand(module))

    def _broken(self, probed: Probed, path: str, module: str) -> Finding:
        """Report a probe that ended before its last answer."""
        answers = probed.answers
        if answers.python is None:
            name, doing = "interpreter", f"{path} does not start as Python"
        else:
            name, doing = "training", f"importing {'torch' if answers.torch is None else module}"
        output = f"\n{probed.output}" if probed.output else ""
        fix = self._setting if answers.python is None else self._by_hand(module)
        return self._error(name, f"{doing}: {probed.fault or 'no answer'}{output}", fix)

    def _by_hand(self, module: str) -> str:
        return f"{shlex.quote(self._interpreter)} -c 'import {module}'  # shows what is missing"

    def _ok(self, what: str, found: str) -> Finding:
        return Finding(group=GROUP, name=f"{self._name}.{what}", state=State.OK, found=found)

    def _warning(self, what: str, found: str, fix: str) -> Finding:
        return Finding(group=GROUP, name=f"{self._name}.{what}", state=State.WARNING, found=found, fix=fix)

    def _error(self, what: str, found: str, fix: str) -> Finding:
        return Finding(group=GROUP, name=f"{self._name}.{what}", state=State.ERROR, found=found, fix=fix)


def runs_on(device: SeenGpu, architectures: list[str]) -> bool:
    """Return whether a build has code for a GPU: compiled for its major version, or to be compiled by the driver."""
    matches = [match for match in map(ARCHITECTURE.fullmatch, architectures) if match]
    for match in matches:
        built = (int(match["major"]), int(match["minor"]))
        if built <= device.capability and (match["kind"] == "compute" or built[0] == device.capability[0]):
            return True
    return not matches
