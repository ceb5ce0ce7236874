"""Data sets: rows with named fields, read from a user's file or shipped, and what is known of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from edgeexport.artifact import Artifact, Kind, Model, Spec, Task, digest_bytes
from edgeexport.errors import DataError
from edgeexport.recipe import DataFile
from edgeexport.records import Record, records
from edgeexport.session.tasks import entity_runs
from edgeexport.source import Leaf
from edgeexport.store import Store

ROWS_FILE = "rows.jsonl"

Labels = Literal["required", "optional", "ignored"]


class Entity(Model):
    """A named thing in a text: from character `start` to before character `end`."""

    start: int
    end: int
    label: str


class Message(Model):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Row(Model):
    """One example.

    Attributes:
        id: unique in its data set.
        text: the text; for question answering, the question.
        text_pair: the second text of a pair; for question answering, the context.
        role: ``query`` or ``document`` in a retrieval set; decides the prefix. ``prompt`` for a text that a language model is to go on with.
        label: the right class, or for a query the id of the right document.
        entities: the named things in the text, for token classification.
        messages: a conversation, for text generation; `text` then is what is said in it.
    """

    id: str
    text: str
    text_pair: str | None = None
    role: str | None = None
    label: str | None = None
    entities: tuple[Entity, ...] | None = None
    messages: tuple[Message, ...] | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of the normalized text. Copies with other case, spacing or punctuation have the same."""
        return digest_bytes(normalized(f"{self.text} {self.text_pair or ''}").encode())

    @property
    def labelled(self) -> bool:
        """Whether it says what is right."""
        return self.label is not None or self.entities is not None


class Dataset(Model):
    """Rows and where they are from.

    Attributes:
        name: ``probes``, ``texts``, ``evaluation``, ``development``, ``training``, ``calibration``.
        rows: the examples, in the file's order.
        origin: the file, or what it is.
    """

    name: str
    rows: tuple[Row, ...]
    origin: str

    @property
    def fingerprints(self) -> frozenset[str]:
        """The fingerprints of its rows."""
        return frozenset(row.fingerprint for row in self.rows)

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
                    facts={"name": self.name, "rows": len(self.rows), "labelled": any(row.labelled for row in self.rows)})
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


def read_dataset(name: str, source: DataFile, base: Path, task: Task, *, labels: Labels, classes: Iterable[str] = ()) -> Dataset:
    """A user's data set, with its fields checked against the task.

    Args:
        name: what the data set is for.
        source: file, fields and filter.
        base: where relative paths count from.
        task: decides which fields a row needs.
        labels: whether each row needs what is right for it, may have it, or is read without.
        classes: the model's classes; for text classification a label may also be the number of a class.

    Raises:
        DataError: the file is missing, not of a known form, empty, or a row lacks a field; names the row and the fields that are there.
    """
    path = base / source.file
    vectors = task in {Task.SENTENCE_SIMILARITY, Task.FEATURE_EXTRACTION}
    retrieval = vectors and (labels == "required" or (labels == "optional" and source.corpus is not None))
    if retrieval and source.corpus is None:
        raise DataError(f"The {name} data for {task} needs a corpus.", why="a query is right when it finds its answer among texts",
                        hint=f'add corpus = "answers.jsonl" (fields id, text) beside file in [data.{name}]')
    rows: dict[str, Row] = {}
    if source.corpus is not None and retrieval:
        corpus = base / source.corpus
        for record in records(corpus, {}):
            row = Row(id=record.need("id"), text=record.need("text"), role="document")
            if row.id in rows:
                raise DataError(f"{corpus}: row {record.number} has the id '{row.id}' of an earlier row.")
            rows[row.id] = row
    known = frozenset(rows)
    names = tuple(classes)
    examples = []
    for record in _chosen(records(path, source.fields, source.format), source, path):
        row = Row(id=f"{name}-{record.number - 1}", text="", role=source.role)
        if task is Task.QUESTION_ANSWERING:
            row = row.model_copy(update={"text": record.need("question"), "text_pair": record.need("context")})
        elif task is Task.TEXT_GENERATION:
            row = row.model_copy(update=_written(record))
        elif retrieval:
            row = row.model_copy(update={"text": record.need("text"), "role": "query", "label": record.need("answer")})
            if row.label not in known:
                raise DataError(f"{path}: row {record.number} has the answer '{row.label}', which is not in {source.corpus}.")
        else:
            row = row.model_copy(update={"text": record.need("text"), "text_pair": record.get("text_pair")})
            field = "entities" if task is Task.TOKEN_CLASSIFICATION else "label"
            if not vectors and (labels == "required" or (labels == "optional" and record.value(field) is not None)):
                truth = _entities(record, row.text, names) if field == "entities" else _class_label(record, names)
                row = row.model_copy(update={field: truth})
        examples.append(row)
    if not examples:
        raise DataError(f"{path} has no rows{' where ' + str(source.where) if source.where else ''}.")
    return Dataset(name=name, rows=(*rows.values(), *examples), origin=str(source.file))


