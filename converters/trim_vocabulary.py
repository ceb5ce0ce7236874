"""A smaller vocabulary: the tokens that a user's texts need stay, with their rows of the embedding table, and the rest fall back to them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import CheckpointError
from edgeexport.session.generation import GENERATION_FILE, read_generation_spec
from edgeexport.session.text import TextSpec
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES, Architecture
from ._coverage import count_tokens, measure_coverage, read_texts
from ._generation_spec import written
from ._kept_tokens import choose, demands
from ._own_code import brings_code
from ._pruned_model import pruned_spec, save_model
from ._task_model import load_model, read_text
from ._token_ids import named_ids, renumbered
from ._tokenizer_file import TokenizerFile

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# What older tokenizers were read from. Beside a `tokenizer.json` with other tokens they would be wrong.
OLD_FILES = re.compile(r"vocab\.(txt|json)|merges\.txt|bpe\.codes|added_tokens\.json|[\w.-]+\.model")


class TrimVocabulary(Step):
    """Leave out the tokens that come least.

    A text that was known stays known: single characters stay, and every other token can be made of smaller ones.

    Attributes:
        size: how many tokens stay at most, special tokens and single characters included.
        datasets: names of the inputs whose texts say which tokens are frequent.
        reported: names of further ones, whose texts only show what is lost.
    """

    name: ClassVar[str] = "trim_vocabulary"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("tokenizers", "torch", "transformers")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 15.0

    size: int = Field(gt=0)
    datasets: tuple[str, ...] = ()
    reported: tuple[str, ...] = ()

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The same with fewer tokens; how many bytes that are is known when it is done, and never more."""
        checkpoint = inputs["checkpoint"]
        if checkpoint.kind is not Kind.CHECKPOINT:
            return Refusal(reason=f"the vocabulary of a {checkpoint.kind} cannot be trimmed", hint="start from the Transformers checkpoint")
        if checkpoint.architecture not in ARCHITECTURES:
            return Refusal(reason=f"where the architecture '{checkpoint.architecture}' keeps its vocabulary is not known",
                           hint=f"known are {', '.join(sorted(ARCHITECTURES))}")
        vocabulary = checkpoint.facts.get("vocabulary")
        if vocabulary is not None and self.size >= vocabulary:
            return Refusal(reason=f"the model has {vocabulary:,} tokens only, so there is nothing to trim to {self.size:,}",
                           hint="choose a smaller size, or leave the step out")
        return checkpoint.model_copy(update={"facts": checkpoint.facts | {"vocabulary": self.size}})

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Choose the tokens, write tokenizer and model with them alone, and report what that does to the texts."""
        checkpoint = inputs["checkpoint"]
        source = checkpoint.path
        if brings_code(source):
            raise CheckpointError("The vocabulary of a checkpoint that brings code of its own cannot be trimmed.",
                                  why="what its code does with token ids is not known", hint="leave the step out")
        before, text = TokenizerFile.read(source), read_text(source)
        data = {name: inputs[name].path for name in self.datasets}
        tokens, in_texts = Counter[int](), Counter[int]()
        for name, path in data.items():
            context.report(None, f"counting tokens ({name})")
            count_tokens(before, read_texts(path, text), tokens, in_texts)

        context.report(None, "loading the model")
        model = load_model(source, checkpoint.spec.require_task())
        apart = before.added | added_by_transformers(source, before)
        wanted = demands(before, apart)
        needed = apart | before.named() | named_by_model(model, text, before) | named_by_generation(source, before)
        kept = choose(wanted, needed, self.size, tokens, in_texts)
        new_ids = {old: new for new, old in enumerate(kept)}
        after = before.with_tokens(new_ids, unknown_last=wanted.unknown_last)
        coverage: dict[str, Any] = {"kept": len(kept), "dropped": len(set(before.ids.values()) - new_ids.keys()),
                                    "alphabet": len(wanted.alphabet), "data": {}}
        for name in (*self.datasets, *self.reported):
            context.report(None, f"measuring coverage ({name})")
            coverage["data"][name] = measure_coverage(name, read_texts(inputs[name].path, text), before, after, new_ids.keys(), text.max_length)

        context.report(None, "writing the model")
        select_tokens(model, ARCHITECTURES[str(checkpoint.spec.architecture)], new_ids)
        save_model(model, source, out)
        write_text_files(out, after, text, new_ids)
        return pruned_spec(model, checkpoint.spec, out, vocabulary=len(kept), coverage=coverage)


def added_by_transformers(source: Path, file: TokenizerFile) -> set[int]:
    """Ids of the tokens that Transformers finds in a text before it is split: its classes know of more than `tokenizer.json` may say.

    Raises:
        CheckpointError: Transformers can't load the tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(source, local_files_only=True).added_tokens_decoder
    except Exception as exc:  # as many kinds as there are classes of tokenizers
        raise CheckpointError("Transformers cannot load the tokenizer.", why=str(exc).splitlines()[0] if str(exc) else type(exc).__name__,
                              hint="check the tokenizer files beside config.json") from exc
    return {file.ids[token.content] for token in found.values() if token.content in file.ids}


