"""What a checkpoint is, read from its small files alone: no framework, no weights in memory.

Everything that can be refused before any work is refused here: damaged or pickled weights, an unsupported architecture, a task that
the model has no head for, a tokenizer that is not there.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeexport.architectures import DECODERS, ENCODERS
from edgeexport.artifact import Kind, Spec, Task
from edgeexport.errors import CheckpointError
from edgeexport.quantization import Quantization, count_weights, read_quantization
from edgeexport.recipe import ModelSection
from edgeexport.session.text import TextSpec
from edgeexport.text_settings import text_settings

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

# Files that make a checkpoint, besides its weights. Everything else in the directory (other formats, training state) is left alone.
KEPT = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|modules|sentence_bert_config"
    r"|config_sentence_transformers)\.json|chat_template\.jinja|vocab\.txt|merges\.txt|bpe\.codes|[\w.-]+\.model|[0-9]+_\w+/config\.json"
    r"|(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)[\w.-]*|README\.md",
    re.IGNORECASE,
)
# Of these, the ones that are for people: they change nothing that the model does.
DOCUMENTS = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)[\w.-]*|README\.md", re.IGNORECASE)
# Code that a checkpoint brings along: kept, and run, only where the user trusts it.
CODE = re.compile(r"\w+\.py")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")

HEADS = {
    Task.TEXT_CLASSIFICATION: ("ForSequenceClassification",),
    Task.TOKEN_CLASSIFICATION: ("ForTokenClassification",),
    Task.QUESTION_ANSWERING: ("ForQuestionAnswering",),
    Task.FILL_MASK: ("ForMaskedLM", "ForPreTraining"),
    Task.TEXT_GENERATION: ("ForCausalLM", "LMHeadModel"),
}
# What lies in a layer, by the names of weights that Transformers' models and GGUF files have.
LAYER = re.compile(r"(^|\.)(layer|layers|albert_layers|h|blk)\.\d+\.")
LABELLED_TASKS = frozenset({Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION})
# GPT-2's masks of what comes later, which older files hold beside the weights.
MASK = re.compile(r"(^|\.)h\.\d+\.attn\.(masked_)?bias$")
# Classes of a head of which config.json says nothing. Source: Transformers' PretrainedConfig.num_labels.
UNNAMED_LABELS = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's directory (or the small files of one on a hub) and the sizes of its files.

    Attributes:
        name: how messages call it: the path or hub id.
        path: where the small files are.
        sizes: name → bytes of every file that belongs to the checkpoint.
        headers: weight file → its safetensors header.
        trusted: whether code that it brings along may be run.
    """

    name: str
    path: Path
    sizes: dict[str, int]
    headers: dict[str, dict[str, Any]]
    trusted: bool = False

    @property
    def loader(self) -> str:
        """The step that takes such a source in."""
        return "load_checkpoint"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's `config.json`.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        return self.json("config.json", required=True)

    def json(self, name: str, *, required: bool = False) -> dict[str, Any]:
        """A JSON file of the checkpoint; empty where there is none.

        Raises:
            CheckpointError: it is damaged, or required and missing.
        """
        path = self.path / name
        if not path.is_file():
            if required:
                raise CheckpointError(f"{self.name} has no {name}.",
                                      hint="a checkpoint is a directory with config.json, safetensors and tokenizer files")
            return {}
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as exc:
            raise CheckpointError(f"{self.name}: {name} is not valid JSON.", why=str(exc)) from exc
        return value if isinstance(value, dict) else {"": value}

    @cached_property
    def own_code(self) -> tuple[str, ...]:
        """The classes of its own that the checkpoint wants to be run, such as ``modeling_x.XModel``.

        An architecture of a known name may bring code too, and answer nonsense without it: it is then refused like an unknown one.

        Raises:
            CheckpointError: there are some, and they are not trusted, or not there.
        """
        mapped = [name for file in ("config.json", "tokenizer_config.json") for name in (self.json(file).get("auto_map") or {}).values()]
        classes = tuple(dict.fromkeys(name for names in mapped for name in ([names] if isinstance(names, str) else names) if name))
        if not classes:
            return ()
        if not self.trusted:
            raise CheckpointError(f"{self.name} brings code of its own.", why=f"auto_map names {', '.join(classes)}",
                                  hint="read that code; if you trust it, run it with --trust-remote-code")
        elsewhere = next((name.partition("--")[0] for name in classes if "--" in name), None)
        if elsewhere is not None:
            raise CheckpointError(f"The code of {self.name} lies in another repository, {elsewhere}.", why="it could change unnoticed",
                                  hint=f"make a local copy with its .py files beside config.json and without '{elsewhere}--' in auto_map")
        missing = [file for file in (f"{name.partition('.')[0]}.py" for name in classes) if file not in self.sizes]
        if missing:
            raise CheckpointError(f"{self.name} lacks {missing[0]}.", why="auto_map names it", hint="download the checkpoint again")
        return classes

    @property
    def architecture(self) -> str:
        """Transformers' ``model_type``.

        Raises:
            CheckpointError: it is missing or not supported.
        """
        model_type = self.config.get("model_type")
        if model_type is not None and (self.own_code or model_type in ENCODERS or model_type in DECODERS):
            return str(model_type)
        if model_type is None:
            raise CheckpointError(f"{self.name}: config.json has no model_type.", hint="is this a Transformers checkpoint?")
        raise CheckpointError(f"{self.name}: the architecture '{model_type}' is not supported.",
                              why=f"proven so far: {', '.join((*ENCODERS, *DECODERS))}")

    def task(self, wanted: Task | None) -> Task:
        """The task to build for: the wanted one, if the model has the head for it, else the one its head is for.

        Raises:
            CheckpointError: the model has no head for the wanted task.
        """
        classes = [str(name) for name in self.config.get("architectures") or []]
        # What ELECTRA was pretrained with tells true tokens from replaced ones; it can't fill in a token.
        useful = [name for name in classes if name != "ElectraForPreTraining"]
        if wanted is None:
            # An embedder may be saved with the head of the language model that it was.
            for task, suffixes in HEADS.items():
                if any(name.endswith(suffixes) for name in useful) and not (task is Task.TEXT_GENERATION and self.modules):
                    return task
            return Task.SENTENCE_SIMILARITY if self.modules else Task.FEATURE_EXTRACTION
        suffixes = HEADS.get(wanted, ())
        if suffixes and not any(name.endswith(suffixes) for name in useful):
            raise CheckpointError(
                f"{self.name} cannot do {wanted}.",
                why=f"config.json names {', '.join(classes) or 'no class'}, but the task needs …{suffixes[0]}: its head was never trained",
                hint=f"build it for {self.task(None)}, or fine-tune it first")
        return wanted

    @cached_property
    def modules(self) -> list[dict[str, Any]]:
        """The modules of a sentence-transformers checkpoint; empty for another."""
        modules = self.json("modules.json").get("", [])
        for module in modules:
            if module.get("type", "").rpartition(".")[2] not in {"Transformer", "Pooling", "Normalize"}:
                raise CheckpointError(f"{self.name}: the sentence-transformers module {module.get('type')} is not supported.",
                                      why="supported: Transformer, Pooling, Normalize")
        return list(modules)

    @property
    def quantization(self) -> Quantization | None:
        """How the weights are quantized; None where they are not.

        Raises:
            CheckpointError: in a way that can't be undone here.
        """
        return read_quantization(self.config, self.name)

    @property
    def lossy(self) -> str | None:
        """The form of quantized weights, for a person: what that cost can't be seen; None where they are in floating point."""
        return self.quantization.words if self.quantization else None

    @property
    def weights(self) -> dict[str, int]:
        """Name → number of the floating-point weights that are stored, or stand packed."""
        tensors = {name: tensor for header in self.headers.values() for name, tensor in header.items() if name != "__metadata__"}
        counts = count_weights(tensors, self.quantization)
        # Some files hold what is no weight of its own: GPT-2's masks, and a head that the configuration ties to the table of tokens.
        tied = {"lm_head.weight"} if self.config.get("tie_word_embeddings") else set()
        return {name: count for name, count in counts.items() if name not in tied and not MASK.search(name)}

    @property
    def parameters(self) -> int:
        """Number of stored floating-point weights; a tied weight is stored, and counts, once."""
        return sum(self.weights.values())

    @property
    def shape(self) -> dict[str, int | None]:
        """How many layers there are, how many weights they hold, and how wide a token's vector is: what a prediction of size goes by."""
        inside = sum(count for name, count in self.weights.items() if LAYER.search(name))
        layers = self.config.get("num_hidden_layers", self.config.get("n_layers"))
        return {"layers": layers, "layer_parameters": inside,
                "embedding_width": self.config.get("embedding_size", self.config.get("hidden_size", self.config.get("dim")))}

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of the logits; where config.json names none, Transformers' names for them.

        Raises:
            CheckpointError: the names are not numbered from 0.
        """
        mapping = self.config.get("id2label")
        if not mapping:
            return [f"LABEL_{number}" for number in range(int(self.config.get("num_labels", UNNAMED_LABELS)))]
        found = [str(mapping[key]) for key in map(str, range(len(mapping))) if key in mapping]
        if len(found) != len(mapping):
            raise CheckpointError(f"{self.name}: config.json's id2label does not number its classes from 0.",
                                  why=f"its keys are {', '.join(map(str, mapping))}")
        return found

    @property
    def chat_template(self) -> bool:
        """Whether there is one."""
        return "chat_template.jinja" in self.sizes or bool(self.json("tokenizer_config.json").get("chat_template"))

    @property
    def licence(self) -> str | None:
        """The licence that the model card's front matter states, as it states it."""
        card = self.path / "README.md"
        if not card.is_file():
            return None
        front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        stated = re.search(r"^licen[cs]e:\s*(\S.*)$", front.group(1), re.MULTILINE) if front else None
        return stated.group(1).strip().strip("'\"") if stated else None

    def spec(self, section: ModelSection) -> Spec:
        """The artifact spec of this checkpoint, for the task that the recipe wants or the head implies.

        Raises:
            CheckpointError: any reason not to go on.
        """
        architecture, task = self.architecture, self.task(section.task)
        self._require_served(architecture, task)
        self.require_tokenizer()
        labelled = task in LABELLED_TASKS
        lossy = {"lossy_source": self.lossy} if self.lossy else {}
        return Spec(kind=Kind.CHECKPOINT, task=task, architecture=architecture, precision="float32", bytes=sum(self.sizes.values()),
                    parameters=self.parameters,
                    facts={"labels": self.labels if labelled else [], "licence": self.licence,
                           "problem_type": self.config.get("problem_type"),
                           "vocabulary": self.config.get("vocab_size"), **self.shape} | lossy)

    def _require_served(self, architecture: str, task: Task) -> None:
        """Raises CheckpointError where an architecture that is known is not known for this task."""
        if (task is Task.TEXT_GENERATION) != (architecture in DECODERS):
            generates = task is Task.TEXT_GENERATION
            raise CheckpointError(f"{self.name} cannot be built for {task}.",
                                  why=f"the architecture '{architecture}' is known for {'other tasks' if generates else Task.TEXT_GENERATION} only",
                                  hint=f"known for {task}: {', '.join(DECODERS if generates else ENCODERS)}")

    def require_tokenizer(self) -> None:
        """Raises CheckpointError where there is no tokenizer."""
        if not any(name in self.sizes for name in TOKENIZER_FILES):
            raise CheckpointError(f"{self.name} has no tokenizer.", why=f"none of {', '.join(TOKENIZER_FILES)} is there",
                                  hint="copy the tokenizer's files beside config.json")

    def text_spec(self, section: ModelSection) -> TextSpec:
        """How text becomes this model's inputs, each value with the file it was read from; the recipe's values win.

        Raises:
            CheckpointError: a value that the model can't have.
        """
        return text_settings(self, section)


