"""A recipe: the TOML file in which a user says what to build. `edgeexport init` writes a commented one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from edgeexport.artifact import Model, Task, digest_json
from edgeexport.errors import RecipeError
from edgeexport.policy import Override, Policy, Ranges, preset
from edgeexport.target import Budget, Lane, Name
from edgeexport.toml_file import read_toml, validated

RECIPE_FILE = "edgeexport.toml"

Pooling = Literal["none", "mean", "cls", "max", "mean_sqrt_len", "lasttoken"]


class ModelSection(Model):
    """Where the checkpoint is, and what the checkpoint's own files leave open or get wrong."""

    source: str = Field(description="Hub id, directory, or package:NAME/PATH.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    base: str | None = Field(None, description="Of an adapter: another base model than it names, as source; default: the one it names.")
    base_revision: str | None = Field(None, description="Branch, tag or commit of a base model that is a hub id.")
    task: Task | None = None
    max_length: int | None = Field(None, gt=2, description="Longest text in tokens; default: the model's own. Of a language model, the context.")
    pooling: Pooling | None = None
    normalize: bool | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None


class ExportSection(Model):
    """How the graphs are made."""

    lengths: tuple[int, ...] | None = Field(None, description="Length buckets of TFLite, one signature each, in tokens; of a language model, "
                                                                "the lengths of a prompt's pieces.")
    opset: int = Field(18, ge=18, le=23, description="ONNX opset.")


class Precision(Model):
    """A preset, and overrides to it."""

    preset: str
    overrides: tuple[Override, ...] = ()
    ranges: Ranges = Field("minmax", description="How static activation ranges are read from calibration values.")
    smoothing: float | None = Field(None, ge=0, le=1, description="How much of the outliers of activations moves into the weights: of static ones, "
                                                                  "and of a language model's in TFLite, where it is 0.5 unless you say otherwise.")


class PrecisionSection(Model):
    """Another precision than the target's lanes declare, by format or by lane; a lane's wins."""

    onnx: Precision | None = None
    tflite: Precision | None = None
    lanes: dict[str, Precision] = {}


class VocabularySection(Model):
    """A smaller vocabulary: the tokens that the texts need, and whatever keeps every text readable."""

    size: int = Field(gt=0, description="Tokens to keep, at most.")


class EmbeddingsSection(Model):
    """A smaller table of token vectors that keeps every token: in two factors."""

    rank: int = Field(gt=0, description="Numbers a token has in the table; a matrix makes the model's width of them.")


class PruneSection(Model):
    """Parts taken out of the model: what counts least on the training data."""

    layers: int | None = Field(None, ge=1, description="Layers to keep.")
    heads: float = Field(1.0, gt=0, le=1, description="Share of the attention heads to keep, over all layers.")
    neurons: float = Field(1.0, gt=0, le=1, description="Share of the neurons in feed-forward networks to keep, over all layers.")
    importance: Literal["gradient", "magnitude"] = Field("gradient", description="By gradients on the training data, or by weights alone.")


class DistillSection(Model):
    """Training towards the original's answers; weights of the parts of the loss, of which 0 leaves one out."""

    epochs: float = Field(4.0, gt=0, description="Passes over the training data.")
    batch: int = Field(32, ge=1, description="Texts a step; default for language models 8.")
    learning_rate: float = Field(3e-4, gt=0)
    patience: int = Field(4, ge=1, description="End after so many evaluations on the development data without progress.")
    seed: int = 0
    embeddings: bool = Field(False, description="Train the table of token vectors too.")
    quantization_aware: bool = Field(False, description="Compute with weights and activations rounded as static INT8 rounds them.")
    answers: float | None = Field(None, ge=0, description="The answers: vectors, or distributions over classes; default 1, and 4 where each word "
                                                          "has one.")
    similarities: float | None = Field(None, ge=0, description="Similarities to other texts, for vectors; default 0.1 for them.")
    hidden: float | None = Field(None, ge=0, description="Hidden states; default 1, 0.2 where answers are vectors, and 0 for language models.")
    hidden_after: tuple[float, ...] = Field((1.0,), min_length=1, description="After which shares of the layers hidden states are compared.")
    relations: float = Field(0.0, ge=0, description="Attention relations of the last layers.")
    labels: float | None = Field(None, ge=0, description="The labels of the training data; default 0.5 where there are some.")


class CompressSection(Model):
    """How the checkpoint is made smaller before it is exported, in this order."""

    vocabulary: VocabularySection | None = None
    embeddings: EmbeddingsSection | None = None
    prune: PruneSection | None = None
    reconstruct: bool = Field(True, description="Fit the layers that are left to what the original's hand on, where there are training data.")
    distill: DistillSection | None = None

    @property
    def changes_model(self) -> bool:
        """Whether another model than the original is exported."""
        return any((self.vocabulary, self.embeddings, self.prune, self.distill))


class DataFile(Model):
    """A file with one row per example: .jsonl, .csv, .tsv, .conll, or .txt with one text per line.

    Attributes:
        file: path; relative ones count from the recipe's directory.
        corpus: for retrieval, a second file with the texts to be found (fields ``id`` and ``text``).
        format: the file's form, where its name does not end with it.
        fields: our field name → the file's. Ours are ``text``, ``text_pair``, ``label``, ``entities``, ``question``, ``context``, and
            ``answer`` (retrieval: the id of the right corpus row).
        where: column → value; other rows are left out.
        role: whether the texts are queries or documents, where the model tells them apart.
        skip_overlap: leave out rows that are in the data that this set must not share texts with, instead of refusing the set.
    """

    file: Path
    corpus: Path | None = None
    fields: dict[str, str] = {}
    where: dict[str, str] = {}
    format: Literal["jsonl", "csv", "tsv", "txt", "conll"] | None = None
    role: Literal["query", "document"] | None = None
    skip_overlap: bool = False


class DataSection(Model):
    """The data: what judges the model, what chooses, and what shapes it."""

    texts: Path | None = Field(None, description="Unlabelled texts of yours on which parity is measured too.")
    evaluation: DataFile | None = Field(None, description="Labelled data; judges, and may shape nothing.")
    development: DataFile | None = Field(None, description="Labelled data that choose: when training ends, which candidate wins.")
    training: tuple[DataFile, ...] = Field((), description="Texts, labelled or not, by which the model is pruned and distilled.")
    calibration: DataFile | None = Field(None, description="Texts for activation ranges of static INT8.")

    @field_validator("training", mode="before")
    @classmethod
    def _one_is_many(cls, value: object) -> object:
        """One table means the same as a list of one."""
        return (value,) if isinstance(value, dict) else value


class MetricSection(Model):
    """The task metric's margin."""

    max_drop: float = Field(0.02, gt=0, lt=1, description="Largest loss against the float32 original, as a share (0.02 = 2 points).")


class Recipe(Model):
    """What to build."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Name
    model: ModelSection
    compress: CompressSection = CompressSection()
    export: ExportSection = ExportSection()
    precision: PrecisionSection = PrecisionSection()
    data: DataSection = DataSection()
    metric: MetricSection = MetricSection()
    parity: dict[str, FiniteFloat] = Field(default={}, description="Margins other than the defaults; see the README's table.")
    budget: Budget = Budget()
    directory: Path = Field(default=Path(), exclude=True, description="Where relative paths count from; not a key of the file.")

    @model_validator(mode="after")
    def _lengths_fit(self) -> Recipe:
        lengths, longest = self.export.lengths, self.model.max_length
        if lengths is not None:
            if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 3:
                raise ValueError(f"export.lengths must rise and start at 3 or more, got {list(lengths)}")
            if longest is not None and lengths[-1] != longest and self.model.task is not Task.TEXT_GENERATION:
                raise ValueError(f"export.lengths ends at {lengths[-1]}, but model.max_length is {longest}")
        return self

    def precision_of(self, lane: Lane) -> Precision:
        """What the recipe says of a lane, else of the form of its model, else what the lane itself says."""
        return self.precision.lanes.get(lane.name) or getattr(self.precision, lane.model_format) or Precision(preset=lane.precision)

    def policy(self, lane: Lane) -> tuple[str, Policy]:
        """Name and value of the policy for a lane, by :meth:`precision_of`.

        The name is the preset's; with overrides, a digest of the policy is appended, so that different variants have different names.

        Raises:
            UnknownName: no such preset.
            """
        chosen = self.precision_of(lane)
        policy = preset(lane.model_format, chosen.preset)
        if chosen.overrides or (chosen.ranges, chosen.smoothing) != (policy.ranges, policy.smoothing):
            policy = Policy(default=policy.default, overrides=policy.overrides + chosen.overrides, ranges=chosen.ranges, smoothing=chosen.smoothing)
            return f"{chosen.preset}-{digest_json(policy.model_dump())[:6]}", policy
        return chosen.preset, policy


def load_recipe(path: Path) -> Recipe:
    """The recipe in a file.

    Raises:
        RecipeError: it can't be read or is not valid; names the key and the nearest valid one.
    """
    if path.is_dir():
        path = path / RECIPE_FILE
    if not path.is_file():
        raise RecipeError(f"There is no recipe {path}.", hint="`edgeexport init MODEL` writes one")
    recipe = read_toml(path, Recipe, RecipeError)
    if "directory" in recipe.model_fields_set:
        raise RecipeError(f"Unknown key 'directory' in {path}.")
    return recipe.model_copy(update={"directory": path.parent.absolute()})


def recipe_for(source: str, **sections: object) -> Recipe:
    """A recipe for a bare model name, as `edgeexport build MODEL` uses it."""
    stem = source.rstrip("/").split("/")[-1].lower().removesuffix(".gguf") or "model"
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem).strip("._-") or "model"
    data = {"schema": 1, "name": name, "model": {"source": source}} | sections
    return validated(data, Recipe, RecipeError, "the command line").model_copy(update={"directory": Path.cwd()})
