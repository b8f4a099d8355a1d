"""Tables in files, exact both ways: CSV and Parquet. Nothing in them is ever executed or unpickled.

A cell is JSON; text that is no JSON stands for itself, so that `softmax` needs no quotes and 4 is a number. An empty
cell is none. Floats are written by their shortest exact representation. In Parquet a column of numbers or of truth
values alone has that type; every other column holds the same text as in CSV.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any, Final

from .checkpoints import write_atomically
from .errors import UsageError, one_line

Cell = str | None
Table = dict[str, list[Cell]]  # columns of equal length

SUFFIXES: Final = (".csv", ".parquet")
MAX_CELL_CHARS: Final = 2**31 - 1  # csv's own limit, 131,072, is less than a long training may tell
_STARTS_OF_JSON: Final = ("{", "[", '"')  # what starts so and is no JSON is damaged


def to_cell(value: Any) -> str:
    """What `from_cell` reads back: JSON, or the text itself where it cannot be taken for JSON."""
    if isinstance(value, str) and value.isprintable() and value and not value.startswith(_STARTS_OF_JSON):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def from_cell(cell: str) -> Any:
    """The value of a cell that is not empty.

    Raises:
        ValueError: JSON that does not end as it began.
    """
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        if cell.startswith(_STARTS_OF_JSON):
            raise ValueError(f"{cell[:40]!r} is damaged JSON ({one_line(error)})") from error
        return cell


def check_suffix(path: Path) -> None:
    """Raises:
    UsageError: neither .csv nor .parquet.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} is neither FILE.csv nor FILE.parquet: a table is one or the other")


def write_table(path: Path, table: Table) -> None:
    """Whole or not at all, in the format that the suffix says.

    Raises:
        UsageError: neither .csv nor .parquet.
        Failure: the file cannot be written.
    """
    check_suffix(path)
    write_atomically(path, _csv(table) if path.suffix.lower() == ".csv" else _parquet(table))


def read_table(path: Path) -> Table:
    """Every column, in the file's order.

    Raises:
        UsageError: no such file, not a table, damaged, or a column twice.
    """
    check_suffix(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; write one with `python -m search.export --all`"
        ) from error
    try:
        return _from_csv(data) if path.suffix.lower() == ".csv" else _from_parquet(data)
    except (ValueError, csv.Error, OSError) as error:
        raise UsageError(f"{path} is no whole table: {one_line(error)}; export or copy it again") from error


def _csv(table: Table) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows([cell or "" for cell in row] for row in zip(*table.values(), strict=True))
    return text.getvalue().encode()


def _from_csv(data: bytes) -> Table:
    csv.field_size_limit(MAX_CELL_CHARS)
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))  # spreadsheets add a mark
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    if len(set(header)) < len(header):
        raise ValueError(f"column {next(name for name in header if header.count(name) > 1)!r} is there twice")
    for number, row in enumerate(body, 1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells under {len(header)} columns")
    return {name: [row[column] or None for row in body] for column, name in enumerate(header)}


def _parquet(table: Table) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    columns = {name: _typed(cells) for name, cells in table.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, compression="zstd")
    return sink.getvalue()


def _typed(cells: list[Cell]) -> Any:
    """An Arrow array: of one plain type if every cell has it, else the text."""
    import pyarrow

    types = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}
    values = [None if cell is None else from_cell(cell) for cell in cells]
    kinds = {type(value) for cell, value in zip(cells, values, strict=True) if cell is not None}
    kind = kinds.pop() if len(kinds) == 1 else str
    if kind in types:
        try:
            return pyarrow.array(values, types[kind])
        except OverflowError:  # an integer of more than 64 bits
            pass
    return pyarrow.array(cells, pyarrow.string())


def _from_parquet(data: bytes) -> Table:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    if len(set(table.column_names)) < table.num_columns:
        raise ValueError("a column is there twice")
    columns = zip(table.column_names, table.columns, strict=True)
    return {name: [_as_cell(name, value) for value in column.to_pylist()] for name, column in columns}


def _as_cell(name: str, value: Any) -> Cell:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool | int | float):
        return to_cell(value)
    raise ValueError(f"column {name!r} holds a {type(value).__name__}, neither text nor a number")
