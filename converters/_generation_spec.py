"""What ends a text, and how a conversation is written: read from a checkpoint's files, and seen to be what Transformers makes of them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.errors import CheckpointError, DataError
from edgeexport.session.chat import DAY_OF_PROOF, ChatTemplate
from edgeexport.session.generation import GENERATION_FILE, GenerationSpec

from ._day_of_proof import day_of_proof

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# Conversations that a template must write as Transformers does: what templates treat apart are the system's message, the first message, turns,
# blanks at the ends, and whether an answer is to follow.
GOLDEN: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "What is a lighthouse?"},),
    ({"role": "user", "content": "  blanks around \n"}, {"role": "assistant", "content": " here too \n"}, {"role": "user", "content": "yes"}),
    ({"role": "user", "content": "Où est l'île? 島はどこ? 🏝️"}, {"role": "assistant", "content": "<b>{{ there }}</b> & {% elsewhere %}"}),
    ({"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Is 7 prime?"},
     {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And 9?"}),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}),
)
# What a template writes around anything.
SHORT: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "a"},),
    ({"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}),
    ({"role": "system", "content": "a"}, {"role": "user", "content": "a"}),
)
# Something that no template writes by itself.
MARKER = "lighthousekeeper"


def write_generation(directory: Path, tokenizer: Tokenizer) -> None:
    """Write `generation.json`.

    Args:
        directory: a checkpoint's files.
        tokenizer: its tokenizer.

    Raises:
        CheckpointError: nothing says what ends a text, or the chat template has an error, or comes to another text than in Transformers.
    """
    settings = _json(directory, "tokenizer_config.json")
    tokens = special_tokens(directory)
    template, source = chat_template(directory, settings)
    sources = {"chat_template": source} if template else {}
    stops = stop_ids(directory, tokenizer, tokens, sources)
    if template is not None:
        chat = ChatTemplate(template, tokens)
        check_template(directory, chat)
        stops |= {number: f"{source}: what ends a turn" for number in turn_ends(chat, tokenizer) if number not in stops}
    if not stops:
        raise CheckpointError("The checkpoint does not say what ends a text.",
                              why="there is no eos_token_id in generation_config.json or config.json, and no eos_token in tokenizer_config.json",
                              hint="add eos_token_id to generation_config.json")
    for number, where in stops.items():
        sources[f"stop_ids: {number}"] = where
    spec = GenerationSpec(tuple(sorted(stops)), template, tokens, sources)
    (directory / GENERATION_FILE).write_text(json.dumps(spec.as_dict(), indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")


def written(source: str, tokens: Mapping[str, str]) -> list[str]:
    """The short conversations by a template, as far as it takes them, up to where an answer begins."""
    found = []
    for conversation in SHORT:
        with contextlib.suppress(DataError):
            found.append(ChatTemplate(source, tokens).render(conversation))
    return found


def special_tokens(directory: Path) -> dict[str, str]:
    """Name → token of those that the tokenizer's files name, such as ``bos_token``."""
    found = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for name, token in _json(directory, file).items():
            if name in TOKEN_NAMES and token is not None:
                found[name] = str(token["content"] if isinstance(token, dict) else token)
    return found


def chat_template(directory: Path, settings: dict[str, Any]) -> tuple[str | None, str]:
    """The chat template and the file that it is in; None where there is none. Of several, the one called ``default``.

    Raises:
        CheckpointError: it is no text.
    """
    if (directory / "chat_template.jinja").is_file():
        return (directory / "chat_template.jinja").read_text(encoding="utf-8"), "chat_template.jinja"
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {str(entry["name"]): str(entry["template"]) for entry in template}
        template = named.get("default") or next(iter(named.values()), None)
    if not isinstance(template, str | None):
        raise CheckpointError(f"The chat template of tokenizer_config.json is {template!r}.", why="it is no text", hint="mend it, or take it out")
    return template, "tokenizer_config.json: chat_template"


def stop_ids(directory: Path, tokenizer: Tokenizer, tokens: dict[str, str], sources: dict[str, str]) -> dict[int, str]:
    """Id → where it is said of each token that ends a text.

    Raises:
        CheckpointError: one is no token.
    """
    found: dict[int, str] = {}
    for file in ("generation_config.json", "config.json"):
        stated = _json(directory, file).get("eos_token_id")
        for number in stated if isinstance(stated, list) else [stated]:
            if number is not None:
                if not isinstance(number, int):
                    raise CheckpointError(f"{file} says that {number!r} ends a text.", why="that is no number of a token",
                                          hint="mend its eos_token_id")
                if tokenizer.id_to_token(int(number)) is None:
                    raise CheckpointError(f"{file} says that token {number} ends a text.", why="the tokenizer has no such token",
                                          hint=f"correct eos_token_id in {file}")
                found.setdefault(int(number), f"{file}: eos_token_id")
    eos = tokenizer.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
    if eos is not None:
        found.setdefault(eos, "tokenizer_config.json: eos_token")
    return found


def turn_ends(chat: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    """The special token that a template puts right behind what the assistant said; none where it puts none there.

    A checkpoint's eos_token_id is often what ended texts in pretraining, and a model that was trained on conversations ends its answers otherwise.
    """
    try:
        text = chat.render([{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": MARKER}], answer=False)
    except DataError:
        return []
    _, _, behind = text.partition(MARKER)
    encoded = tokenizer.encode(behind.lstrip(), add_special_tokens=False)
    first = encoded.ids[:1]
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return [number for number in first if number in special]


def check_template(directory: Path, chat: ChatTemplate) -> None:
    """See that the golden conversations are written as Transformers writes them, or refused by both.

    Raises:
        CheckpointError: one is not, or the template has an error.
    """
    from transformers import PreTrainedTokenizerFast

    refused: list[str] = []
    theirs: Any = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), **chat.tokens)  # type: ignore[no-untyped-call]
    for conversation in GOLDEN:
        for answer in (False, True):
            try:
                own: str | None = chat.render(conversation, answer=answer, today=DAY_OF_PROOF)
            except DataError as exc:
                if "error" in exc.what:
                    raise CheckpointError(exc.what, why=exc.why, hint=exc.hint) from exc
                own, said = None, exc.reason
            try:
                with day_of_proof():
                    other = theirs.apply_chat_template(list(conversation), chat_template=chat.source, tokenize=False, add_generation_prompt=answer)
            except Exception as exc:  # whatever a template raises
                other, said = None, str(exc)
            if own is None:
                refused.append(said)
            if own != other:
                wrote = re.sub(r"\s+", " ", said if own is None or other is None else f"{own!r} and {other!r}")
                raise CheckpointError("The chat template comes to another text here than in Transformers.", why=wrote[:300],
                                      hint="report this with the checkpoint's name")
    if len(refused) == 2 * len(GOLDEN):
        raise CheckpointError("The chat template refuses every conversation.", why=refused[0],
                              hint="mend chat_template in tokenizer_config.json (or chat_template.jinja), or take it out")


def _json(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
