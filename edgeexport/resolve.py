"""From what a recipe names to what is there: the reading of files and hubs that comes before a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeexport.artifact import Spec, Task
from edgeexport.checkpoint import Checkpoint
from edgeexport.dataset import Dataset, joined, read_dataset, read_texts
from edgeexport.errors import DataError, LineageError
from edgeexport.probes import generation_probes, probe_set
from edgeexport.quantization import Quantization
from edgeexport.recipe import DataFile, Recipe
from edgeexport.saved_model import SavedModel
from edgeexport.session.text import TextSpec
from edgeexport.source import BaseModel, Leaf, resolve_model
from edgeexport.store import Store

# Data sets that judge.
JUDGING = ("probes", "texts", "evaluation")


@dataclass(frozen=True)
class Resolved:
    """A recipe with everything it names found and digested.

    Attributes:
        recipe: the recipe.
        source: the checkpoint's files.
        spec: what the checkpoint is.
        text: how text becomes its inputs.
        datasets: name → rows: ``probes``, and ``texts``, ``evaluation``, ``development``, ``training``, ``calibration`` where the recipe has
            them.
        leaves: the same data sets as inputs of the graph.
        judging: the data sets on which the lanes are compared with the reference.
        beside_original: whether lanes are timed beside the original in float32, so that the ratio does not depend on the machine's moment.
        base: where the source is an adapter, its base model.
        quantization: how the weights are quantized already.
        loader: the step that takes the source in; of an adapter, its base model.
    """

    recipe: Recipe
    source: Leaf
    spec: Spec
    text: TextSpec
    datasets: dict[str, Dataset]
    leaves: dict[str, Leaf]
    judging: tuple[str, ...]
    beside_original: bool = False
    base: BaseModel | None = None
    quantization: Quantization | None = None
    loader: str = "load_checkpoint"

    @property
    def labelled(self) -> str:
        """The data set whose labels judge."""
        return "development" if "development" in self.judging else "evaluation"


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
    source = resolve_model(section, recipe.directory, store, trusted=trusted)
    checkpoint = source.model
    spec, text = checkpoint.spec(section), checkpoint.text_spec(section)
    datasets = read_datasets(recipe, spec, checkpoint, texts)
    leaves = {name: dataset.leaf(store) for name, dataset in datasets.items()}
    return Resolved(recipe, source.leaf, spec, text, datasets, leaves, judging=tuple(name for name in JUDGING if name in datasets),
                    base=source.base, quantization=checkpoint.quantization if isinstance(checkpoint, Checkpoint) else None,
                    loader=checkpoint.loader)


def read_datasets(recipe: Recipe, spec: Spec, checkpoint: Checkpoint | SavedModel, texts: Path | None) -> dict[str, Dataset]:
    """All data sets of a build, the shipped probe set among them.

    Raises:
        DataError: one can't be read.
        LineageError: one shapes the model, and shares texts with one that judges it.
    """
    task, data, base = spec.require_task(), recipe.data, recipe.directory
    found = {"probes": generation_probes(conversations=bool(checkpoint.chat_template)) if task is Task.TEXT_GENERATION else probe_set(
        task, mask_token(checkpoint) if task is Task.FILL_MASK else None)}
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
    classes = spec.facts["labels"]
    if data.evaluation is not None:
        found["evaluation"] = read_dataset("evaluation", data.evaluation, base, task, labels="required", classes=classes)
    if data.development is not None:
        found["development"] = without_leaks(found, [data.development], [
            read_dataset("development", data.development, base, task, labels="optional", classes=classes)])
    if data.training:
        found["training"] = without_leaks(found, data.training, [
            read_dataset("training", file, base, task, labels="optional", classes=classes) for file in data.training])
    if data.calibration is not None:
        found["calibration"] = without_leaks(found, [data.calibration], [
            read_dataset("calibration", data.calibration, base, task, labels="ignored")])
    return found


def without_leaks(found: Mapping[str, Dataset], files: Sequence[DataFile], parts: Sequence[Dataset]) -> Dataset:
    """The parts of a data set as one, which shares no text with the data that judge or choose what it shapes.

    Args:
        found: the data sets that are read already, those that judge first.
        files: what the recipe says of each part.
        parts: their rows.

    Raises:
        LineageError: with the first overlapping examples.
    """
    name = parts[0].name
    kept = []
    for file, part in zip(files, parts, strict=True):
        for other in ("evaluation", "development"):
            if other not in found:
                continue
            judging = found[other].fingerprints
            # A retrieval set may search the same texts: they are given, and it is the questions that are new.
            rows = [row for row in part.rows if row.role != "document" or file.corpus is None]
            shared = {row.id: row.text for row in rows if row.fingerprint in judging}
            if shared and not file.skip_overlap:
                shown = "; ".join(repr(shortened(text)) for text in list(shared.values())[:3])
                raise LineageError(
                    f"{len(shared)} {other} texts are in the {name} data too.", why=f"a model is not judged by what shaped it: {shown}",
                    hint=f"take them out of {part.origin}, or set skip_overlap = true in [data.{name}] to have them left out; "
                         "copies with other case, blanks or punctuation count")
            part = part.model_copy(update={"rows": tuple(row for row in part.rows if row.id not in shared)})
        kept.append(part)
    if not any(part.rows for part in kept):
        raise DataError(f"Nothing is left of the {name} data.", why="all texts are in the data that judge or choose")
    return joined(name, kept) if len(kept) > 1 else kept[0]


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


