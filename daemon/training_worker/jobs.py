"""The former place of `training_worker.client.job_builder`; gone in the release after next."""

import warnings

from training_worker.client.job_builder import JobFields, flux_lora_job, make_job, sdxl_lora_job

__all__ = ["JobFields", "flux_lora_job", "make_job", "sdxl_lora_job"]

warnings.warn(
    "training_worker.jobs is deprecated: use training_worker.client.job_builder",
    DeprecationWarning,
    stacklevel=2,
)
