"""What a TensorFlow SavedModel or a Keras file is, with the tokenizer beside it: read from its small files, without TensorFlow."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeexport.architectures import ENCODERS
from edgeexport.artifact import Kind, Spec, Task
from edgeexport.checkpoint import KEPT, WEIGHTS, WEIGHTS_INDEX, Checkpoint
from edgeexport.errors import CheckpointError
from edgeexport.recipe import ModelSection
from edgeexport.saved_model_signature import KERAS_SUFFIX, SAVED_MODEL_FILE, Signature, read_signature
from edgeexport.session.tasks import output_names
from edgeexport.session.text import TextSpec
from edgeexport.text_settings import VECTOR_TASKS

ARCHITECTURE = "saved-model"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# A Keras input is float32 unless told otherwise, and its embedding casts; token ids survive that.
INPUT_DTYPES = (None, "int32", "int64", "float32")
LABELLED = frozenset({Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION})

# Operators that read or write files, or run Python, which a model of text has no use for. A SavedModel is a program, so one that has any is
# refused. (Saver functions, which every SavedModel has and nobody calls here, use others.)
REACHING_OUT = ("ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc", "PrintV2", "WholeFileReaderV2",
                "TextLineReaderV2", "TFRecordReaderV2", "FixedLengthRecordReaderV2", "TextLineDataset", "TFRecordDataset",
                "FixedLengthRecordDatasetV2", "SaveDataset", "SaveDatasetV2", "LoadDataset", "CreateSummaryFileWriter", "DebugIdentity",
                "DebugIdentityV2")

# Files of a SavedModel; what else belongs to the source are the tokenizer, config and licence, as in a checkpoint.
MODEL_FILES = re.compile(r"saved_model\.pb|fingerprint\.pb|keras_metadata\.pb|variables/[^/]+|assets/.+")


@dataclass(frozen=True)
class SavedModel:
    """A directory with a model of TensorFlow; to the planner it is what a :class:`~edgeexport.checkpoint.Checkpoint` is.

    Attributes:
        name: how messages call it.
        path: the directory.
        file: ``saved_model.pb``, or the name of the Keras file.
        sizes: name → bytes of every file that belongs to it.
        signature: what it takes and gives.
    """

    name: str
    path: Path
    file: str
    sizes: dict[str, int]
    signature: Signature

    @property
    def loader(self) -> str:
        """The step that takes such a source in."""
        return "load_checkpoint"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The `config.json`; empty where there is none."""
        return self.json("config.json")

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file beside the model; empty where there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        return Checkpoint(self.name, self.path, self.sizes, {}).json(name)

    @property
    def chat_template(self) -> bool:
        """Whether there is one; a SavedModel is no language model."""
        return False

    @property
    def licence(self) -> str | None:
        """The licence that the front matter of a README.md states, as it states it."""
        return Checkpoint(self.name, self.path, self.sizes, {}).licence

    @property
    def fixed_length(self) -> int | None:
        """The only length that can be a bucket, in tokens; None where any can."""
        return self.signature.fixed_length

    def task(self, wanted: Task | None) -> Task:
        """The task to build for: the wanted one, else the one that `config.json` states.

        Raises:
            CheckpointError: neither says.
        """
        stated = wanted or self.config.get("task")
        if stated not in list(Task):
            what = f"{self.name} does not say what it is for." if stated is None else f"{self.name}: unknown task '{stated}'."
            raise CheckpointError(what, why=f"known tasks: {', '.join(Task)}",
                                  hint='put task = "…" below [model] in the recipe')
        if stated == Task.TEXT_GENERATION:
            raise CheckpointError(f"{self.name} cannot be built for {Task.TEXT_GENERATION}.", why="a SavedModel has no cache for what it has read",
                                  hint="name the checkpoint that it was made from as source")
        return Task(stated)

    def pooling(self, task: Task) -> str | None:
        """``none`` where the model gives one vector for each token; None where it gives one for the text, or none at all."""
        if task is not Task.FEATURE_EXTRACTION:
            return None
        outputs = self.signature.outputs
        shape = next(iter(outputs.values())).shape if len(outputs) == 1 else None
        unnamed = "sentence_embedding" not in outputs and shape is not None and len(shape) == 3
        return "none" if "token_embeddings" in outputs or unnamed else None

    def labels(self, task: Task) -> list[str]:
        """The names of the classes, in the order of the logits; empty where the task has none.

        Raises:
            CheckpointError: their number is known from nowhere, or differs from what the model gives.
        """
        if task not in LABELLED:
            return []
        mapping = self.config.get("id2label") or {}
        named = [str(mapping[key]) for key in sorted(mapping, key=int)]
        shape = self.signature.outputs[self.signature.bind_outputs(("logits",))["logits"]].shape
        classes = shape[-1] if shape else None
        if not named and classes is None:
            raise CheckpointError(f"{self.name} does not say which classes it knows.",
                                  hint='put them into config.json beside the model: {"id2label": {"0": "…", "1": "…"}}')
        if named and classes not in {None, len(named)}:
            raise CheckpointError(f"{self.name}: config.json names {len(named)} classes, the model gives {classes}.",
                                  why=f"{self.signature.source}: logits have the shape {list(shape or ())}", hint="correct id2label")
        return named or [f"LABEL_{number}" for number in range(classes or 0)]

    def spec(self, section: ModelSection) -> Spec:
        """The artifact spec, for the task that the recipe or `config.json` states; the parameters are counted by who loads it.

        Raises:
            CheckpointError: any reason not to go on.
        """
        task = self.task(section.task)
        self.refuse_reaching_out()
        self.require_tokenizer()
        check_inputs(self.name, self.signature)
        self.signature.bind_outputs(output_names(task.value, self.pooling(task)))
        return Spec(kind=Kind.SAVED_MODEL, task=task, architecture=ARCHITECTURE, precision="float32", bytes=sum(self.sizes.values()),
                    facts={"labels": self.labels(task), "licence": self.licence, "problem_type": self.config.get("problem_type"),
                           "vocabulary": self.config.get("vocab_size"), "fixed_length": self.fixed_length})

    def refuse_reaching_out(self) -> None:
        """Raises CheckpointError where the graph has an operator that reaches beyond the model. (Keras files are loaded in safe mode.)"""
        if self.file != SAVED_MODEL_FILE:
            return
        graph = (self.path / self.file).read_bytes()
        # A node of the graph holds its operator's name as field 2, a string: tag, length, bytes. Source: tensorflow's node_def.proto.
        found = next((name for name in REACHING_OUT if b"\x12" + bytes([len(name)]) + name.encode() in graph), None)
        if found is not None:
            raise CheckpointError(f"{self.name} has the operator {found}.", why="it reaches files or runs code when the model does",
                                  hint="save the model again without it")

    def require_tokenizer(self) -> None:
        """Raises CheckpointError where there is no `tokenizer.json`."""
        if "tokenizer.json" not in self.sizes:
            raise CheckpointError(f"{self.name} has no tokenizer.json.",
                                  why="what a text means to the model is part of it, and neither a SavedModel nor a Keras file says it",
                                  hint="put tokenizer.json beside the model: tokenizers.Tokenizer.save, or Transformers' save_pretrained")

    def text_spec(self, section: ModelSection) -> TextSpec:
        """How text becomes this model's inputs, each value with the file it was read from; the recipe's values win.

        Pooling and normalization are what the model does itself: a recipe can't change them.

        Raises:
            CheckpointError: a value that the model can't have.
        """
        task, sources = self.task(section.task), {"inputs": self.signature.source}
        own, sources["own_max_length"] = self._own_max_length()
        longest = section.max_length or own
        if longest > own:
            raise CheckpointError(f"{self.name} reads at most {own} tokens ({sources['own_max_length']}), not {longest}.",
                                  hint="lower model.max_length in the recipe")
        sources["max_length"] = "recipe" if section.max_length else sources["own_max_length"]
        if task in VECTOR_TASKS:
            sources["pooling"] = sources["normalize"] = "the model's own; the recipe has no say"
        for key in ("query_prefix", "document_prefix"):
            if getattr(section, key):
                sources[key] = "recipe"
        pad_id, sources["pad_id"] = self._pad_id()
        # The mask is always made: a model that does not take it has its own sign of padding, which is the padding id.
        inputs = tuple(name for name in INPUTS if name != "token_type_ids" or name in self.signature.inputs)
        return TextSpec(max_length=longest, own_max_length=own, pad_id=pad_id, inputs=inputs, pooling=self.pooling(task),
                        query_prefix=section.query_prefix or "", document_prefix=section.document_prefix or "", sources=sources)

    def _own_max_length(self) -> tuple[int, str]:
        limits = []
        if self.fixed_length is not None:
            limits.append((self.fixed_length, self.signature.source))
        if self.config.get("max_length") is not None:
            limits.append((int(self.config["max_length"]), "config.json: max_length"))
        if self.config.get("max_position_embeddings") is not None:
            offset, _ = ENCODERS.get(str(self.config.get("model_type")), (0, False))
            limits.append((int(self.config["max_position_embeddings"]) - offset, "config.json: max_position_embeddings"))
        stated = self.json("tokenizer_config.json").get("model_max_length")
        if stated is not None and stated < 1_000_000:  # "no limit" is stored as a huge number
            limits.append((int(stated), "tokenizer_config.json: model_max_length"))
        return min(limits, default=(512, "default: nothing beside the model states a limit"))

    def _pad_id(self) -> tuple[int, str]:
        if self.config.get("pad_token_id") is not None:
            return int(self.config["pad_token_id"]), "config.json: pad_token_id"
        padding = self.json("tokenizer.json").get("padding") or {}
        if "pad_id" in padding:
            return int(padding["pad_id"]), "tokenizer.json: padding"
        return 0, "default 0"