def joined(name: str, parts: Sequence[Dataset]) -> Dataset:
    """Several data sets as one."""
    rows = [row.model_copy(update={"id": f"{name}-{number}"}) for number, row in enumerate(row for part in parts for row in part.rows)]
    return Dataset(name=name, rows=tuple(rows), origin=", ".join(dict.fromkeys(part.origin for part in parts)))


def read_texts(path: Path) -> Dataset:
    """A user's unlabelled texts: one per line, or the fields ``text`` and ``text_pair``, or ``question`` and ``context``, of a table.

    Raises:
        DataError: the file is missing or has no texts.
    """
    rows = []
    for record in records(path, {}):
        if record.value("messages") is not None:
            rows.append(Row(id=f"texts-{record.number - 1}", **_written(record)))
            continue
        asked = record.get("text") is None and record.get("question") is not None
        text, pair = ("question", "context") if asked else ("text", "text_pair")
        rows.append(Row(id=f"texts-{record.number - 1}", text=record.need(text), text_pair=record.get(pair)))
    if not rows:
        raise DataError(f"{path} has no texts.")
    return Dataset(name="texts", rows=tuple(rows), origin=str(path))


def _chosen(found: list[Record], source: DataFile, path: Path) -> Iterator[Record]:
    """The records that fulfil `where`."""
    for column in source.where:
        if found and not any(column in record.columns for record in found):
            raise DataError(f"{path} has no field '{column}', which `where` asks for.",
                            why=f"its fields are {', '.join(found[0].columns)}")
    return (record for record in found if all(str(record.columns.get(column)) == value for column, value in source.where.items()))


def _written(record: Record) -> dict[str, Any]:
    """The text or the conversation of a row for text generation."""
    stated = record.value("messages")
    if stated is None:
        return {"text": record.need("text")}
    try:
        messages = tuple(Message.model_validate(message) for message in stated)
    except (ValidationError, TypeError) as exc:
        raise DataError(f"{record.path}: row {record.number} has messages that cannot be read.",
                        why='wanted is a list of objects such as {"role": "user", "content": "Hello"}; roles are system, user and assistant') from exc
    if not messages:
        raise DataError(f"{record.path}: row {record.number} has no messages.")
    return {"text": "\n".join(message.content for message in messages), "messages": messages}


def _class_label(record: Record, classes: Sequence[str]) -> str:
    label = record.need("label")
    if not classes or label in classes:
        return label
    if label.isdigit() and int(label) < len(classes):
        return classes[int(label)]
    raise DataError(f"{record.path}: row {record.number} has the label '{label}', which the model does not know.",
                    why=f"its classes are {', '.join(classes)}")


def _entities(record: Record, text: str, classes: Sequence[str]) -> tuple[Entity, ...]:
    record.need("entities")
    names = {name for label in classes for _, _, name in entity_runs([label])}
    try:
        found = tuple(Entity.model_validate(entity) for entity in record.value("entities"))
    except (ValidationError, TypeError) as exc:
        raise DataError(f"{record.path}: row {record.number} has entities that cannot be read.",
                        why='wanted is a list of objects such as {"start": 0, "end": 5, "label": "PER"}, in characters') from exc
    for entity in found:
        if not 0 <= entity.start < entity.end <= len(text):
            raise DataError(f"{record.path}: row {record.number} has an entity from {entity.start} to {entity.end}, outside of its text.",
                            why=f"the text has {len(text)} characters")
        if names and entity.label not in names:
            raise DataError(f"{record.path}: row {record.number} has an entity '{entity.label}', which the model does not know.",
                            why=f"its entities are {', '.join(sorted(names))}")
    return found
