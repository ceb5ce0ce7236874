"""How text becomes a model's inputs, as the checkpoint's small files say: which length, pooling, prefixes, each with its source."""

from __future__ import annotations

from typing import Any, Protocol

from edgeexport.architectures import DECODERS, ENCODERS
from edgeexport.artifact import Task
from edgeexport.errors import CheckpointError
from edgeexport.recipe import ModelSection
from edgeexport.session.tasks import PAIR_TASKS
from edgeexport.session.text import TextSpec

VECTOR_TASKS = frozenset({Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY})

# What a language model holds at once where nobody says otherwise, prompt and answer together: what a TFLite file computes attention over,
# and keeps buffers for, at every token.
DEFAULT_CONTEXT = 1024

# Modes of sentence-transformers' Pooling: since version 6 the value of `pooling_mode`, before it the flag `pooling_mode_…`.
POOLING_MODES = {"cls": "cls", "max": "max", "mean": "mean", "mean_sqrt_len_tokens": "mean_sqrt_len", "lasttoken": "lasttoken"}
POOLING_FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
                 "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
                 "pooling_mode_lasttoken": "lasttoken"}
# The prompt that goes before a document: the first of these that there is. Source: sentence-transformers' encode_document.
DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class SmallFiles(Protocol):
    """What is read of a checkpoint; see :class:`edgeexport.checkpoint.Checkpoint`."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def config(self) -> dict[str, Any]:
        """The config.json."""

    @property
    def architecture(self) -> str:
        """Transformers' ``model_type``."""

    @property
    def modules(self) -> list[dict[str, Any]]:
        """The modules of sentence-transformers."""

    def json(self, name: str, *, required: bool = False) -> dict[str, Any]:
        """A JSON file; empty where there is none."""

    def task(self, wanted: Task | None) -> Task:
        """The task to build for."""


def text_settings(checkpoint: SmallFiles, section: ModelSection) -> TextSpec:
    """The text spec; the recipe's values win.

    Raises:
        CheckpointError: a value that the model can't have.
    """
    task, sources = checkpoint.task(section.task), {}
    own, sources["own_max_length"] = _own_max_length(checkpoint)
    if section.max_length is not None and section.max_length > own:
        raise CheckpointError(f"{checkpoint.name} reads at most {own} tokens ({sources['own_max_length']}), not {section.max_length}.",
                              hint="lower model.max_length in the recipe, or --max-length")
    longest, sources["max_length"] = own, sources["own_max_length"]
    if section.max_length is not None:
        longest, sources["max_length"] = section.max_length, "recipe"
    elif task is Task.TEXT_GENERATION and own > DEFAULT_CONTEXT:
        longest, sources["max_length"] = DEFAULT_CONTEXT, f"default: {DEFAULT_CONTEXT} of {own:,} tokens"

    pooling, normalize = None, False
    if task in VECTOR_TASKS:
        pooling, sources["pooling"] = _pooling(checkpoint, task)
        normalize, sources["normalize"] = _normalize(checkpoint)
        if section.pooling is not None:
            pooling, sources["pooling"] = section.pooling, "recipe"
        if section.normalize is not None:
            normalize, sources["normalize"] = section.normalize, "recipe"

    prefixes = _prefixes(checkpoint)
    for key, given in (("query", section.query_prefix), ("document", section.document_prefix)):
        if given is not None:
            prefixes[key] = given
        if prefixes[key]:
            sources[f"{key}_prefix"] = "recipe" if given is not None else "config_sentence_transformers.json: prompts"
    if any(prefixes.values()):
        _check_prefixes(checkpoint, task)
    if checkpoint.json("sentence_bert_config.json").get("do_lower_case") and not checkpoint.json("tokenizer_config.json").get("do_lower_case"):
        raise CheckpointError(f"{checkpoint.name} wants its texts in lower case, which its tokenizer does not see to.",
                              why="sentence_bert_config.json: do_lower_case", hint="save it with a tokenizer that lower-cases")
    if task is not Task.TEXT_GENERATION and checkpoint.json("tokenizer_config.json").get("truncation_side", "right") != "right":
        raise CheckpointError(f"{checkpoint.name} cuts long texts at their start.", why="tokenizer_config.json: truncation_side is not 'right'",
                              hint="if that is a left-over, take the key out of tokenizer_config.json")

    _, takes_types = _traits(checkpoint)
    inputs = ("input_ids", "attention_mask", "token_type_ids") if takes_types and task in PAIR_TASKS else ("input_ids", "attention_mask")
    pad = checkpoint.config.get("pad_token_id")
    sources["pad_id"] = "default 0" if pad is None else "config.json: pad_token_id"
    return TextSpec(max_length=longest, own_max_length=own, pad_id=pad or 0, inputs=inputs, pooling=pooling, normalize=normalize,
                    query_prefix=prefixes["query"], document_prefix=prefixes["document"], sources=sources)


