"""The contents that an engine's environment needs: distributions, and the versions that are needed or known to work."""

import re

import msgspec

from training_schemas.jobs import EngineName

COMMIT = "99c673d0e453e1b5cfb2ed38959572867ed3ed22"
REPOSITORY = "https://github.com/invoke-ai/invoke-training"


class Requirement(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution: from version ``least`` on and before ``below``. Versions other than ``known`` are untested.

    ``optional`` names what needs the distribution, if only some jobs do.
    """

    name: str
    least: str | None = None
    below: str | None = None
    known: str | None = None
    optional: str | None = None

    @property
    def specifier(self) -> str:
        """Return the requirement as pip reads it: the version known to work, or else the bounds."""
        if self.known is not None:
            return f"{self.name}=={self.known}"
        bounds = [f"{sign}{version}" for sign, version in ((">=", self.least), ("<", self.below)) if version]
        return f"{self.name}{','.join(bounds)}"

    def allows(self, version: str) -> bool:
        """Return whether a version is within the bounds."""
        number = _number(version)
        too_old = self.least is not None and number < _number(self.least)
        too_new = self.below is not None and number >= _number(self.below)
        return not (too_old or too_new)


def _number(version: str) -> tuple[int, ...]:
    """Return the release's digits; what follows them (a build, a pre-release) is ignored."""
    found = re.match(r"\d+(\.\d+)*", version)
    digits = [int(part) for part in found[0].split(".")] if found else []
    while digits and digits[-1] == 0:
        digits.pop()
    return tuple(digits)


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The needs of an engine: distributions, the module that loads all that trains, and a source at a commit."""

    requirements: tuple[Requirement, ...]
    module: str
    source: str | None = None


# The same versions as in the extra `trainer` of our own package.
DIFFUSERS = Environment(
    requirements=(
        Requirement(name="torch", least="2.6"),
        Requirement(name="diffusers", least="0.35"),
        Requirement(name="transformers", least="4.49", below="5.24"),
        Requirement(name="peft", least="0.15"),
        Requirement(name="accelerate", least="1.6"),
        Requirement(name="safetensors", least="0.5"),
        Requirement(name="bitsandbytes", least="0.47"),
        Requirement(name="pillow", least="11"),
        Requirement(name="prodigyopt", least="1.1.2"),
        Requirement(name="protobuf", least="5"),
        Requirement(name="pyarrow", least="17"),
        Requirement(name="sentencepiece", least="0.2"),
    ),
    module="training_worker.engines.diffusers.pipelines",
)

# What commit 99c673d itself requires, and the versions that it was tested with.
INVOKE = Environment(
    requirements=(
        Requirement(name="torch"),
        Requirement(name="torchvision"),
        Requirement(name="diffusers", known="0.33.0"),
        Requirement(name="transformers", known="4.49.0"),
        Requirement(name="accelerate", known="1.6.0"),
        Requirement(name="peft", least="0.11.1", below="0.12", known="0.11.1"),
        Requirement(name="safetensors"),
        Requirement(name="datasets", least="2.14.3", below="2.15", known="2.14.7"),
        Requirement(name="numpy", below="2", known="1.26.4"),
        # Later ones require a numpy that the rest cannot work with.
        Requirement(name="pyarrow", known="17.0.0"),
        Requirement(name="pandas", known="2.2.3"),
        Requirement(name="pillow"),
        Requirement(name="einops"),
        Requirement(name="omegaconf"),
        Requirement(name="prodigyopt"),
        Requirement(name="pydantic", least="2.11", below="3"),
        Requirement(name="tensorboard"),
        Requirement(name="bitsandbytes", optional="the optimizer adamw8bit"),
    ),
    module="invoke_training.pipelines.invoke_train",
    source="invoke-training",
)

ENVIRONMENTS = {EngineName.DIFFUSERS: DIFFUSERS, EngineName.INVOKE: INVOKE}
