"""Data sets: rows with named fields, read from a user's file or shipped, and what is known of them."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeexport.artifact import Artifact, Kind, Model, Spec, Task, digest_bytes
from edgeexport.errors import DataError
from edgeexport.recipe import DataFile
from edgeexport.source import Leaf
from edgeexport.store import Store

ROWS_FILE = "rows.jsonl"


class Row(Model):
    """One example.

    Attributes:
        id: unique in its data set.
        text: the text; for question answering, the question.
        text_pair: the second text of a pair; for question answering, the context.
        role: ``query`` or ``document`` in a retrieval set; decides the prefix.
        label: the right class, or for a query the id of the right document.
    """

    id: str
    text: str
    text_pair: str | None = None
    role: str | None = None
    label: str | None = None


class Dataset(Model):
    """Rows and where they are from.

    Attributes:
        name: ``probes``, ``texts``, ``evaluation``, ``calibration``.
        rows: the examples, in the file's order.
        origin: the file, or what it is.
    """

    name: str
    rows: tuple[Row, ...]
    origin: str

    @property
    def fingerprints(self) -> dict[str, str]:
        """Digest of the normalized text of each row → the text. Copies with other case, spacing or punctuation have the same."""
        return {digest_bytes(normalized(f"{row.text} {row.text_pair or ''}").encode()): row.text for row in self.rows}

    def leaf(self, store: Store) -> Leaf:
        """The rows as an input of the graph; they are put into the store at once."""
        with store.workplace() as place:
            out = place / "out"
            out.mkdir()
            with (out / ROWS_FILE).open("w", encoding="utf-8") as file:
                for row in self.rows:
                    file.write(row.model_dump_json(exclude_none=True) + "\n")
            tree = store.put_tree(out)
        spec = Spec(kind=Kind.DATASET, bytes=tree[ROWS_FILE].size,
                    facts={"name": self.name, "rows": len(self.rows), "labelled": any(row.label is not None for row in self.rows)})
        return Leaf(where="store", artifact=Artifact(tree=tree, spec=spec))


def normalized(text: str) -> str:
    """A text without what copying changes: case, compatibility forms, punctuation, runs of blanks."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", folded).split()) or " ".join(folded.split())


