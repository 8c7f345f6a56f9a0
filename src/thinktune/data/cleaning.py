"""Examples that are known already, from earlier ones or from the evaluation data, are dropped."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from thinktune.config import Data, Load
from thinktune.data.decontamination import ProblemIndex
from thinktune.data.duplicates import Duplicates
from thinktune.data.examples import Example, RowFault
from thinktune.data.report import CONTAMINATED, EXACT_DUPLICATE, NEAR_DUPLICATE, SourceReport
from thinktune.data.row_formats import read_question
from thinktune.data.sources import read_rows
from thinktune.errors import DataError

logger = logging.getLogger(__name__)


class Cleaning:
    """Drops examples that hold a problem of the evaluation data, then those that repeat an earlier one of any source.

    Raises:
        DataError, DownloadError: evaluation data that cannot be read, or in which there is no question.
        MissingExtra: see `Duplicates` and `sources.read_rows`.
    """

    def __init__(self, data: Data, seed: int, load: Load) -> None:
        self._duplicates = Duplicates(prompts=data.deduplicate == "prompts") if data.deduplicate else None
        self._problems = ProblemIndex(_read_problems(data, seed, load)) if data.decontaminate else None

    def drop_known(self, examples: list[Example], report: SourceReport) -> list[Example]:
        """Return the examples that are left, in order."""
        return [example for example in examples if not self._is_known(example, report)]

    def _is_known(self, example: Example, report: SourceReport) -> bool:
        if self._problems is not None and (match := self._problems.find(example)):
            report.drop(CONTAMINATED, example.row)
            report.problems.append((example.row, match.problem, match.words, match.numbers))
            return True
        if self._duplicates is not None and (repeated := self._duplicates.find_or_add(example)):
            earlier, exactly = repeated
            report.drop(EXACT_DUPLICATE if exactly else NEAR_DUPLICATE, example.row)
            report.repeats.append((example.row, f"{earlier.source}:{earlier.row}"))
            return True
        return False


def _read_problems(data: Data, seed: int, load: Load) -> Iterator[tuple[str, str]]:
    """Yield `source:row` and question of every problem of the evaluation data. Rows without a question are counted."""
    for entry in data.problems:
        found, faults = 0, 0
        for row in read_rows(entry.source, entry.split, count=None, seed=seed, cache=data.cache, load=load):
            try:
                if row.fault:
                    raise RowFault(row.fault)
                question = read_question(row.fields)
            except RowFault:
                faults += 1
                continue
            found += 1
            yield f"{entry.source}:{row.number}", question
        if not found:
            raise DataError(
                f"data.decontaminate: no row of {entry.source} has a question",
                hint="rows need messages, conversations, or a column prompt, question, problem or instruction",
            )
        if faults:
            logger.warning(f"{entry.source}: {faults:,} of {found + faults:,} rows have no question to look for")
