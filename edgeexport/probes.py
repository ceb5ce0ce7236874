"""The probe set that ships with the product: texts that show a wrong tokenizer, mask, bucket or weight, for any model."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from edgeexport.artifact import Task
from edgeexport.dataset import Dataset, Row
from edgeexport.records import read_records

ORIGIN = "the probe set that ships with edgeexport"


def probe_set(task: Task, mask_token: str | None = None) -> Dataset:
    """The probe set for a task.

    Args:
        task: question answering gets questions about texts; fill-mask gets texts with one word hidden; the others the texts.
        mask_token: what hides a word, for fill-mask; a text that speaks of the token itself is left out.
    """
    folder = Path(str(importlib.resources.files("edgeexport.data"))) / "probes"
    texts = {record["id"]: record["text"] for record in read_records(folder / "texts.jsonl")}
    if task is Task.QUESTION_ANSWERING:
        rows = [Row(id=record["id"], text=record["question"], text_pair=texts[record["context"]])
                for record in read_records(folder / "questions.jsonl")]
    elif task is Task.FILL_MASK:
        token = mask_token or "[MASK]"
        rows = [Row(id=name, text=hide_word(text, token)) for name, text in texts.items() if text.strip() and token not in text]
    else:
        rows = [Row(id=name, text=text) for name, text in texts.items()]
    return Dataset(name="probes", rows=tuple(rows), origin=ORIGIN)


def hide_word(text: str, mask_token: str) -> str:
    """The text with its middle word (of the first twenty, so that no cut hides it) replaced by the mask token."""
    words = text.split()
    words[min(len(words), 20) // 2] = mask_token
    return " ".join(words)
