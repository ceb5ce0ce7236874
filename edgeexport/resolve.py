"""From what a recipe names to what is there: the reading of files and hubs that comes before a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeexport.artifact import Spec, Task
from edgeexport.checkpoint import Checkpoint
from edgeexport.dataset import Dataset, read_dataset, read_texts
from edgeexport.errors import DataError, LineageError
from edgeexport.probes import probe_set
from edgeexport.recipe import Recipe
from edgeexport.saved_model import SavedModel
from edgeexport.session.text import TextSpec
from edgeexport.source import Leaf, resolve_checkpoint
from edgeexport.store import Store

# Data sets that judge; whatever shapes a model must share no text with the evaluation data.
JUDGING = ("probes", "texts", "evaluation")


@dataclass(frozen=True)
class Resolved:
    """A recipe with everything it names found and digested.

    Attributes:
        recipe: the recipe.
        source: the checkpoint's files.
        spec: what the checkpoint is.
        text: how text becomes its inputs.
        datasets: name → rows: ``probes``, and ``texts``, ``evaluation``, ``calibration`` where the recipe has them.
        leaves: the same data sets as inputs of the graph.
    """

    recipe: Recipe
    source: Leaf
    spec: Spec
    text: TextSpec
    datasets: dict[str, Dataset]
    leaves: dict[str, Leaf]

    @property
    def judging(self) -> tuple[str, ...]:
        """The data sets on which the lanes are compared with the reference."""
        return tuple(name for name in JUDGING if name in self.datasets)


def resolve(recipe: Recipe, store: Store, texts: Path | None = None, *, trusted: bool = False) -> Resolved:
    """Find and check everything that a recipe names.

    Args:
        recipe: the recipe.
        store: remembers digests, and takes the data sets in.
        texts: unlabelled texts given on the command line; they replace the recipe's.
        trusted: whether code that the checkpoint brings along may be run.

    Raises:
        CheckpointError: the model can't be built.
        DataError: a data set can't be read.
        LineageError: evaluation data, or a copy of it, would shape the model.
    """
    section = recipe.model
    checkpoint, source = resolve_checkpoint(section.source, section.revision, recipe.directory, store, trusted=trusted)
    spec, text = checkpoint.spec(section), checkpoint.text_spec(section)
    datasets = read_datasets(recipe, spec, checkpoint, texts)
    refuse_leaks(datasets)
    return Resolved(recipe, source, spec, text, datasets, {name: dataset.leaf(store) for name, dataset in datasets.items()})


def read_datasets(recipe: Recipe, spec: Spec, checkpoint: Checkpoint | SavedModel, texts: Path | None) -> dict[str, Dataset]:
    """All data sets of a build, the shipped probe set among them."""
    task, data, base = spec.require_task(), recipe.data, recipe.directory
    found = {"probes": probe_set(task, mask_token(checkpoint) if task is Task.FILL_MASK else None)}
    if texts is not None or data.texts is not None:
        found["texts"] = read_texts(texts if texts is not None else base / str(data.texts))
        if task is Task.QUESTION_ANSWERING and any(row.text_pair is None for row in found["texts"].rows):
            raise DataError(f"{found['texts'].origin}: a question needs its context.", hint="give a table with the fields text and text_pair")
    if task is Task.FILL_MASK and "texts" in found:
        token = mask_token(checkpoint)
        without = next((row for row in found["texts"].rows if token not in row.text), None)
        if without is not None:
            raise DataError(f"{found['texts'].origin}: a text has no {token}.", why=f"such as {shortened(without.text)!r}",
                            hint=f"put {token} where a word is to be found")
    if data.evaluation is not None:
        found["evaluation"] = read_dataset("evaluation", data.evaluation, base, task, labelled=True, classes=spec.facts["labels"])
    if data.calibration is not None:
        found["calibration"] = read_dataset("calibration", data.calibration, base, task, labelled=False)
    return found


def refuse_leaks(datasets: dict[str, Dataset]) -> None:
    """Refuse a data set that shapes the model and shares texts with the evaluation data.

    Raises:
        LineageError: with the first overlapping examples.
    """
    if "evaluation" not in datasets or "calibration" not in datasets:
        return
    shaping = datasets["calibration"].fingerprints
    shared = [text for print_, text in datasets["evaluation"].fingerprints.items() if print_ in shaping]
    if shared:
        shown = "; ".join(repr(shortened(text)) for text in shared[:3])
        raise LineageError(
            f"{len(shared)} evaluation texts are in the calibration data too.", why=f"a model is not judged by what shaped it: {shown}",
            hint="take them out of [data.calibration]; copies with other case, blanks or punctuation count")


def shortened(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= 60 else text[:57] + "…"


def mask_token(checkpoint: Checkpoint | SavedModel) -> str:
    """The token that hides a word, as the tokenizer's files name it.

    Raises:
        DataError: none is named.
    """
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = checkpoint.json(file).get("mask_token")
        if token:
            return str(token["content"] if isinstance(token, dict) else token)
    raise DataError(f"{checkpoint.name} names no mask token.", why="fill-mask needs one in tokenizer_config.json")


