"""Take a checkpoint's files in: safetensors, a fast tokenizer and one meaning of text. The start of every graph."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgeexport.artifact import Kind, Spec, digest_file
from edgeexport.errors import CheckpointError
from edgeexport.session.text import TextSpec
from edgeexport.step import Context, Refusal, Step, View


class LoadCheckpoint(Step):
    """Copy the files, check their digests, write `tokenizer.json` where there is none, and resolve the text spec.

    Attributes:
        spec: what the checkpoint's config says it is.
        text: the text spec; the id of the mask token is added here.
    """

    name: ClassVar[str] = "load_checkpoint"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"source": frozenset({Kind.SOURCE})}
    backends: ClassVar[tuple[str, ...]] = ("tokenizers",)
    seconds_guess: ClassVar[float] = 2.0

    spec: Spec
    text: dict[str, Any]

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The spec was read from the config already."""
        return self.spec

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        """Files are copied in pieces."""
        return 300

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Copy and check."""
        source = inputs["source"].path
        digests: dict[str, str] = inputs["source"].spec.facts["digests"]
        for number, (name, digest) in enumerate(digests.items()):
            context.report(number / len(digests), name)
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, out / name)
            if digest_file(out / name) != digest:
                raise CheckpointError(f"{name} was changed while it was read.", hint="start again when nothing writes to the checkpoint")
        if not (out / "tokenizer.json").is_file():
            context.report(None, "making tokenizer.json")
            write_fast_tokenizer(out)
        text = TextSpec.from_dict(self.text)
        mask_id = token_id(out, "mask_token")
        pad_id = token_id(out, "pad_token")
        sources = dict(text.sources)
        if pad_id is not None and pad_id != text.pad_id and "config.json" not in sources["pad_id"]:
            sources["pad_id"] = "tokenizer.json: pad_token"
        else:
            pad_id = text.pad_id
        text = TextSpec.from_dict(text.as_dict() | {"mask_id": mask_id, "pad_id": pad_id, "sources": sources})
        (out / "text.json").write_text(json.dumps(text.as_dict(), indent=1, sort_keys=True), encoding="utf-8")
        return self.spec


def write_fast_tokenizer(directory: Path) -> None:
    """Convert the checkpoint's own tokenizer files to `tokenizer.json`.

    Raises:
        CheckpointError: Transformers can't load the tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=True, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    except Exception as exc:
        raise CheckpointError("The tokenizer does not load.", why=str(exc).splitlines()[0] if str(exc) else type(exc).__name__,
                              hint="check the tokenizer files beside config.json") from exc


def token_id(directory: Path, name: str) -> int | None:
    """The id of a special token such as ``mask_token``, as the checkpoint's tokenizer files name it.

    Raises:
        CheckpointError: `tokenizer.json` is damaged.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as exc:  # tokenizers raises bare Exception
        raise CheckpointError("The tokenizer does not load.", why=f"tokenizer.json: {exc}",
                              hint="get tokenizer.json again, or delete it to have it made from the vocabulary files") from exc
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / file).is_file():
            token = json.loads((directory / file).read_text(encoding="utf-8")).get(name)
            token = token["content"] if isinstance(token, dict) else token
            if token is not None:
                found: int | None = tokenizer.token_to_id(token)
                return found
    return None
