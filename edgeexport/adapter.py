"""Adapters of PEFT, LoRA and its relatives: what was trained, and the base model that it changes, read from their small files alone.

To the planner the two together are what a :class:`~edgeexport.checkpoint.Checkpoint` is: the model that comes of merging them. Which of
its files are whose is decided here, and so is everything that can be refused before any work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.checkpoint import (
    DOCUMENTS,
    HEADS,
    LABELLED_TASKS,
    TOKENIZER_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
    Checkpoint,
    belongs,
    read_safetensors_header,
)
from edgeexport.errors import CheckpointError
from edgeexport.quantization import Quantization
from edgeexport.text_settings import VECTOR_TASKS

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Files that go together: a tokenizer, and the modules of sentence-transformers. They are all the adapter's, or all the base model's.
TOKENIZER = re.compile(r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|chat_template\.jinja|vocab\.txt|merges\.txt"
                       r"|bpe\.codes|[\w.-]+\.model")
SENTENCE = re.compile(r"(modules|sentence_bert_config|config_sentence_transformers)\.json|[0-9]+_\w+/config\.json")

# Methods that leave the weights as they are: they put something before the text, between the layers, or choose among adapters text by text.
# Source: PEFT 0.21, whose tuners of these types have no merge.
UNMERGEABLE = frozenset({"ADAPTION_PROMPT", "CARTRIDGE", "CPT", "LILY", "MULTITASK_PROMPT_TUNING", "P_TUNING", "POLY", "PREFIX_TUNING",
                         "PROMPT_TUNING", "SHADOW", "XLORA"})

# PEFT's task types. Source: peft.TaskType.
TASK_TYPES = {"SEQ_CLS": Task.TEXT_CLASSIFICATION, "TOKEN_CLS": Task.TOKEN_CLASSIFICATION, "QUESTION_ANS": Task.QUESTION_ANSWERING,
              "FEATURE_EXTRACTION": Task.FEATURE_EXTRACTION, "CAUSAL_LM": Task.TEXT_GENERATION}
# What the modules are called that make a head; PEFT saves them whole beside the adapter. Source: its PeftModelFor… classes.
HEAD_MODULES = {Task.TEXT_CLASSIFICATION: ("classifier", "score"), Task.TOKEN_CLASSIFICATION: ("classifier", "score"),
                Task.QUESTION_ANSWERING: ("qa_outputs",)}
# The last layer of a head, which has a row for each class.
LAST_LAYERS = ("classifier.out_proj.weight", "classifier.weight", "score.weight")
PREFIX = "base_model.model."
# What stands in the names of tensors beside the model's own: matrices that are trained, and second copies of a head.
TRAINED = re.compile(r"\.((lora|oft)_|modules_to_save\.|original_module\.)")
# The parts of an encoder; before them stands its name where it has a head.
BODY = frozenset({"embeddings", "embeddings_project", "encoder", "transformer", "pooler"})
# Classifiers of text that answer through the pooler; no other head does.
POOLED = frozenset({"albert", "bert", "mobilebert"})


@dataclass(frozen=True)
class Adapter(Checkpoint):
    """An adapter's directory, or the small files of one on a hub."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The adapter_config.json.

        Raises:
            CheckpointError: it is damaged, not PEFT's, or of a method that can't be merged.
        """
        settings = self.json(ADAPTER_CONFIG, required=True)
        method = settings.get("peft_type")
        if method is None:
            raise CheckpointError(f"{self.name} is not an adapter of PEFT.", why=f"{ADAPTER_CONFIG} has no peft_type",
                                  hint="bottleneck adapters can't be merged into a model; LoRA and what is like it can")
        if method in UNMERGEABLE:
            raise CheckpointError(f"{self.name}: an adapter of the method {method} cannot be merged into its base model.",
                                  why="it does not change the weights, but what goes through them",
                                  hint="train LoRA, or another method that changes weights")
        # PEFT imports the module that this names, which may be any file that lies about.
        if settings.get("megatron_config"):
            raise CheckpointError(f"{self.name} is an adapter for Megatron.", why=f"{ADAPTER_CONFIG} has a megatron_config",
                                  hint="if that is a left-over, take megatron_config and megatron_core out of the file")
        return settings

    @property
    def base(self) -> str:
        """The base model, as the adapter names it.

        Raises:
            CheckpointError: it names none.
        """
        named = self.settings.get("base_model_name_or_path")
        if not named:
            raise CheckpointError(f"{self.name} does not say which model it adapts.", why=f"{ADAPTER_CONFIG} has no base_model_name_or_path",
                                  hint='name it below [model] in the recipe: base = "…" (a hub id or a directory)')
        return str(named)

    @property
    def has_tokenizer(self) -> bool:
        """Whether it brings a tokenizer of its own."""
        return any(name in self.sizes for name in TOKENIZER_FILES)

    @cached_property
    def saved(self) -> dict[str, list[int]]:
        """Name in the model → shape of the tensors that were saved whole, heads above all."""
        modules = [*(self.settings.get("modules_to_save") or ()), *(name for names in HEAD_MODULES.values() for name in names)]
        shapes = {name.removeprefix(PREFIX): tensor["shape"] for header in self.headers.values() for name, tensor in header.items()
                  if name != "__metadata__"}
        # By the ends of names, as PEFT finds the modules, so that "classifier" stands for DistilBERT's pre_classifier too.
        return {name: shape for name, shape in shapes.items() if name.endswith((".weight", ".bias")) and not TRAINED.search(name)
                and any(part.endswith(tuple(modules)) for part in name.split(".")[:-1])}

    @property
    def classes(self) -> int | None:
        """How many classes the saved head tells apart; None where no such head was saved."""
        return next((self.saved[name][0] for name in LAST_LAYERS if name in self.saved), None)

    def brings_head(self, task: Task) -> bool:
        """Whether the head for a task was saved."""
        return any(name.split(".")[0] in HEAD_MODULES.get(task, ()) for name in self.saved)


@dataclass(frozen=True)
class AdaptedCheckpoint(Checkpoint):
    """A base model with an adapter merged into it.

    Attributes:
        adapter: the adapter.
        base: the base model.
        wanted: the recipe's task.
    """

    adapter: Adapter = field(kw_only=True)
    base: Checkpoint = field(kw_only=True)
    wanted: Task | None = field(kw_only=True)

    def json(self, name: str, *, required: bool = False) -> dict[str, Any]:
        """A JSON file of the one whose it is."""
        return (self.adapter if self._is_adapters(name) else self.base).json(name, required=required)

    def _is_adapters(self, name: str) -> bool:
        """Whether a file is the adapter's, where both may have it."""
        return bool((self.adapter.has_tokenizer and TOKENIZER.fullmatch(name)) or ("modules.json" in self.adapter.sizes and SENTENCE.fullmatch(name)))

    @property
    def dropped(self) -> tuple[str, ...]:
        """The base model's files that the adapter's stand for."""
        return tuple(name for name in self.base.sizes if self._is_adapters(name))

    @property
    def taken(self) -> dict[str, str]:
        """The adapter's files that belong to the merged model → their names there. The base model's licence stays beside the adapter's."""
        taken = {name: name for name in self.adapter.sizes if self._is_adapters(name)}
        for name in filter(DOCUMENTS.fullmatch, self.adapter.sizes):
            path = Path(name)
            taken[name] = f"{path.stem}-adapter{path.suffix}" if name in self.base.sizes else name
        return taken

    @cached_property
    def config(self) -> dict[str, Any]:
        """The base model's config.json with the adapter's head.

        Raises:
            CheckpointError: one is damaged, or they do not fit each other.
        """
        config = self.base.config | {"architectures": self._architectures()}
        own, classes = self.adapter.json("config.json"), self.adapter.classes
        if classes is not None:
            names = own.get("id2label") or self.base.config.get("id2label") or {}
            if own.get("id2label") and len(names) != classes:
                raise CheckpointError(f"{self.name}: config.json names {len(names)} classes, and the saved head has {classes}.",
                                      hint="correct id2label in the adapter's config.json, or take that file away")
            config["id2label"] = names if len(names) == classes else {str(number): f"LABEL_{number}" for number in range(classes)}
        if "problem_type" in own:
            config["problem_type"] = own["problem_type"]
        return config

    def _architectures(self) -> list[str]:
        """The class that the adapter was trained on, as config.json's ``architectures`` would name it.

        Raises:
            CheckpointError: a task type that no encoder has.
        """
        classes = [str(name) for name in self.base.config.get("architectures") or []]
        family = re.sub(r"(For[A-Z]|Model$|LMHead).*", "", classes[0]) if classes else ""
        if self.wanted is not None and self.adapter.brings_head(self.wanted):
            return [f"{family}{HEADS[self.wanted][0]}"]
        stated = self.adapter.settings.get("task_type")
        if stated is not None:
            if stated not in TASK_TYPES:
                raise CheckpointError(f"{self.name}: an adapter of the task type {stated} is not supported.",
                                      why=f"known: {', '.join(TASK_TYPES)}, or none")
            return [f"{family}{HEADS.get(TASK_TYPES[stated], ('Model',))[0]}"]
        trained = (self.adapter.settings.get("auto_mapping") or {}).get("base_model_class")
        return [trained] if trained else self.adapter.json("config.json").get("architectures") or classes

    @property
    def head(self) -> Task:
        """The task of the head that the adapter was trained with, or that of vectors where it was trained without.

        Raises:
            CheckpointError: neither the adapter nor the base model has such a head.
        """
        head = self.task(None)
        if head not in HEAD_MODULES or self.adapter.brings_head(head) or self._base_has(head):
            return head
        raise CheckpointError(f"{self.name} has no trained head for {head}.", why="neither the adapter nor its base model has one",
                              hint='save the adapter with its head: modules_to_save = ["classifier"]')

    def _base_has(self, head: Task) -> bool:
        there = self.base.task(None)
        return there is head or {there, head} <= VECTOR_TASKS

    @property
    def loader(self) -> str:
        """The step that takes the base model in."""
        return self.base.loader

    @property
    def quantization(self) -> Quantization | None:
        """How the base model is quantized."""
        return self.base.quantization

    @property
    def lossy(self) -> str | None:
        """The form of the base model's weights, where they are quantized."""
        return self.base.lossy

    @property
    def weights(self) -> dict[str, int]:
        """Those of the merged model: the base model's encoder, and the head of whom it is."""
        head = self.head
        stored = {inside(name): count for name, count in self.base.weights.items()}
        if not self._base_has(head):
            answers_through_pooler = head in VECTOR_TASKS or (head is Task.TEXT_CLASSIFICATION and self.architecture in POOLED)
            stored = {name: count for name, count in stored.items()
                      if (part := name.split(".")[0]) in BODY and (part != "pooler" or answers_through_pooler)}
        return stored | {inside(name): math.prod(shape) for name, shape in self.adapter.saved.items()}

    @property
    def licence(self) -> str | None:
        """What the model cards state; both, where they differ."""
        own, base = self.adapter.licence, self.base.licence
        return f"{own} (adapter), {base} (base model)" if own and base and own != base else own or base

    @property
    def base_spec(self) -> Spec:
        """The spec of the base model, as it is before merging."""
        lossy = {"lossy_source": self.base.lossy} if self.base.lossy else {}
        return Spec(kind=Kind.CHECKPOINT, task=self.base.task(None), architecture=self.base.architecture, precision="float32",
                    bytes=sum(self.base.sizes.values()), parameters=self.base.parameters, facts={"labels": [], "problem_type": None} | lossy)

    @property
    def merging(self) -> dict[str, Any]:
        """What the step that merges must know besides the spec and the text spec."""
        return {"head": self.head, "labels": self.labels if self.head in LABELLED_TASKS else (), "taken": self.taken, "dropped": self.dropped}