def belongs(file: str, *, trusted: bool) -> bool:
    """Whether a file belongs to the checkpoint in whose directory it lies, besides the weights."""
    if file.endswith(".py"):
        return trusted and bool(CODE.fullmatch(file))
    return bool(KEPT.fullmatch(file)) or file == WEIGHTS_INDEX


def read_checkpoint(path: Path, name: str | None = None, *, trusted: bool = False) -> Checkpoint:
    """The checkpoint in a local directory.

    Args:
        path: the directory.
        name: how messages call it.
        trusted: whether code that it brings along may be run.

    Raises:
        CheckpointError: no directory, no weights, only pickled ones, or damaged ones.
    """
    name = name or str(path)
    if path.is_file():
        raise CheckpointError(f"{path} is a file of a checkpoint.", why="a model is named by its directory", hint=f"say {path.parent}")
    if not path.is_dir():
        raise CheckpointError(f"There is no directory {path}.")
    files = {file.relative_to(path).as_posix(): file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()}
    weights = choose_weights(name, path, files)
    sizes = {file: size for file, size in files.items() if file in weights or belongs(file, trusted=trusted)}
    headers = {file: read_safetensors_header(path / file) for file in weights}
    return Checkpoint(name, path, sizes, headers, trusted)


def choose_weights(name: str, path: Path, files: dict[str, int]) -> list[str]:
    """Which of a checkpoint's files hold its weights: one file, or the shards that the index names.

    Raises:
        CheckpointError: none, only pickled ones, or a shard is missing.
    """
    if WEIGHTS in files:
        return [WEIGHTS]
    if WEIGHTS_INDEX in files:
        try:
            index = json.loads((path / WEIGHTS_INDEX).read_text(encoding="utf-8"))
            shards = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError) as exc:
            raise CheckpointError(f"{name}: {WEIGHTS_INDEX} is damaged.", why=str(exc)) from exc
        missing = [shard for shard in shards if shard not in files]
        if missing:
            raise CheckpointError(f"{name} lacks {len(missing)} of {len(shards)} weight files.", why=f"missing: {', '.join(missing)}",
                                  hint="download the checkpoint again")
        return shards
    pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        raise CheckpointError(
            f"{name} has only pickled weights ({pickled[0]}).", why="loading a pickle can run any code, so it is never done",
            hint="save it again where you trust it: AutoModel.from_pretrained(…).save_pretrained(…) writes safetensors")
    raise CheckpointError(f"{name} has no weights.", why=f"neither {WEIGHTS} nor {WEIGHTS_INDEX} is there")


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, after checking that all the data it promises is there.

    Source: the format's README (8 bytes of header length, little endian; JSON; data).

    Raises:
        CheckpointError: damaged or cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length + 8 > size:
            raise CheckpointError(f"{path} is damaged.", why="it ends within its header", hint="download or copy the file again")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            end = max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError) as exc:
            raise CheckpointError(f"{path} is damaged.", why=f"its header is not readable: {exc}",
                                  hint="download or copy the file again") from exc
    if size != 8 + length + end:
        raise CheckpointError(f"{path} is {'cut off' if size < 8 + length + end else 'damaged'}.",
                              why=f"its header promises {8 + length + end:,} bytes, it has {size:,}",
                              hint="download or copy the file again")
    return header