def is_saved_model(path: Path) -> bool:
    """Whether a source is a Keras file, or a directory with one or with a SavedModel. One with safetensors is a checkpoint."""
    if path.is_file():
        return path.suffix == KERAS_SUFFIX
    if any((path / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX)):
        return False
    return (path / SAVED_MODEL_FILE).is_file() or any(path.glob(f"*{KERAS_SUFFIX}"))


def read_saved_model(path: Path, name: str | None = None) -> SavedModel:
    """The model in a local directory, or a Keras file with its tokenizer beside it.

    Raises:
        CheckpointError: no model, several, or a damaged one.
    """
    name, directory = name or str(path), path if path.is_dir() else path.parent
    file = path.name if path.is_file() else choose_file(name, directory)
    files = {entry.relative_to(directory).as_posix(): entry.stat().st_size for entry in sorted(directory.rglob("*")) if entry.is_file()}
    model_file = re.compile(re.escape(file)) if file != SAVED_MODEL_FILE else MODEL_FILES
    sizes = {entry: size for entry, size in files.items() if KEPT.fullmatch(entry) or model_file.fullmatch(entry)}
    return SavedModel(name, directory, file, sizes, read_signature(directory, file))


def choose_file(name: str, directory: Path) -> str:
    """The file of a directory that is the model: `saved_model.pb`, else its only Keras file.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    if (directory / SAVED_MODEL_FILE).is_file():
        return SAVED_MODEL_FILE
    found = sorted(file.name for file in directory.glob(f"*{KERAS_SUFFIX}"))
    if len(found) != 1:
        raise CheckpointError(f"{name} has {len(found) or 'no'} model files.",
                              why=", ".join(found) or f"neither {SAVED_MODEL_FILE} nor a {KERAS_SUFFIX} file is there",
                              hint="name the file itself as the source" if found else None)
    return found[0]


def check_inputs(name: str, signature: Signature) -> None:
    """Check that a session can feed the model.

    Raises:
        CheckpointError: an input that is not known, not there, or not of the right type or shape.
    """
    unknown = [given for given in signature.inputs if given not in INPUTS]
    if unknown or "input_ids" not in signature.inputs:
        what = f"{name} has the unknown input '{unknown[0]}'." if unknown else f"{name} has no input 'input_ids'."
        raise CheckpointError(what, why=f"{signature.source} takes {', '.join(sorted(signature.inputs))}; known are {', '.join(INPUTS)}",
                              hint='name the inputs so, for example keras.Input((None,), dtype="int32", name="input_ids")')
    for given, info in signature.inputs.items():
        if info.dtype not in INPUT_DTYPES:
            raise CheckpointError(f"{name}: the input '{given}' is of type {info.dtype}.", why="token ids and masks are int32 or int64",
                                  hint="give the model tokens: its tokenizer goes into tokenizer.json")
        shape = info.shape
        if shape is not None and (len(shape) != 2 or shape[0] not in {None, 1} or shape[1] not in {None, signature.fixed_length}):
            raise CheckpointError(f"{name}: the input '{given}' has the shape {list(shape)}.",
                                  why="it must be [batch, length], with a batch of 1 or any, and one length for all inputs")
