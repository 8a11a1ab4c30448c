"""The way down: what to try after memory ran out, with the fastest settings that need clearly less each time."""

from collections.abc import Iterator, Sequence

from training_presets.candidates import Candidate, Run, candidate, candidates, cheapest
from training_presets.ladder import steps_down
from training_schemas.spec import Execution, Quantization


def after_out_of_memory(
    run: Run, chosen: Candidate, times: int, *, bases: Sequence[Quantization], margin: float
) -> Candidate:
    """What follows a choice after memory ran out so many times: each needs less than the one before, down to the last.

    The images of a step stay. The base does for as long as there is less to be needed with it; then it goes down to the
    next of ``bases``, if nobody has fixed it.
    """
    for _ in range(times):
        lower = next(_below(run, chosen, tuple(bases), margin), None)
        if lower is None:
            return chosen
        chosen = lower
    return chosen


def _below(run: Run, above: Candidate, bases: tuple[Quantization, ...], margin: float) -> Iterator[Candidate]:
    """The fastest on the same base that needs less by as much as the model may be wrong; else whatever needs less."""
    parameters = above.parameters
    plain = Execution(attention_kernels=above.execution.attention_kernels)
    best = cheapest(candidates(run, parameters, plain, above.peak_mib / (1 + margin), parameters.quantization))
    if best is not None:
        yield best
    for rung in (parameters, *steps_down(parameters, fixed=run.fixed, quantizations=bases)):
        lower = candidate(run, rung, plain)
        if lower.peak_mib < above.peak_mib:
            yield lower
