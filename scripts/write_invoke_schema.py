"""Print, as JSON, which settings invoke-training has: names, kinds and defaults, read from its own models.

Run it with the interpreter of an environment that has invoke-training, from the folder of this repository:

    PYTHON scripts/write_invoke_schema.py > presets/training_presets/invoke_schema.json
"""

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import invoke_training
from invoke_training.pipelines.flux.lora.config import FluxLoraConfig
from invoke_training.pipelines.stable_diffusion_xl.finetune.config import SdxlFinetuneConfig
from invoke_training.pipelines.stable_diffusion_xl.lora.config import SdxlLoraConfig
from invoke_training.pipelines.stable_diffusion_xl.textual_inversion.config import SdxlTextualInversionConfig
from pydantic import BaseModel

MODELS = (FluxLoraConfig, SdxlLoraConfig, SdxlTextualInversionConfig, SdxlFinetuneConfig)
PLAIN = {int: "int", float: "float", str: "str", bool: "bool", type(None): "null"}


class Schema:
    """The objects that were met: each field of each with its kinds and, where it has one, its default."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}

    def add(self, model: type[BaseModel]) -> str:
        """Describe a model and all that it holds; gives its name."""
        name = model.__name__
        if name not in self.objects:
            self.objects[name] = {}
            self.objects[name] |= {field: self._field(info) for field, info in model.model_fields.items()}
        return name

    def _field(self, info: Any) -> dict[str, Any]:
        described = {"kinds": self._kinds(info.annotation)}
        if info.is_required():
            return described
        default = info.get_default(call_default_factory=True)
        return described | {"default": default.model_dump() if isinstance(default, BaseModel) else default}

    def _kinds(self, annotation: Any) -> list[Any]:
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self._kinds(inner[0])
        if origin in (Union, types.UnionType):
            return [kind for one in inner for kind in self._kinds(one)]
        return [PLAIN[annotation] if annotation in PLAIN else self._compound(annotation, origin, inner)]

    def _compound(self, annotation: Any, origin: Any, inner: tuple[Any, ...]) -> dict[str, Any]:
        if origin is Literal:
            return {"choices": list(inner)}
        if origin is list:
            return {"list": self._kinds(inner[0])}
        if origin is tuple:
            return {"tuple": [self._kinds(one) for one in inner]}
        if origin is dict:
            return {"values": self._kinds(inner[1])}
        return {"object": self.add(annotation)}


def commit() -> str | None:
    """The commit of the sources that are imported, if they lie in a repository."""
    folder = Path(invoke_training.__path__[0])
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no input
    return found.stdout.strip() or None


def main() -> None:
    """Print it, a field a line, so that what changed is seen."""
    schema = Schema()
    kinds = {model.model_fields["type"].default: schema.add(model) for model in MODELS}
    objects = ",\n".join(f'"{name}": {{\n{_lines(fields)}\n}}' for name, fields in schema.objects.items())
    head = f'"commit": {json.dumps(commit())},\n"types": {json.dumps(kinds)},\n"objects": {{\n'
    sys.stdout.write(f"{{\n{head}{objects}\n}}\n}}\n")


def _lines(fields: dict[str, Any]) -> str:
    return ",\n".join(f"  {json.dumps(name)}: {json.dumps(field)}" for name, field in fields.items())


if __name__ == "__main__":
    main()