def inside(name: str) -> str:
    """A weight's name below the encoder, such as ``encoder.layer.0…`` for ``bert.encoder.layer.0…``; a head's as it is."""
    first, _, rest = name.partition(".")
    return rest if first not in BODY and rest.split(".")[0] in BODY else name


def adapted(adapter: Adapter, base: Checkpoint, wanted: Task | None) -> AdaptedCheckpoint:
    """The model that comes of merging the two.

    Args:
        adapter: the adapter.
        base: its base model.
        wanted: the recipe's task.
    """
    found = AdaptedCheckpoint(adapter.name, adapter.path, {}, {}, adapter.trusted, adapter=adapter, base=base, wanted=wanted)
    kept = {name: size for name, size in base.sizes.items() if name not in found.dropped}
    return replace(found, sizes=kept | {there: adapter.sizes[name] for name, there in found.taken.items()})


def is_adapter(files: Collection[str]) -> bool:
    """Whether a directory with these files is an adapter; one with a whole model's weights and none of an adapter is a checkpoint."""
    return ADAPTER_CONFIG in files and (ADAPTER_WEIGHTS in files or not {WEIGHTS, WEIGHTS_INDEX} & set(files))


def belongs_to_adapter(file: str, *, trusted: bool) -> bool:
    """Whether a file belongs to an adapter, besides its weights."""
    return file == ADAPTER_CONFIG or belongs(file, trusted=trusted)


