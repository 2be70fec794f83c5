"""Files as published -> the rows that suites read, one JSON object per line.

SCROLLS zips hold the rows as they are (`TASK/validation.jsonl`); nothing in them is changed. SQuALITY becomes
one row of SCROLLS's schema per reference, without blanks at the ends of its texts. lm-eval's rows get the
fields and types of the tables on the hub that its tasks name, so that local tasks see what lm-eval would.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .faults import DataError, unreadable
from .rows import lines, objects
from .unpack import FREE, bounded, member_pieces, pieces, refuse_bomb

Row = dict[str, Any]
#: Of a table, read at once.
MOST_ROWS = 64


def converted(name: str, files: list[Path]) -> Iterator[bytes]:
    """The bytes of the set's one file, in pieces. Raises DataError."""
    if name in _ROWS:
        try:
            packed = sum(file.stat().st_size for file in files)
            yield from bounded(_as_lines(_ROWS[name](files)), files[0].name, packed)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{files[0].name} is not the {name} that was published ({error!r}).") from None
    elif name.startswith("scrolls/"):
        yield from member_pieces(files[0], "validation.jsonl")
    else:
        yield from pieces(files[0])


def table_lines(file: Path) -> Iterator[bytes]:
    """Rows of a parquet table as JSON lines. Raises DataError."""
    return bounded(_as_lines(_parquet(file)), file.name, file.stat().st_size)


def _as_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """JSON lines. Raises DataError for a row that holds what JSON does not."""
    for row in rows:
        try:
            line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"A row cannot be written as JSON ({error}).") from None
        yield line.encode("utf-8") + b"\n"


def _parquet(file: Path) -> Iterator[Row]:
    """Rows of a table. Raises DataError.

    Sizes in its head count a text once that all rows share, so a batch has no more rows than fit in FREE if
    each had the whole group; what comes out is for the caller to bound.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            groups = [table.metadata.row_group(n).total_byte_size for n in range(table.num_row_groups)]
            refuse_bomb(sum(groups), file.name, file.stat().st_size)
            together = max(1, min(MOST_ROWS, FREE // max(1, *groups)))
            for batch in table.iter_batches(batch_size=together):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise unreadable(file.name, error) from None


def _squality(files: list[Path]) -> Iterator[Row]:
    for _, story in objects(pieces(files[0]), files[0].name):
        for question in story["questions"]:
            id = f"{story['metadata']['passage_id']}_{question['question_number']}"
            for number, response in enumerate(question["responses"]):
                yield {
                    "id": id,
                    "pid": f"{id}_{number}",
                    "input": f"{question['question_text'].strip()}\n\n{story['document'].strip()}",
                    "output": response["response_text"].strip(),
                }


def _hellaswag(files: list[Path]) -> Iterator[Row]:
    for _, row in objects(pieces(files[0]), files[0].name):
        yield row | {"label": str(row["label"])}


def _piqa(files: list[Path]) -> Iterator[Row]:
    labels = [int(line) for line in lines(pieces(files[1]), files[1].name)]
    rows = [row for _, row in objects(pieces(files[0]), files[0].name)]
    for row, label in zip(rows, labels, strict=True):
        yield {"goal": row["goal"], "sol1": row["sol1"], "sol2": row["sol2"], "label": label}


def _winogrande(files: list[Path]) -> Iterator[Row]:
    for row in _members(files[0], "dev.jsonl"):
        yield {field: row[field] for field in ("sentence", "option1", "option2", "answer")}


def _boolq(files: list[Path]) -> Iterator[Row]:
    for row in _members(files[0], "val.jsonl"):
        fields = {field: row[field] for field in ("question", "passage", "idx")}
        yield fields | {"label": int(row["label"])}


def _members(file: Path, ending: str) -> Iterator[Row]:
    for _, row in objects(member_pieces(file, ending), f"{ending} of {file.name}"):
        yield row


_ROWS: dict[str, Callable[[list[Path]], Iterable[Row]]] = {
    "scrolls/squality": _squality,
    "lm_eval/hellaswag": _hellaswag,
    "lm_eval/arc_easy": lambda files: _parquet(files[0]),
    "lm_eval/arc_challenge": lambda files: _parquet(files[0]),
    "lm_eval/winogrande": _winogrande,
    "lm_eval/piqa": _piqa,
    "lm_eval/boolq": _boolq,
}
