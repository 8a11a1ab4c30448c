"""The self-test: ``python -m training_worker.engines.diffusers.selftest`` prints what it found as JSON.

The exit status is 1 if no kernel of attention is right.
"""

import argparse
import sys

import msgspec

from training_schemas.spec import AttentionKernel
from training_worker.engines.diffusers.selftest.children import SILENCE_LIMIT
from training_worker.engines.diffusers.selftest.program import run_child, self_test, versions_of
from training_worker.engines.diffusers.selftest.trials import Plan


def main() -> int:
    """Test the first GPU that is visible, or be one of the children that do."""
    arguments = _parser().parse_args()
    if arguments.child:
        return run_child(arguments.child, arguments.device, arguments.only, arguments.kernel, arguments.faults)
    plan = Plan(
        device=arguments.device,
        python=arguments.python,
        attention_only=arguments.attention_only,
        compiled=arguments.compile,
        faults=arguments.faults,
        silence=arguments.silence,
    )
    found = versions_of(plan.python) if arguments.versions else self_test(plan, arguments.key)
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return 0 if arguments.versions or found.attention else 1  # type: ignore[union-attr]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Find which kernels are right on a GPU, and how fast it is.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="on a CPU, in small")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with torch, to try attention with")
    parser.add_argument("--attention-only", action="store_true", help="as far as an interpreter without us can")
    parser.add_argument("--compile", action="store_true", help="try compiled blocks, which takes minutes")
    parser.add_argument("--versions", action="store_true", help="only print the versions on which the result depends")
    parser.add_argument("--key", help="what the result holds for")
    parser.add_argument("--faults", metavar="MODULE:FUNCTION", help="break results on purpose, for tests")
    parser.add_argument("--silence", type=float, default=SILENCE_LIMIT, help="seconds that a trial may take")
    parser.add_argument(
        "--child", choices=("layers", "blocks", "compiled", "optimizers", "rates"), help=argparse.SUPPRESS
    )
    parser.add_argument("--only", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--kernel", action="append", default=[], type=AttentionKernel, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
