"""`thinktune data CONFIG`: the report, and the training data token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from thinktune.config import Config
from thinktune.data.prepare import Prepared, name_rows, prepare
from thinktune.data.report import DataReport, SourceReport, setting_that_keeps
from thinktune.data.tokens import Tokens
from thinktune.report.data_card import require_writable, write_rows

TRAINED = ("bold green", "bold bright_green")
CONTEXT = ("bright_black", "white")
PADDING = "red"
BORDER = "bold magenta"

Kind = Literal["context", "trained", "border", "padding"]
"""The role of a piece of a batch."""

_EXAMPLES = 3
_NAMED = 4
"""Contaminated rows and duplicates of a source that are named, each with the other one."""
_LONGEST_TEXT = 1200
"""Characters of a thought that are shown of an example."""
_LONGEST_PART = 400
"""Tokens of the context, and of the trained part, that are shown of a document in a pack."""


def show(
    config: Config,
    chat: Any = None,
    console: Console | None = None,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> DataReport:
    """Prepare the data of a config and print the report.

    Args:
        chat: a `models.Chat`; None makes the one that training would have.
        console: None: standard output.
        out: a file for the rows that are kept, with a card beside it.
        overwrite: replace that file.
        json: print the report as JSON, and nothing else.

    Raises:
        DataError and others: see `prepare`.
        UsageError: see `data_card.require_writable`.
        ModelError, DownloadError: the tokenizer of the config's model cannot be had.
    """
    console = console or Console()
    if out is not None:
        require_writable(out, config, overwrite=overwrite)
    chat = chat or _chat_of(config)
    prepared = prepare(config, chat)
    if out is not None:
        write_rows(out, config, prepared)
    if json:
        console.print_json(data=prepared.report.to_dict())
        return prepared.report
    console.print(_numbers(prepared.report))
    console.print(_histogram(prepared.report))
    for number, tokens in enumerate(prepared.train[:_EXAMPLES], start=1):
        console.print(_example(number, tokens))
    console.print(_batch(prepared, config, chat.tokenizer))
    return prepared.report


def _chat_of(config: Config) -> Any:
    # Imported here because it brings transformers, and because data know models only where a verb puts them together.
    from thinktune.models import make_chat, resolve
    from thinktune.models.tokenizer import read_tokenizer

    resolved = resolve(config.model, config.load, weights=False)
    return make_chat(read_tokenizer(resolved, config.load), {**resolved.settings, **config.data.chat_settings})


def prepared_data(config: Config) -> Prepared:
    """Prepare the data of a training, as `show` does and with its errors."""
    return prepare(config, _chat_of(config))


def first_batch(config: Config) -> Iterator[tuple[str, Kind]]:
    """Yield the text that `show` prints of one batch, piece by piece, each with its use in training.

    Raises as `show` does.
    """
    chat = _chat_of(config)
    documents, padding = _first_batch(prepare(config, chat), config)
    for number, tokens in enumerate(documents, start=1):
        yield f"{number}: row {tokens.example.row}", "border"
        for piece in _pieces(tokens.ids[: tokens.context], chat.tokenizer):
            yield piece, "context"
        for piece in _pieces(tokens.ids[tokens.context :], chat.tokenizer):
            yield piece, "trained"
    if padding:
        yield f"{padding:,} ×", "padding"


def _numbers(report: DataReport) -> Table:
    table = Table("rows", "", "", box=None, pad_edge=False)
    for source in report.sources:
        table.add_row(f"{source.read:,}", "read", escape(source.source))
    for source in report.sources:
        for reason, rows in source.dropped.items():
            where = f" of {source.source}" if len(report.sources) > 1 else ""
            setting = f" ({keeper})" if (keeper := setting_that_keeps(reason)) else ""
            table.add_row(
                f"{len(rows):,}", f"[yellow]dropped: {escape(reason)}{setting}", escape(name_rows(rows) + where)
            )
        for row, problem, _, same in source.problems[:_NAMED]:
            table.add_row("", "", escape(f"row {row} holds {problem}{'' if same else ', with other numbers'}"))
        for row, earlier in source.repeats[:_NAMED]:
            table.add_row("", "", escape(f"row {row} repeats {earlier}"))
        if source.boxes_left_out:
            named = name_rows(source.boxes_left_out)
            count = len(source.boxes_left_out)
            table.add_row(f"{count:,}", "[yellow]with several boxes", f"the last is the answer: {named}")
        for column, count in source.unused.items():
            table.add_row(f"{count:,}", "with a column not used", escape(column))
    optional = (
        (report.not_drawn, "not drawn", "left out by data.sample"),
        (report.multi_turn, "of several turns", "earlier turns are context"),
        (report.cut, "[red]CUT", "their end is lost: data.overlong is cut"),
        (report.held_out, "held out", "for evaluation loss"),
    )
    table.add_row(f"{report.kept:,}", "[green]kept", "")
    for source in report.sources if len(report.sources) > 1 else ():
        table.add_row(f"{source.kept:,}", "[green]of them", escape(f"{source.source}: {_share(source, report)}"))
    for count, name, meaning in optional:
        if count:
            table.add_row(f"{count:,}", name, meaning)
    if report.lengths:
        table.add_row(f"{report.lengths.total:,}", "tokens", f"{report.lengths.trained:,} of them trained")
    if report.packs:
        packs = report.packs
        table.add_row(f"{packs.count:,}", "packs", f"of {packs.capacity:,} tokens, {packs.padding_share:.2%} padding")
    table.add_row("", "fingerprint", report.fingerprint[:16])
    return table


def _share(source: SourceReport, report: DataReport) -> str:
    """Describe the part of a mixture that a source is."""
    if source.lengths is None or report.lengths is None:
        return "none"
    lengths = source.lengths
    return (
        f"{lengths.total:,} tokens, {lengths.total / report.lengths.total:.0%} of all; "
        f"median {lengths.median:,}, 95% below {lengths.p95:,}"
    )


def _histogram(report: DataReport) -> Group:
    lengths = report.lengths
    if lengths is None:
        raise ValueError("the examples have not been tokenised")
    title = (
        f"Tokens of an example: {lengths.shortest:,} to {lengths.longest:,}, "
        f"median {lengths.median:,}, 95% below {lengths.p95:,}"
    )
    table = Table(box=None, show_header=False, pad_edge=False)
    most = max(count for _, _, count in lengths.histogram)
    for low, high, count in lengths.histogram:
        bar = "█" * round(40 * count / most) or ("▏" if count else "")
        table.add_row(Text(f"{low:,}-{high - 1:,}", justify="right"), Text(bar, "cyan"), f"{count:,}")
    return Group("", title, table, "")


def _example(number: int, tokens: Tokens) -> Panel:
    example = tokens.example
    text = Text()
    for message in example.messages:
        text.append(f"{message['role']}: ", "bold").append(_shorten(message["content"]) + "\n")
    text.append("think: ", "bold").append(_shorten(example.think) + "\n", "dim")
    text.append("answer: ", "bold").append(_shorten(example.answer), "green")
    title = f"example {number}: row {example.row} of {escape(example.source)}, {len(tokens):,} tokens"
    return Panel(text, title=title, title_align="left")


def _shorten(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    left_out = len(text) - _LONGEST_TEXT
    return f"{text[: _LONGEST_TEXT // 2]} […{left_out:,} characters…] {text[-_LONGEST_TEXT // 2 :]}"


def _batch(prepared: Prepared, config: Config, tokenizer: Any) -> Panel:
    """Show one training input: a pack, or without packing an example."""
    text = Text.assemble(
        ("context, only read", CONTEXT[0]), " · ", ("▶ trained", TRAINED[0]), " · ", ("padding", PADDING), " · ",
        ("━━━ document border", BORDER), " · tokens alternate between two shades\n",
    )  # fmt: skip
    documents, padding = _first_batch(prepared, config)
    for number, tokens in enumerate(documents, start=1):
        counts = f"row {tokens.example.row}, {tokens.context:,} context + {tokens.trained:,} trained"
        text.append(f"\n━━━ document {number}: {counts} ━━━\n", BORDER)
        _append_tokens(text, tokens.ids[: tokens.context], CONTEXT, tokenizer)
        text.append("▶", TRAINED[0])
        _append_tokens(text, tokens.ids[tokens.context :], TRAINED, tokenizer)
    if padding:
        text.append(f"\n━━━ {padding:,} tokens of padding ━━━", PADDING)
    return Panel(text, title="one packed batch" if config.train.packing else "one example", title_align="left")


def _first_batch(prepared: Prepared, config: Config) -> tuple[list[Tokens], int]:
    if not config.train.packing or prepared.report.packs is None:
        return prepared.train[:1], 0
    several = [indexes for indexes in prepared.packs if len(indexes) > 1] or prepared.packs
    documents = [prepared.train[index] for index in min(several, key=len)]  # few, so that they can be read
    return documents, prepared.report.packs.capacity - sum(map(len, documents))


def _append_tokens(text: Text, ids: Sequence[int], shades: tuple[str, str], tokenizer: Any) -> None:
    for at, piece in enumerate(_pieces(ids, tokenizer)):
        text.append(piece, shades[at % 2])


def _pieces(ids: Sequence[int], tokenizer: Any) -> Iterator[str]:
    """Yield the tokens in readable form; of very many, the first and the last, and a count of those between."""
    head, tail = _LONGEST_PART * 3 // 4, _LONGEST_PART // 4
    hidden = len(ids) - head - tail
    if hidden <= 0:
        yield from (_readable(tokenizer, token) for token in ids)
        return
    yield from (_readable(tokenizer, token) for token in ids[:head])
    yield f" […{hidden:,} tokens…] "
    yield from (_readable(tokenizer, token) for token in ids[-tail:])


def _readable(tokenizer: Any, token_id: int) -> str:
    """Return a token's text; newlines marked, and a part of a character as the bytes it stands for."""
    piece = str(tokenizer.decode([token_id]))
    if "\ufffd" in piece:
        piece = f"⟨{tokenizer.convert_ids_to_tokens(token_id)}⟩"
    return piece.replace("\n", "⏎\n")