def named_by_model(model: PreTrainedModel, text: TextSpec, file: TokenizerFile) -> set[int]:
    """Ids that the model's configuration and the text spec name, and those that its positions hang on.

    Raises:
        CheckpointError: the tokenizer is not that of the model.
    """
    tokens, rows = set(file.ids.values()), model.config.vocab_size
    if max(tokens) >= rows:
        raise CheckpointError("The tokenizer is not the model's.", why=f"it has tokens up to the id {max(tokens)}, and the model {rows:,} of them",
                              hint="use the tokenizer that the model was trained with")
    if text.pad_id not in tokens:
        raise CheckpointError(f"Texts are filled up with the id {text.pad_id}, which no token has.", why=text.sources.get("pad_id"),
                              hint="set pad_token_id in config.json to the id of the tokenizer's padding token")
    named = {text.pad_id, *([] if text.mask_id is None else [text.mask_id])}
    named |= named_ids(model.config.to_dict())
    positions = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if positions is not None and positions.padding_idx is not None:
        # Positions are counted from padding's id on, which therefore must not change: what stands before it stays.
        named |= set(range(positions.padding_idx))
    return named & tokens


def named_by_generation(source: Path, file: TokenizerFile) -> set[int]:
    """Ids that end a language model's texts, and those that its chat template writes around what is said; nothing for other models."""
    if not (source / GENERATION_FILE).is_file():
        return set()
    spec = read_generation_spec(source / GENERATION_FILE)
    texts = written(spec.chat_template, spec.tokens) if spec.chat_template else []
    return {*spec.stop_ids, *(number for text in texts for number in file.tokenizer.encode(text, add_special_tokens=False).ids)}


def select_tokens(model: PreTrainedModel, architecture: Architecture, new_ids: Mapping[int, int]) -> None:
    """Leave a model's parameters the entries of some tokens only, and its configuration the new ids. What is tied stays tied."""
    import torch

    index = torch.tensor(list(new_ids))
    done: dict[int, torch.nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        for pattern, dimension in architecture.vocabulary.items():
            if re.fullmatch(pattern, name):
                path, _, kind = name.rpartition(".")
                if id(parameter) not in done:
                    done[id(parameter)] = torch.nn.Parameter(parameter.detach().index_select(dimension, index))
                setattr(model.get_submodule(path), kind, done[id(parameter)])
    for config in (model.config, getattr(model, "generation_config", None)):
        old = config.to_dict() if config is not None else {}
        for key, value in renumbered(old, new_ids).items():
            if value != old[key]:
                setattr(config, key, value)
    model.config.vocab_size = len(new_ids)


def write_text_files(out: Path, tokenizer: TokenizerFile, text: TextSpec, new_ids: Mapping[int, int]) -> None:
    """Write what says how text becomes ids, and take away what says otherwise."""
    for path in out.iterdir():
        if OLD_FILES.fullmatch(path.name):
            path.unlink()
    tokenizer.save(out)
    config = out / "tokenizer_config.json"
    if config.is_file():
        data = renumbered(json.loads(config.read_text(encoding="utf-8")), new_ids)
        if "added_tokens_decoder" in data:
            data["added_tokens_decoder"] = {str(new_ids[int(number)]): token for number, token in data["added_tokens_decoder"].items()
                                            if int(number) in new_ids}
        config.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    if (out / GENERATION_FILE).is_file():
        spec = read_generation_spec(out / GENERATION_FILE)
        sources = {f"stop_ids: {new_ids[stop]}": spec.sources[f"stop_ids: {stop}"] for stop in spec.stop_ids}
        spec = replace(spec, stop_ids=tuple(sorted(new_ids[stop] for stop in spec.stop_ids)),
                       sources={key: where for key, where in spec.sources.items() if not key.startswith("stop_ids: ")} | sources)
        (out / GENERATION_FILE).write_text(json.dumps(spec.as_dict(), indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    changed = text.as_dict() | {"pad_id": new_ids[text.pad_id], "mask_id": None if text.mask_id is None else new_ids[text.mask_id]}
    (out / "text.json").write_text(json.dumps(changed, indent=1, sort_keys=True), encoding="utf-8")
