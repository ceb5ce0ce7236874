"""What flows along the edges of the graph: kinds, specs, trees and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Base of every schema: immutable, and a key that nobody declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Kind(StrEnum):
    """The type of an edge in the graph."""

    SOURCE = "source"
    CHECKPOINT = "checkpoint"
    SAVED_MODEL = "saved-model"
    DATASET = "dataset"
    ONNX = "onnx"
    TFLITE = "tflite"
    LITERTLM = "litertlm"
    PAYLOAD = "payload"
    EVIDENCE = "evidence"


class Task(StrEnum):
    """What a model is for; the names are those of the Hugging Face hub."""

    FEATURE_EXTRACTION = "feature-extraction"
    SENTENCE_SIMILARITY = "sentence-similarity"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"
    FILL_MASK = "fill-mask"
    TEXT_GENERATION = "text-generation"


class Blob(Model):
    """One stored file."""

    digest: str
    size: int


class Spec(Model):
    """What is known of an artifact, before it exists (predicted) or after (measured).

    Attributes:
        kind: the type of the artifact.
        task: what the model is for; None for data.
        architecture: Transformers' ``model_type``, such as ``bert``.
        precision: ``float32`` or the name of a quantization preset.
        bytes: size of all files; None where it can't be predicted.
        parameters: number of unique weights (a tied weight counts once).
        lengths: static sequence lengths, one signature each; empty where the length is dynamic.
        facts: further findings of the step, as plain JSON.
    """

    kind: Kind
    task: Task | None = None
    architecture: str | None = None
    precision: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    lengths: tuple[int, ...] = ()
    facts: dict[str, Any] = {}

    def require_task(self) -> Task:
        """The task, of an artifact that must have one."""
        if self.task is None:
            raise ValueError(f"a {self.kind} without a task")
        return self.task


class Artifact(Model):
    """A tree of files (name → blob) and what is known of it."""

    tree: dict[str, Blob]
    spec: Spec

    @property
    def digest(self) -> str:
        """Digest of names and contents; the spec does not enter."""
        return digest_json({name: blob.digest for name, blob in self.tree.items()})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(blob.size for blob in self.tree.values())


def digest_bytes(data: bytes) -> str:
    """SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no blanks, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value).encode())


def tree_digest(files: Mapping[str, str]) -> str:
    """Digest of a tree given as name → content digest; equal to :attr:`Artifact.digest` of the same files."""
    return digest_json(dict(files))