def stream_rows(path: Path) -> Iterator[Row]:
    """The rows of a stored data set, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield Row.model_validate_json(line)


def read_rows(path: Path) -> list[Row]:
    """The rows of a stored data set."""
    return list(stream_rows(path))


def read_dataset(name: str, source: DataFile, base: Path, task: Task, *, labelled: bool, classes: Iterable[str] = ()) -> Dataset:
    """A user's data set, with its fields checked against the task.

    Args:
        name: what the data set is for.
        source: file, fields and filter.
        base: where relative paths count from.
        task: decides which fields a row needs.
        labelled: whether each row needs its label.
        classes: the model's classes, for text classification; a label may also be the number of a class.

    Raises:
        DataError: the file is missing, not of a known form, empty, or a row lacks a field; names the row and the fields that are there.
    """
    path = base / source.file
    retrieval = task in {Task.SENTENCE_SIMILARITY, Task.FEATURE_EXTRACTION} and labelled
    if retrieval and source.corpus is None:
        raise DataError(f"The {name} data for {task} needs a corpus.", why="a query is right when it finds its answer among texts",
                        hint=f'add corpus = "answers.jsonl" (fields id, text) beside file in [data.{name}]')
    rows: dict[str, Row] = {}
    if source.corpus is not None and retrieval:
        corpus = base / source.corpus
        for record in _records(corpus, {}):
            row = Row(id=record.need("id"), text=record.need("text"), role="document")
            if row.id in rows:
                raise DataError(f"{corpus}: row {record.number} has the id '{row.id}' of an earlier row.")
            rows[row.id] = row
    known = frozenset(rows)
    label_names = dict(enumerate(classes))
    queries = []
    for record in _chosen(_records(path, source.fields), source, path):
        row_id = f"{name}-{record.number - 1}"
        if task is Task.QUESTION_ANSWERING:
            row = Row(id=row_id, text=record.need("question"), text_pair=record.need("context"))
        elif retrieval:
            row = Row(id=row_id, text=record.need("text"), role="query", label=record.need("answer"))
            if row.label not in known:
                raise DataError(f"{path}: row {record.number} has the answer '{row.label}', which is not in {source.corpus}.")
        else:
            label = _class_label(record, label_names) if labelled else None
            row = Row(id=row_id, text=record.need("text"), text_pair=record.get("text_pair"), label=label)
        queries.append(row)
    if not queries:
        raise DataError(f"{path} has no rows{' where ' + str(source.where) if source.where else ''}.")
    return Dataset(name=name, rows=(*rows.values(), *queries), origin=str(source.file))


def read_texts(path: Path) -> Dataset:
    """A user's unlabelled texts: one per line, or the fields ``text`` and ``text_pair``, or ``question`` and ``context``, of a table.

    Raises:
        DataError: the file is missing or has no texts.
    """
    rows = []
    for record in _records(path, {}):
        asked = record.get("text") is None and record.get("question") is not None
        text, pair = ("question", "context") if asked else ("text", "text_pair")
        rows.append(Row(id=f"texts-{record.number - 1}", text=record.need(text), text_pair=record.get(pair)))
    if not rows:
        raise DataError(f"{path} has no texts.")
    return Dataset(name="texts", rows=tuple(rows), origin=str(path))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl, .csv, .tsv or .txt file.

    Raises:
        DataError: the file is missing, or not what its name says.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                records = [_from_json(line, number) for number, line in enumerate(file, 1) if line.strip()]
            elif path.suffix in {".csv", ".tsv"}:
                # Strict: else a quotation mark that nobody closes swallows the rows behind it.
                records = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True))
            elif path.suffix == ".txt":
                records = [{"text": line.rstrip("\r\n")} for line in file if line.strip()]
            else:
                raise DataError(f"{path} is of an unknown form.", why="known: .jsonl, .csv, .tsv, .txt (one text per line)")
    except OSError as exc:
        raise DataError(f"Cannot read the data file {path}.", why=exc.strerror) from exc
    except (ValueError, csv.Error) as exc:
        raise DataError(f"{path} is not a valid {path.suffix} file.", why=str(exc)) from exc
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(f"{path}: row {number} is not an object with named fields.")
        if None in record:  # where DictReader puts what is left over
            raise DataError(f"{path}: row {number} has more columns than the first line.",
                            hint="put a text that holds the separator in quotation marks")
    return records


def _from_json(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as exc:
        raise ValueError(f"line {number}: {exc}") from exc


@dataclass(frozen=True)
class _Record:
    """A row of a file, by our names of its fields; rows count from 1."""

    path: Path
    number: int
    columns: Mapping[str, Any]
    fields: Mapping[str, str]

    def get(self, field: str) -> str | None:
        """The value of one of our fields; None where there is none."""
        value = self.columns.get(self.fields.get(field, field))
        return None if value is None else str(value)

    def need(self, field: str) -> str:
        """The same, where it can't be done without.

        Raises:
            DataError: there is none; says which columns there are.
        """
        value = self.get(field)
        if value is not None:
            return value
        column = self.fields.get(field, field)
        if column in self.columns:
            raise DataError(f"{self.path}: row {self.number} has nothing in the field '{column}'.")
        raise DataError(f"{self.path}: row {self.number} has no field '{column}'.", why=f"its fields are {', '.join(self.columns)}",
                        hint=f'name the right one: fields = {{ {field} = "…" }}')


def _records(path: Path, fields: Mapping[str, str]) -> list[_Record]:
    return [_Record(path, number, columns, fields) for number, columns in enumerate(read_records(path), 1)]


def _chosen(records: list[_Record], source: DataFile, path: Path) -> Iterator[_Record]:
    """The records that fulfil `where`."""
    for column in source.where:
        if records and not any(column in record.columns for record in records):
            raise DataError(f"{path} has no field '{column}', which `where` asks for.",
                            why=f"its fields are {', '.join(records[0].columns)}")
    return (record for record in records if all(str(record.columns.get(column)) == value for column, value in source.where.items()))


def _class_label(record: _Record, names: dict[int, str]) -> str:
    label = record.need("label")
    if not names or label in names.values():
        return label
    if label.isdigit() and int(label) in names:
        return names[int(label)]
    raise DataError(f"{record.path}: row {record.number} has the label '{label}', which the model does not know.",
                    why=f"its classes are {', '.join(names.values())}")
