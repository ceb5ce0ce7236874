"""A `tokenizer.json` as data: which tokens it has, which of them it names by their id, and the same file with fewer of them.

The library's own form is edited, not the file as it is found: it has one way to write merges and post-processors, and the ids that tokens
really get. Source: the serialization of the tokenizers library, version 0.23.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeexport.errors import CheckpointError

from .load_checkpoint import load_tokenizer

WORDPIECE, BPE, UNIGRAM = "WordPiece", "BPE", "Unigram"
NAME = "tokenizer.json"
# Natural logarithm of a probability: below the sum of scores of any text between two blanks, of which each character has some -20.
UNLIKELY = -1_000_000.0


class TokenizerFile:
    """A tokenizer.

    Attributes:
        tokenizer: the same in the tokenizers library, without the padding and truncation of its training.
        model: the part of the file that makes tokens of words: ``type``, ``vocab`` and, by type, ``merges``, ``unk_id`` and others.
        ids: token → id, added tokens included.
        added: ids of the tokens that are found in a text before it is split into words, special or not.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._data = data
        self.tokenizer = Tokenizer.from_str(json.dumps(data))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.model: dict[str, Any] = data["model"]
        self.ids: dict[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
        self.added = frozenset(token["id"] for token in data["added_tokens"])

    @classmethod
    def read(cls, directory: Path) -> TokenizerFile:
        """The tokenizer of a checkpoint artifact.

        Raises:
            CheckpointError: it is damaged, or of a kind whose vocabulary can't be made smaller.
        """
        data = json.loads(load_tokenizer(directory).to_str())
        kind = data["model"]["type"]
        if kind not in {WORDPIECE, BPE, UNIGRAM}:
            raise CheckpointError(f"The vocabulary of a {kind} tokenizer cannot be trimmed.",
                                  why="it has no smaller pieces for a word that is left out", hint=f"supported are {WORDPIECE}, {BPE} and {UNIGRAM}")
        if kind == BPE and (data["model"]["continuing_subword_prefix"] or data["model"]["end_of_word_suffix"]):
            raise CheckpointError("The vocabulary of a BPE tokenizer that marks where words go on or end cannot be trimmed.",
                                  why="its continuing_subword_prefix or end_of_word_suffix is not empty", hint="leave the step out")
        if kind == UNIGRAM:
            # Scores as the file writes them: the library reads a number with an error in its last digit, so that what it wrote of a number
            # it would read as another.
            data["model"]["vocab"] = json.loads((directory / NAME).read_text(encoding="utf-8"))["model"]["vocab"]
        found = cls(data)
        strange = found.named() - set(found.ids.values())
        if strange:
            raise CheckpointError(f"{NAME} names the id {min(strange)}, which no token has.", hint="save the tokenizer again with Transformers")
        return found

    @cached_property
    def pieces(self) -> dict[str, int]:
        """The tokens of the model → id; added tokens are among them only where the model has them too."""
        if self.model["type"] == UNIGRAM:
            return {piece: number for number, (piece, _) in enumerate(self.model["vocab"])}
        return dict(self.model["vocab"])

    @property
    def unknown_id(self) -> int | None:
        """The id of the token for what the model has no piece for; None where it has no such token."""
        if self.model["type"] == UNIGRAM:
            unknown: int | None = self.model["unk_id"]
            return unknown
        return self.ids.get(self.model["unk_token"])

    def named(self) -> set[int]:
        """The ids that the file itself names: of added tokens, of the post-processor, of padding, and of the unknown token."""
        found = set(self.added)

        def note(number: int) -> int:
            found.add(number)
            return number

        _renumbered(self._data["post_processor"], note)
        if self._data["padding"] is not None:
            found.add(self._data["padding"]["pad_id"])
        return found if self.unknown_id is None else found | {self.unknown_id}

    def with_tokens(self, new_ids: Mapping[int, int], *, unknown_last: bool = False) -> TokenizerFile:
        """The tokenizer that has some of the tokens only.

        Args:
            new_ids: old id → new id of every token that is kept, those that the file names among them: dense, and in the old order.
            unknown_last: whether a Unigram tokenizer's unknown token is to cost more than any other way to read a text.

        Raises:
            CheckpointError: the library does not give the tokens these ids.
        """
        model = dict(self.model)
        if model["type"] == UNIGRAM:
            model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new_ids]
            if model["unk_id"] is not None:
                model["unk_id"] = new_ids[model["unk_id"]]
                if unknown_last:  # it costs ten more than the lowest score of all, its own among them
                    model["vocab"][model["unk_id"]] = [model["vocab"][model["unk_id"]][0], UNLIKELY]
        else:
            model["vocab"] = {token: new_ids[number] for token, number in model["vocab"].items() if number in new_ids}
        if model["type"] == BPE:
            model["merges"] = [[left, right] for left, right in model["merges"] if model["vocab"].keys() >= {left, right, left + right}]
        padding = self._data["padding"]
        trimmed = TokenizerFile(self._data | {
            "model": model,
            "added_tokens": [token | {"id": new_ids[token["id"]]} for token in self._data["added_tokens"]],
            "post_processor": _renumbered(self._data["post_processor"], new_ids.__getitem__),
            "padding": None if padding is None else padding | {"pad_id": new_ids[padding["pad_id"]]}})
        if trimmed.ids != {token: new_ids[number] for token, number in self.ids.items() if number in new_ids}:
            raise CheckpointError("The tokenizer's tokens cannot be numbered anew.", why="its added tokens do not follow those of its model",
                                  hint="save the tokenizer again with Transformers")
        return trimmed

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`."""
        (directory / NAME).write_text(json.dumps(self._data, ensure_ascii=False), encoding="utf-8")


def _renumbered(processor: Any, change: Callable[[int], int]) -> Any:
    """A post-processor with other ids."""
    if isinstance(processor, list):
        return [_renumbered(item, change) for item in processor]
    if not isinstance(processor, dict):
        return processor
    found = {key: _renumbered(item, change) for key, item in processor.items()}
    if processor.get("type") in {"BertProcessing", "RobertaProcessing"}:
        found |= {role: [processor[role][0], change(processor[role][1])] for role in ("sep", "cls")}
    if "ids" in processor and "tokens" in processor:  # a special token of a template
        found["ids"] = [change(number) for number in processor["ids"]]
    return found
