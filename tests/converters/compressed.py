"""What the tests of pruning and distillation share: data, steps in a row, and Transformers' own model beside a changed one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import TOLERANCE, spread
from edgeexport.converters._task_model import load_model
from reference import Original, pooled
from tiny import CLASSES, TEXTS, Case
from zoo import RUNTIMES, Zoo, as_rows

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
from edgeexport.dataset import Entity, Row
from edgeexport.session import Payload, Session
from edgeexport.step import Context, View

# Of one to about twenty words, and some longer than the tiny models read.
SHORT = tuple(text for text in TEXTS if 1 <= len(text.split()) <= 20)


def rows_for(case: Case, texts: Sequence[str] = SHORT[::12], *, labelled: bool = False) -> list[Row]:
    """Texts as rows of a case's task: with a mask, with a question, or with labels that follow a rule."""
    if case.task is Task.FILL_MASK:
        mask = "[MASK]" if case.architecture in {"bert", "distilbert", "albert", "mobilebert", "electra"} else "<mask>"
        return as_rows([f"{' '.join(text.split()[:4])} {mask} {' '.join(text.split()[5:9])}" for text in texts])
    rows = as_rows(texts)
    if case.task is Task.QUESTION_ANSWERING:
        return [row.model_copy(update={"text": "who is it?", "text_pair": row.text}) for row in rows]
    if labelled and case.task is Task.TEXT_CLASSIFICATION:
        return [row.model_copy(update={"label": CLASSES[len(row.text) % len(CLASSES)]}) for row in rows]
    if labelled and case.task is Task.TOKEN_CLASSIFICATION:
        return [row.model_copy(update={"entities": (Entity(start=0, end=len(row.text.split()[0]), label="PER"),)}) for row in rows]
    return rows


def data_for(zoo: Zoo, case: Case, texts: Sequence[str] = SHORT[::12], *, labelled: bool = False) -> View:
    """The same as an artifact, as a plan has it."""
    view = zoo.dataset("rows", rows_for(case, texts, labelled=labelled))
    return View(view.path, Spec(kind=Kind.DATASET, facts={"labelled": labelled}))


def evidence(zoo: Zoo, file: str, **arrays: np.ndarray) -> View:
    """Arrays as a measuring step leaves them."""
    path = zoo.place("evidence")
    np.savez(path / file, **arrays)
    return View(path, Spec(kind=Kind.EVIDENCE))


def run_again(step: Any, inputs: dict[str, View], out: Path, scratch: Path, **context: Any) -> View:
    """A step in a scratch directory that may hold what was left when it was interrupted."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    scratch.mkdir(exist_ok=True)
    return View(out, step.run(inputs, out, Context(scratch=scratch, threads=1, **context)))


def measured(zoo: Zoo, checkpoint: View, **options: Any) -> View:
    """The importance of a checkpoint's channels by the size of their weights."""
    return zoo.run(find_step("measure_channels")(method="magnitude", **options), {"checkpoint": checkpoint})


def model_of(view: View) -> Any:
    """The model of an artifact as our steps load it."""
    return load_model(view.path, view.spec.require_task(), attention="eager")


def answers_of(model: Any, original: Original, *text: str) -> dict[str, np.ndarray]:
    """What a model makes of the tokens that Transformers makes of a text: float32 arrays by Transformers' names."""
    features = {name: value for name, value in original.tokens(*text).items() if name in original.parameters}
    with torch.no_grad():
        found = model(**features)
    return {name: value.numpy() for name, value in found.items() if name in {"logits", "start_logits", "end_logits", "last_hidden_state"}}


def weights_of(view: View) -> dict[str, torch.Tensor]:
    """The tensors of an artifact's file."""
    from safetensors.torch import load_file

    return load_file(view.path / "model.safetensors")


def assert_exports_equally(zoo: Zoo, view: View, texts: Sequence[tuple[str, ...]], expected: Sequence[dict[str, np.ndarray]],
                           model_format: str) -> None:
    """A changed checkpoint's float32 export answers texts as expected, in its runtime."""
    options = {"lengths": (32,)} if model_format == "tflite" else {}
    exported = zoo.run(find_step(f"export_{model_format}")(**options), {"checkpoint": view})
    session = Session(Payload(zoo.payload(view, exported).path), "v", RUNTIMES[model_format])
    unit = spread(list(expected))
    for text, outputs in zip(texts, expected, strict=True):
        encoded = session.encode(*text)
        for name, value in session.outputs(encoded).items():
            wanted = {"sentence_embedding": lambda outputs=outputs: pooled(outputs["last_hidden_state"][0], "mean")[None],
                      "token_embeddings": lambda outputs=outputs: outputs["last_hidden_state"]}.get(name, lambda: outputs[name])()  # noqa: B023
            real = value[:, :len(encoded.ids)] if value.ndim == 3 or name in {"start_logits", "end_logits"} else value
            assert real.shape == wanted.shape
            assert np.abs(real - wanted).max() <= TOLERANCE * unit
