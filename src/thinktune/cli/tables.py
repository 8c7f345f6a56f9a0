"""Tables that fit the terminal: as they are, else with rows and columns exchanged, else one entry below the other."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_fitting(table: Table, console: Console) -> None:
    """Print a table, whose first column names its rows, in the first arrangement that fits the console's width."""
    unlimited = console.options.update(max_width=10_000)
    for arranged in (table, _turned(table)):
        if console.measure(arranged, options=unlimited).maximum <= console.width:
            console.print(arranged)
            return
    console.print(_stacked(table))


def _turned(table: Table) -> Table:
    headings, *rows = _cells(table)
    turned = _like(table)
    turned.add_column(headings[0])
    for name, *_ in rows:
        turned.add_column(name, justify="right")
    for at, heading in enumerate(headings[1:], start=1):
        turned.add_row(heading, *(row[at] for row in rows))
    return turned


def _stacked(table: Table) -> Table:
    headings, *rows = _cells(table)
    stacked = _like(table, show_header=False)
    stacked.add_column(overflow="fold")
    stacked.add_column(overflow="fold")
    for name, *cells in rows:
        stacked.add_row(f"[bold]{headings[0]}[/]", f"[bold]{name}[/]")
        for heading, cell in zip(headings[1:], cells, strict=True):
            stacked.add_row(heading, cell)
        stacked.add_section()
    return stacked


def _cells(table: Table) -> list[list[str]]:
    """Return the headings, then the cells of each row; styled cells keep their markup."""
    headings = [str(column.header) for column in table.columns]
    return [headings, *(list(map(str, row)) for row in zip(*(column._cells for column in table.columns), strict=True))]


def _like(table: Table, *, show_header: bool = True) -> Table:
    return Table(title=table.title, title_style=table.title_style, show_header=show_header)
