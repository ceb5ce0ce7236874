"""One meaning of text: how a string becomes the model's inputs. The reference and every lane use the same spec."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.errors import DataError, NoRoom


@dataclass(frozen=True)
class TextSpec:
    """How text becomes tokens, and tokens an answer.

    Attributes:
        max_length: longest input in tokens, special tokens included; longer texts are cut.
        own_max_length: what the checkpoint itself allows.
        pad_id: id that fills up a fixed length; the mask hides it.
        inputs: the model's inputs among ``input_ids``, ``attention_mask``, ``token_type_ids``.
        mask_id: id of the token to be filled in, for fill-mask.
        pooling: how token vectors become one vector; None where the task has none.
        normalize: whether the pooled vector is scaled to length 1.
        query_prefix: put before a query.
        document_prefix: put before a document, and before any text that is not a query.
        sources: field → the file and key it was read from.
    """

    max_length: int
    own_max_length: int
    pad_id: int
    inputs: tuple[str, ...]
    mask_id: int | None = None
    pooling: str | None = None
    normalize: bool = False
    query_prefix: str = ""
    document_prefix: str = ""
    sources: dict[str, str] = field(default_factory=dict)

    def prefixed(self, text: str, role: str | None) -> str:
        """A text with the prefix of its role, ``query`` or ``document``; one without a role is a document."""
        return (self.query_prefix if role == "query" else self.document_prefix) + text

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TextSpec:
        """The spec that :meth:`as_dict` described."""
        return cls(**{**data, "inputs": tuple(data["inputs"])})

    def as_dict(self) -> dict[str, Any]:
        """The spec as plain JSON."""
        return {**asdict(self), "inputs": list(self.inputs)}


@dataclass(frozen=True)
class Encoded:
    """A text as tokens.

    Attributes:
        ids: int64 [length]; token ids, special tokens included.
        type_ids: int64 [length]; 1 in the second text of a pair.
        offsets: (start, end) of each token in its own text, in characters.
        words: index of the word of each token; None for special tokens.
        sequence: 0 or 1, which text of a pair the token is from; None for special tokens.
        truncated: whether tokens were cut off.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    offsets: list[tuple[int, int]]
    words: list[int | None]
    sequence: list[int | None]
    truncated: bool

    def feeds(self, spec: TextSpec, length: int) -> dict[str, np.ndarray]:
        """The model's inputs, filled up to `length`: each int64 [1, length]."""
        count = len(self.ids)
        feeds = {name: np.zeros((1, length), np.int64) for name in spec.inputs}
        feeds["input_ids"][:] = spec.pad_id
        feeds["input_ids"][0, :count] = self.ids
        feeds["attention_mask"][0, :count] = 1
        if "token_type_ids" in feeds:
            feeds["token_type_ids"][0, :count] = self.type_ids
        return feeds


class Tokenizer:
    """The bundle's tokenizer, with truncation as the text spec says."""

    def __init__(self, path: Path, spec: TextSpec, cut: str = "longest_first") -> None:
        """Load `tokenizer.json`.

        Args:
            path: the tokenizer's file.
            spec: how long texts may be.
            cut: which text of a pair is shortened: ``longest_first`` or ``only_second``.
        """
        import tokenizers

        self.spec = spec
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        # A tokenizer.json may carry a fixed padding and truncation from training; they are not the model's.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(spec.max_length, strategy=cut)

    def encode(self, text: str, pair: str | None = None) -> Encoded:
        """The tokens of a text or a pair of texts.

        Raises:
            DataError: one is no text.
            NoRoom: it can't be cut to the length.
        """
        for each in (text, *([] if pair is None else [pair])):
            require_text(each)
        try:
            encoding = self._tokenizer.encode(text, pair)
        except Exception as exc:  # tokenizers raises bare Exception
            raise NoRoom(f"The text cannot be cut to {self.spec.max_length} tokens.", why=str(exc)) from exc
        return Encoded(
            ids=np.asarray(encoding.ids, np.int64),
            type_ids=np.asarray(encoding.type_ids, np.int64),
            offsets=list(encoding.offsets),
            words=list(encoding.word_ids),
            sequence=list(encoding.sequence_ids),
            truncated=bool(encoding.overflowing),
        )

    def decode(self, ids: list[int], *, keep_special: bool = False) -> str:
        """The text of token ids, special tokens left out or kept."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=not keep_special))


def require_text(value: object) -> str:
    """A text that tokenizers take.

    Raises:
        DataError: it is none, or holds what is no character, such as bytes of another encoding than UTF-8.
    """
    if not isinstance(value, str):
        raise DataError(f"This is no text: {repr(value)[:80]}", hint="give a string")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise DataError("The text is not valid Unicode.", why=f"what stands for its character {exc.start + 1} is none",
                        hint="convert it to UTF-8") from exc
    return value


def read_text_spec(path: Path) -> TextSpec:
    """The text spec in a `text.json`."""
    return TextSpec.from_dict(json.loads(path.read_text(encoding="utf-8")))
