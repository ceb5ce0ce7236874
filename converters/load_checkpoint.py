"""Take a source's files in: checked against their digests, with a fast tokenizer and one meaning of text. The start of every graph."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeexport.artifact import Kind, Spec, Task, digest_file
from edgeexport.errors import CheckpointError
from edgeexport.session.text import TextSpec
from edgeexport.step import Context, Refusal, Step, View

from ._generation_spec import write_generation
from ._own_code import brings_code

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class LoadCheckpoint(Step):
    """Copy the files, check their digests, write `tokenizer.json` where there is none, and resolve the text spec.

    Attributes:
        spec: what the source's small files say it is: a checkpoint, or a SavedModel.
        text: the text spec; the id of the mask token is added here. None for a base model into which an adapter is merged: what the
            tokenizer is, and what text means, is only known of both together.
    """

    name: ClassVar[str] = "load_checkpoint"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"source": frozenset({Kind.SOURCE})}
    backends: ClassVar[tuple[str, ...]] = ("tokenizers", "transformers")
    seconds_guess: ClassVar[float] = 2.0

    spec: Spec
    text: dict[str, Any] | None = None

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The spec was read from the small files already."""
        return self.spec

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        """Files are copied in pieces."""
        return 300

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Copy and check."""
        take_files(inputs["source"], out, context)
        if self.text is not None:
            write_text(out, self.text, self.spec, context)
        return self.spec


def take_files(source: View, out: Path, context: Context) -> None:
    """Copy the files of a source whose digests its spec lists.

    Raises:
        CheckpointError: a file is not what it was.
    """
    digests: dict[str, str] = source.spec.facts["digests"]
    for number, (name, digest) in enumerate(digests.items()):
        context.report(number / len(digests), name)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path / name, out / name)
        if digest_file(out / name) != digest:
            raise CheckpointError(f"{name} was changed while it was read.", hint="start again when nothing writes to the checkpoint")


def write_text(directory: Path, data: dict[str, Any], spec: Spec, context: Context) -> None:
    """Write `text.json`: the text spec, with the ids of the mask and padding tokens as the tokenizer's files name them.

    For text generation, `generation.json` too.

    Args:
        directory: a checkpoint's files; gets `tokenizer.json` where there is none.
        data: the text spec.
        spec: what the checkpoint is.
        context: told what happens.

    Raises:
        CheckpointError: the tokenizer does not load, or makes nothing of an empty text that has to be something.
    """
    if not (directory / "tokenizer.json").is_file():
        context.report(None, "making tokenizer.json")
        write_fast_tokenizer(directory, spec.facts.get("vocabulary") or 0)
    text = TextSpec.from_dict(data)
    if spec.task is Task.TEXT_GENERATION:
        write_generation(directory, load_tokenizer(directory))
    elif not load_tokenizer(directory).encode("").ids:
        raise CheckpointError("The tokenizer adds no special tokens.", why="an empty text would be no input at all",
                              hint="save the tokenizer with its post-processor, as the model was trained with")
    mask_id = token_id(directory, "mask_token")
    pad_id = token_id(directory, "pad_token")
    sources = dict(text.sources)
    if pad_id is not None and pad_id != text.pad_id and "config.json" not in sources["pad_id"]:
        sources["pad_id"] = "tokenizer.json: pad_token"
    else:
        pad_id = text.pad_id
    text = TextSpec.from_dict(text.as_dict() | {"mask_id": mask_id, "pad_id": pad_id, "sources": sources})
    (directory / "text.json").write_text(json.dumps(text.as_dict(), indent=1, sort_keys=True), encoding="utf-8")


def load_tokenizer(directory: Path) -> Tokenizer:
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: `tokenizer.json` is damaged.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as exc:  # tokenizers raises bare Exception
        raise CheckpointError("The tokenizer does not load.", why=f"tokenizer.json: {exc}",
                              hint="get tokenizer.json again; a checkpoint with its vocabulary files can do without") from exc


def token_id(directory: Path, name: str) -> int | None:
    """The id of a special token such as ``mask_token``, as the tokenizer's files name it.

    Raises:
        CheckpointError: `tokenizer.json` is damaged.
    """
    tokenizer = load_tokenizer(directory)
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / file).is_file():
            token = json.loads((directory / file).read_text(encoding="utf-8")).get(name)
            token = token["content"] if isinstance(token, dict) else token
            if token is not None:
                found: int | None = tokenizer.token_to_id(token)
                return found
    return None


def write_fast_tokenizer(directory: Path, vocabulary: int) -> None:
    """Convert the checkpoint's own tokenizer files to `tokenizer.json`.

    Args:
        directory: where they are.
        vocabulary: how many tokens the model knows.

    Raises:
        CheckpointError: Transformers can't load the tokenizer.
    """
    from transformers import AutoTokenizer

    hint = "check the tokenizer files beside config.json"
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=True, local_files_only=True, trust_remote_code=brings_code(directory))
        tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    except Exception as exc:
        raise CheckpointError("The tokenizer does not load.", why=str(exc).splitlines()[0] if str(exc) else type(exc).__name__, hint=hint) from exc
    # Where its file is not there, Transformers makes a tokenizer of the special tokens alone.
    if len(tokenizer) < vocabulary // 2:
        raise CheckpointError("The tokenizer does not load.", why=f"it has {len(tokenizer)} tokens, and the model {vocabulary:,}", hint=hint)
