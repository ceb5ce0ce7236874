"""Taking a source's files in: copied, checked against the digests that the plan was made with, and given one meaning of text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgeexport.artifact import digest_file
from edgeexport.errors import CheckpointError
from edgeexport.session.text import TextSpec
from edgeexport.step import Context, View


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


def write_text(directory: Path, data: dict[str, Any]) -> None:
    """Write `text.json`: the text spec, with the ids of the mask and padding tokens as the tokenizer's files name them.

    Raises:
        CheckpointError: `tokenizer.json` is damaged.
    """
    text = TextSpec.from_dict(data)
    mask_id = token_id(directory, "mask_token")
    pad_id = token_id(directory, "pad_token")
    sources = dict(text.sources)
    if pad_id is not None and pad_id != text.pad_id and "config.json" not in sources["pad_id"]:
        sources["pad_id"] = "tokenizer.json: pad_token"
    else:
        pad_id = text.pad_id
    text = TextSpec.from_dict(text.as_dict() | {"mask_id": mask_id, "pad_id": pad_id, "sources": sources})
    (directory / "text.json").write_text(json.dumps(text.as_dict(), indent=1, sort_keys=True), encoding="utf-8")


def token_id(directory: Path, name: str) -> int | None:
    """The id of a special token such as ``mask_token``, as the tokenizer's files name it.

    Raises:
        CheckpointError: `tokenizer.json` is damaged.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as exc:  # tokenizers raises bare Exception
        raise CheckpointError("The tokenizer does not load.", why=f"tokenizer.json: {exc}",
                              hint="get tokenizer.json again; a checkpoint with its vocabulary files can do without") from exc
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / file).is_file():
            token = json.loads((directory / file).read_text(encoding="utf-8")).get(name)
            token = token["content"] if isinstance(token, dict) else token
            if token is not None:
                found: int | None = tokenizer.token_to_id(token)
                return found
    return None