def choose_adapter_weights(name: str, files: Collection[str]) -> list[str]:
    """The file with an adapter's weights.

    Raises:
        CheckpointError: there is none, or only a pickled one.
    """
    if ADAPTER_WEIGHTS in files:
        return [ADAPTER_WEIGHTS]
    pickled = next((file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))), None)
    if pickled is not None:
        raise CheckpointError(f"{name} has only pickled weights ({pickled}).", why="loading a pickle can run any code, so it is never done",
                              hint="save it again where you trust it: PeftModel.save_pretrained(…) writes safetensors")
    raise CheckpointError(f"{name} has no weights.", why=f"{ADAPTER_WEIGHTS} is not there")


def read_adapter(path: Path, name: str, *, trusted: bool = False) -> Adapter:
    """The adapter in a local directory.

    Args:
        path: the directory.
        name: how messages call it.
        trusted: whether code that it brings along may be run.

    Raises:
        CheckpointError: no weights, only pickled ones, or damaged ones.
    """
    files = {file.relative_to(path).as_posix(): file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()}
    weights = choose_adapter_weights(name, files)
    sizes = {file: size for file, size in files.items() if file in weights or belongs_to_adapter(file, trusted=trusted)}
    return Adapter(name, path, sizes, {file: read_safetensors_header(path / file) for file in weights}, trusted)
