"""The report on a data set that can be trained on: its numbers, and what its owner may want to look at again."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from training_schemas.progress import DatasetSummary
from training_worker.engines.common.data.examples import Example
from training_worker.engines.common.data.report import duplicates, summary_of, warnings_of

NAMED_AT_MOST = 5


class DatasetReport(msgspec.Struct, frozen=True, kw_only=True):
    """A data set in numbers; ``duplicates`` groups the paths of images whose files are the same byte for byte."""

    summary: DatasetSummary
    duplicates: list[list[str]]

    def warnings(self) -> list[str]:
        """Write warnings of what is no fault, but seldom meant."""
        found = warnings_of(msgspec.structs.asdict(self.summary))
        if not self.duplicates:
            return found
        groups = [" = ".join(Path(path).name for path in group) for group in self.duplicates[:NAMED_AT_MOST]]
        more = ", ..." if len(self.duplicates) > NAMED_AT_MOST else ""
        return [f"images that are in the data set more than once: {', '.join(groups)}{more}", *found]


def report_on(examples: Sequence[Example]) -> DatasetReport:
    """Count what a data set holds."""
    return DatasetReport(summary=DatasetSummary(**summary_of(examples)), duplicates=duplicates(examples))
