"""Data files of users as records: objects with named fields, whatever the file's form."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeexport.errors import DataError
from edgeexport.session.tasks import entity_runs


@dataclass(frozen=True)
class Record:
    """A row of a file, by our names of its fields; rows count from 1."""

    path: Path
    number: int
    columns: Mapping[str, Any]
    fields: Mapping[str, str]

    def value(self, field: str) -> Any:
        """What stands in one of our fields; None where there is nothing."""
        return self.columns.get(self.fields.get(field, field))

    def get(self, field: str) -> str | None:
        """The same as text."""
        value = self.value(field)
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


def records(path: Path, fields: Mapping[str, str], form: str | None = None) -> list[Record]:
    """The records of a file, whose fields may have other names than ours."""
    return [Record(path, number, columns, fields) for number, columns in enumerate(read_records(path, form), 1)]


def read_records(path: Path, form: str | None = None) -> list[dict[str, Any]]:
    """The records of a .jsonl, .csv, .tsv, .txt or .conll file.

    Args:
        path: the file.
        form: its form, where the name does not end with it.

    Raises:
        DataError: the file is missing, or not what its name says.
    """
    form = form or path.suffix.removeprefix(".")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if form == "jsonl":
                found = [_from_json(line, number) for number, line in enumerate(file, 1) if line.strip()]
            elif form in {"csv", "tsv"}:
                # Strict: else a quotation mark that nobody closes swallows the rows behind it.
                found = list(csv.DictReader(file, delimiter="\t" if form == "tsv" else ",", strict=True))
            elif form == "txt":
                found = [{"text": line.rstrip("\r\n")} for line in file if line.strip()]
            elif form == "conll":
                found = conll_sentences(file)
            else:
                raise DataError(f"{path} is of an unknown form.", why="known: .jsonl, .csv, .tsv, .conll, .txt (one text per line)",
                                hint='say which it is: format = "conll"')
    except OSError as exc:
        raise DataError(f"Cannot read the data file {path}.", why=exc.strerror) from exc
    except (ValueError, csv.Error) as exc:
        raise DataError(f"{path} is not a valid .{form} file.", why=str(exc)) from exc
    for number, record in enumerate(found, 1):
        if not isinstance(record, dict):
            raise DataError(f"{path}: row {number} is not an object with named fields.")
        if None in record:  # where DictReader puts what is left over
            raise DataError(f"{path}: row {number} has more columns than the first line.",
                            hint="put a text that holds the separator in quotation marks")
    return found


def _from_json(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as exc:
        raise ValueError(f"line {number}: {exc}") from exc


def conll_sentences(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The sentences of a CoNLL file as texts with their entities.

    A line holds a word first and its tag last, an empty line ends a sentence. The text is the words with a blank between them.

    Raises:
        ValueError: a line without a tag.

    Source: E. F. Tjong Kim Sang, F. De Meulder, "Introduction to the CoNLL-2003 Shared Task" (2003), section 2.
    """
    sentences: list[list[tuple[str, str]]] = [[]]
    for number, line in enumerate(lines, 1):
        columns = line.split()
        if not columns:
            sentences.append([])
        elif columns[0] != "-DOCSTART-":
            if len(columns) < 2:
                raise ValueError(f"line {number} has a word without a tag: {columns[0]!r}")
            sentences[-1].append((columns[0], columns[-1]))
    return [_sentence(words) for words in sentences if words]


def _sentence(tagged: list[tuple[str, str]]) -> dict[str, Any]:
    ends: list[int] = []
    for word, _ in tagged:
        ends.append((ends[-1] + 1 if ends else 0) + len(word))
    entities = [{"start": ends[first] - len(tagged[first][0]), "end": ends[last], "label": name}
                for first, last, name in entity_runs([tag for _, tag in tagged])]
    return {"text": " ".join(word for word, _ in tagged), "entities": entities}
