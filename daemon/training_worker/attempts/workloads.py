"""The workload of a run's spec, as the models of memory and time see it."""

import msgspec

from training_presets.presets import default_preset
from training_presets.tiers import MINIMUM_TIERS
from training_presets.workload import Workload, workload_of
from training_schemas.jobs import CostOptimization
from training_schemas.spec import PARAMETERS, FluxLoraParameters, RunSpec, SdxlParameters


def workload_of_spec(spec: RunSpec) -> Workload:
    """Return the workload of a spec.

    A daemon of an earlier version may have written it: settings that are newer have their defaults.
    """
    return workload_of(spec.training_type, parameters_of_spec(spec), gpu_count=spec.gpu_count, execution=spec.execution)


def parameters_of_spec(spec: RunSpec) -> FluxLoraParameters | SdxlParameters:
    """Return the settings of a spec, as `workload_of_spec` reads them."""
    family = spec.training_type.family
    defaults = default_preset(family, MINIMUM_TIERS[spec.training_type], CostOptimization.BALANCED).parameters
    return msgspec.convert(defaults | spec.parameters, PARAMETERS[family])