def _traits(checkpoint: SmallFiles) -> tuple[int, bool]:
    """The entry of :data:`ENCODERS`; of an architecture that is code of the checkpoint's own, what its config shows."""
    if checkpoint.architecture in DECODERS:
        return 0, False
    return ENCODERS.get(checkpoint.architecture, (0, (checkpoint.config.get("type_vocab_size") or 0) > 1))


def _own_max_length(checkpoint: SmallFiles) -> tuple[int, str]:
    offset, _ = _traits(checkpoint)
    limits = []
    for key in DECODERS.get(checkpoint.architecture, ("max_position_embeddings",)):
        if checkpoint.config.get(key) is not None:
            limits.append((int(checkpoint.config[key]) - offset, f"config.json: {key}"))
    stated = checkpoint.json("tokenizer_config.json").get("model_max_length")
    if stated is not None and stated < 1_000_000:  # "no limit" is stored as a huge number
        limits.append((int(stated), "tokenizer_config.json: model_max_length"))
    sentence = checkpoint.json("sentence_bert_config.json").get("max_seq_length")
    if sentence is not None:
        limits.append((int(sentence), "sentence_bert_config.json: max_seq_length"))
    if not limits:
        default = DEFAULT_CONTEXT if checkpoint.architecture in DECODERS else 512
        return default, "default: the checkpoint states no limit"
    return min(limits)


def _prefixes(checkpoint: SmallFiles) -> dict[str, str]:
    """What sentence-transformers puts before a query and a document."""
    config = checkpoint.json("config_sentence_transformers.json")
    prompts: dict[str, str] = {key: text or "" for key, text in (config.get("prompts") or {}).items()}
    other = prompts.get(str(config.get("default_prompt_name")), "")
    return {"query": prompts.get("query", other),
            "document": next((prompts[key] for key in DOCUMENT_PROMPTS if key in prompts), other)}


def _check_prefixes(checkpoint: SmallFiles, task: Task) -> None:
    """Raises CheckpointError where a prefix would not do what it is for."""
    if task in {Task.TOKEN_CLASSIFICATION, Task.TEXT_GENERATION}:
        before = "a text whose words are classified" if task is Task.TOKEN_CLASSIFICATION else "what a language model reads"
        raise CheckpointError(f"A prefix has no place before {before}.", hint="take it out of the recipe")
    for file, config in _pooling_files(checkpoint):
        if not config.get("include_prompt", True):
            raise CheckpointError(f"{checkpoint.name}: {file} leaves the prefix out of the pooling.", why="include_prompt = false is not supported")


def _pooling_files(checkpoint: SmallFiles) -> list[tuple[str, dict[str, Any]]]:
    files = [f"{module['path']}/config.json" for module in checkpoint.modules if module["type"].endswith(".Pooling")]
    return [(file, checkpoint.json(file, required=True)) for file in files]


def _pooling(checkpoint: SmallFiles, task: Task) -> tuple[str, str]:
    for file, config in _pooling_files(checkpoint):
        flagged = [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)]
        wanted = config.get("pooling_mode", flagged)
        chosen = [wanted] if isinstance(wanted, str) else list(wanted)
        if len(chosen) != 1 or chosen[0] not in POOLING_MODES:
            raise CheckpointError(f"{checkpoint.name}: the pooling of {file} is not supported.",
                                  why=f"it wants {' and '.join(chosen) or 'none'}; supported is one of {', '.join(POOLING_MODES)}")
        return POOLING_MODES[chosen[0]], file
    if task is Task.SENTENCE_SIMILARITY:
        return "mean", "default: the checkpoint has no modules.json"
    return "none", "default: one vector per token"


def _normalize(checkpoint: SmallFiles) -> tuple[bool, str]:
    if any(module["type"].endswith(".Normalize") for module in checkpoint.modules):
        return True, "modules.json"
    return False, "modules.json has no Normalize" if checkpoint.modules else "default: the checkpoint has no modules.json"
