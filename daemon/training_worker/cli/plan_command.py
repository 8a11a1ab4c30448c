"""The command ``plan``: a job file, a preset or settings as options; one GPU or all; a table, JSON or a plot."""

import os
import re
from pathlib import Path
from typing import Any

import rich_click as click

from training_schemas.validation import refused

SIZE = re.compile(r"(?P<width>\d{1,5})(x(?P<height>\d{1,5}))?")
SMALLEST, LARGEST = 64, 2048

TYPES = ("FLUX_LORA", "SDXL_LORA", "SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE")


def _size(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, int]:
    """Parse width and height, from one number or two."""
    sides = SIZE.fullmatch(text)
    width, height = (int(sides["width"]), int(sides["height"] or sides["width"])) if sides else (0, 0)
    if not (min(width, height) >= SMALLEST and max(width, height) <= LARGEST):
        raise click.BadParameter(f"expected pixels a side, {SMALLEST}-{LARGEST}, as 512 or 512x768; got {text!r}")
    return width, height


@click.command()
@click.argument("file", required=False)
@click.option("--gpu", help="The GPU, as in 'RTX 4090' or 'A100 80GB'; all known GPUs without it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Compare the models of memory and time with published figures.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw peak memory over resolution and batch size (PNG).")
@click.option("--config", type=click.Path(path_type=Path), help="Settings file of a worker, for its GPUs and prices.")
@click.option("--type", "training_type", type=click.Choice(TYPES), help="What to train, with the settings below.")
@click.option("--preset", help="A preset, as it is planned for --type (a LoRA without it).")
@click.option("--resolution", default="512", show_default=True, callback=_size, help="Pixels a side, or 512x768.")
@click.option(
    "--batch-size", type=click.IntRange(1, 64), default=1, show_default=True, help="Images in memory at once."
)
@click.option("--accumulation", type=click.IntRange(1, 256), default=1, show_default=True, help="Batches a step.")
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Optimizer steps.")
@click.option("--rank", type=click.IntRange(1, 256), default=16, show_default=True, help="The adapter's rank.")
@click.option(
    "--targets",
    type=click.Choice(("attention", "attentionAndFeedForward", "allLinear")),
    default="attention",
    show_default=True,
    help="The layers that get an adapter.",
)
@click.option(
    "--quantize", type=click.Choice(("none", "fp8", "int8", "nf4")), default="none", show_default=True, help="The base."
)
@click.option(
    "--dtype",
    type=click.Choice(("bfloat16", "float16", "float32")),
    default="bfloat16",
    show_default=True,
    help="Weights.",
)
@click.option(
    "--optimizer",
    type=click.Choice(("adamw", "adamw8bit", "adafactor", "prodigy")),
    default="adamw",
    show_default=True,
    help="The optimizer.",
)
@click.option("--gradient-checkpointing", is_flag=True, help="Recompute activations instead of keeping them.")
@click.option("--cache-text", is_flag=True, help="Encode captions once, and free the text encoders.")
@click.option("--cache-latents", is_flag=True, help="Encode images once, and free the autoencoder.")
@click.option("--train-text-encoder", is_flag=True, help="Train the text encoders too.")
@click.option("--images", type=click.IntRange(min=1), default=20, show_default=True, help="Images of the data set.")
def plan(**options: Any) -> None:
    """Show what a job takes before it starts: settings, memory by phase and part, time and price.

    With FILE or --preset, a job is planned as it would be, down to where it fits. With --type, the settings given as
    options are used as they are. With --check, the models are compared with published figures.
    """
    # Loaded here: no other command needs it.
    from training_worker.cli import plan_output  # noqa: PLC0415
    from training_worker.cli.job_commands import read_job  # noqa: PLC0415
    from training_worker.settings import load_settings  # noqa: PLC0415

    as_json, gpu, file = options["as_json"], options["gpu"], options["file"]
    if options["check"]:
        plan_output.show_check(as_json=as_json)
        return
    settings = load_settings(options["config"], os.environ)
    if file is not None:
        plan_output.show_plan(read_job(file), gpu, settings, as_json=as_json)
    elif options["preset"] is not None:
        job = plan_output.job_of_preset(options["preset"], options["training_type"])
        plan_output.show_plan(job, gpu, settings, as_json=as_json)
    elif options["training_type"] is None:
        raise refused("", "name a job file, or --preset, or --type with its settings, or --check")
    elif options["plot"] is not None:
        plan_output.plot_memory(_workload(options), gpu or "RTX 4090", settings, options["plot"])
    else:
        plan_output.show_workload(_workload(options), gpu, settings, as_json=as_json)


def _workload(options: dict[str, Any]) -> Any:
    import msgspec  # noqa: PLC0415

    from training_presets.workload import Workload  # noqa: PLC0415

    names = {"rank": "lora_rank", "targets": "lora_targets", "quantize": "quantization", "dtype": "weight_dtype"}
    taken = {name: value for name, value in options.items() if name in Workload.__struct_fields__}
    renamed = {new: options[old] for old, new in names.items()}
    width, height = options["resolution"]
    size = {"width": width, "height": height}
    return msgspec.convert(taken | renamed | size, Workload)
