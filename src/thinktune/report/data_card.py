"""`thinktune data CONFIG --out rows.jsonl`: the rows that are kept, as they were, and a card that says how they came
about."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from thinktune.config import Config
from thinktune.data.examples import Row
from thinktune.data.prepare import Prepared, kept_rows
from thinktune.data.report import SourceReport, setting_that_keeps
from thinktune.errors import UsageError
from thinktune.files import telling_full_disk, write_json_lines, write_text
from thinktune.version import __version__

logger = logging.getLogger(__name__)

_FOUND = {0: "the whole question", 8: "half of it or more, in runs of 8 words", 13: "13 words in a row"}
_NAMED = 100  # contaminated rows of a source on the card; `thinktune data --json` has all


def require_writable(out: Path, config: Config, *, overwrite: bool) -> None:
    """Make sure that rows may be written to a file.

    Raises:
        UsageError: it is no .jsonl, is there already, or is a source of these very rows.
    """
    if out.suffix != ".jsonl":
        raise UsageError(f"--out {out}: rows are written as JSON lines", hint=f"name it {out.with_suffix('.jsonl')}")
    for source in config.data.sources:
        path = Path(source.source).expanduser()
        if path.exists() and out.resolve() in (path.resolve(), *(each.resolve() for each in path.glob("**/*.jsonl"))):
            raise UsageError(f"--out {out} is a source of these rows", hint="choose another name")
    if not overwrite and (existing := [file for file in (out, card_of(out)) if file.exists()]):
        raise UsageError(f"{existing[0]} is there already", hint="choose another name, or --overwrite it")


def card_of(out: Path) -> Path:
    """Return the card of a file of rows."""
    return out.with_suffix(".md")


def write_rows(out: Path, config: Config, prepared: Prepared) -> None:
    """Write the kept rows, read once more from their sources, and their card."""
    with telling_full_disk(out):
        write_json_lines(out, map(_writable, kept_rows(config, prepared)))
        with out.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        write_text(card_of(out), "\n".join(_card(out, digest, config, prepared)) + "\n")
    logger.info(f"{prepared.report.kept:,} rows: {out}; their card: {card_of(out)}")


def _writable(row: Row) -> dict[str, Any]:
    """Return the fields of a row; an empty cell of Parquet, NaN, as null, which JSON has."""
    return {key: None if isinstance(value, float) and value != value else value for key, value in row.fields.items()}


def _card(out: Path, digest: str, config: Config, prepared: Prepared) -> Iterator[str]:
    """Yield the lines of the card: what Hugging Face's hub reads of one, then the same for people."""
    report = prepared.report
    yield from ("---", "configs:", "- config_name: default", f"  data_files: {json.dumps(out.name)}", "---", "")
    yield from (f"# {out.name}", "", f"{report.kept:,} rows, as they were in their sources, SHA-256 `{digest}`.")
    yield from ("", f"Chosen by `thinktune data --out` of thinktune {__version__}. {report.one_line()}.", "")
    yield "| source | read | dropped | not drawn | kept | tokens | median | 95% below |"
    yield "|---|---|---|---|---|---|---|---|"
    for source in report.sources:
        lengths = source.lengths
        measured = [lengths.total, lengths.median, lengths.p95] if lengths else [0, 0, 0]
        numbers = [source.read, source.dropped_count, source.not_drawn, source.kept, *measured]
        yield f"| {_cell(source.source)} | " + " | ".join(f"{number:,}" for number in numbers) + " |"
    if report.dropped:
        yield from ("", "## Dropped", "", "| rows | reason | kept by another |", "|---|---|---|")
        for reason, count in report.dropped.items():
            yield f"| {count:,} | {_cell(reason)} | {setting_that_keeps(reason) or ''} |"
    if config.data.problems:
        looked_for = ", ".join(f"{each.source} ({each.split})" for each in config.data.problems)
        yield from ("", "## Problems of the evaluation data", "", f"Looked for: {looked_for}.", "")
        for source in report.sources:
            yield from _contaminated(source)
    settings = json.loads(config.model_dump_json(include={"model", "seed", "data", "format"}))
    yield from ("", "## Settings", "", "```yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) + "```")


def _contaminated(source: SourceReport) -> Iterator[str]:
    for row, problem, words, same in source.problems[:_NAMED]:
        found = _FOUND[words]
        yield f"- {_cell(source.source)}, row {row}: {_cell(problem)} ({found}{'' if same else ', with other numbers'})"
    if (more := len(source.problems) - _NAMED) > 0:
        yield f"- and {more:,} more rows of {_cell(source.source)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
