"""The types of training, one a module."""

from typing import Any

from training_schemas.jobs import TrainingType
from training_worker.engines.diffusers.pipelines.base import TrainingPipeline
from training_worker.engines.diffusers.pipelines.flux_lora import FluxLora
from training_worker.engines.diffusers.pipelines.sdxl_finetune import SdxlFinetune
from training_worker.engines.diffusers.pipelines.sdxl_lora import SdxlLora
from training_worker.engines.diffusers.pipelines.sdxl_textual_inversion import SdxlTextualInversion

PIPELINES: dict[TrainingType, type[TrainingPipeline[Any]]] = {
    TrainingType.FLUX_LORA: FluxLora,
    TrainingType.SDXL_LORA: SdxlLora,
    TrainingType.SDXL_TEXTUAL_INVERSION: SdxlTextualInversion,
    TrainingType.SDXL_FINETUNE: SdxlFinetune,
}
