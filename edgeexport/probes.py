"""The probe set that ships with the product: texts that show a wrong tokenizer, mask, bucket or weight, for any model."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from edgeexport.artifact import Task
from edgeexport.dataset import Dataset, Message, Row
from edgeexport.records import read_records

# Of the texts a language model gets one in so many; of those up to SHORT characters more, as they are read fast and prove as much as others.
ONE_IN, SHORT_ONE_IN, SHORT = 5, 2, 100
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


def generation_probes(*, conversations: bool) -> Dataset:
    """The probe set for text generation: texts to be read, one of them longer than any context, and prompts to be gone on with.

    Reading costs a language model much more than an encoder, so it gets some of the texts.

    Args:
        conversations: whether the model was trained on them: then prompts are what a user says, and some have been answered before.
    """
    folder = Path(str(importlib.resources.files("edgeexport.data"))) / "probes"
    texts = [Row(id=record["id"], text=record["text"]) for record in read_records(folder / "texts.jsonl")]
    rows = [row for number, row in enumerate(texts) if row.text.strip() and number % (SHORT_ONE_IN if len(row.text) <= SHORT else ONE_IN) == 0]
    rows.append(Row(id="long", text="\n\n".join(row.text for row in texts)))
    for record in read_records(folder / "prompts.jsonl"):
        messages = tuple(Message(role=role, content=content) for role, content in record["messages"])
        if conversations:
            rows.append(Row(id=record["id"], text="\n".join(message.content for message in messages), messages=messages))
        elif len(messages) == 1:
            rows.append(Row(id=record["id"], text=messages[0].content, role="prompt"))
    return Dataset(name="probes", rows=tuple(rows), origin=ORIGIN)


def hide_word(text: str, mask_token: str) -> str:
    """The text with its middle word (of the first twenty, so that no cut hides it) replaced by the mask token."""
    words = text.split()
    words[min(len(words), 20) // 2] = mask_token
    return " ".join(words)
