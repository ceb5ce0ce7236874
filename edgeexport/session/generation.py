"""Text that goes on: read a prompt, choose a token, read it, and so on, until something ends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from edgeexport.errors import DataError, NoRoom
from edgeexport.session.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GENERATION_FILE = "generation.json"


@dataclass(frozen=True)
class GenerationSpec:
    """What ends a text, and how a conversation is written.

    Attributes:
        stop_ids: tokens that end a text, and are no part of it.
        chat_template: in Jinja; None where the model was not trained on conversations.
        tokens: special tokens by the names that templates use, such as ``bos_token``.
        sources: field → the file and key it was read from.
    """

    stop_ids: tuple[int, ...]
    chat_template: str | None = None
    tokens: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GenerationSpec:
        """The spec that :meth:`as_dict` described."""
        return cls(**{**data, "stop_ids": tuple(data["stop_ids"])})

    def as_dict(self) -> dict[str, Any]:
        """The spec as plain JSON."""
        return {**asdict(self), "stop_ids": list(self.stop_ids)}


def read_generation_spec(path: Path) -> GenerationSpec:
    """The spec in a `generation.json`."""
    return GenerationSpec.from_dict(json.loads(path.read_text(encoding="utf-8")))


# What stands for bytes that are no character (yet).
INCOMPLETE = "\ufffd"


class Decoder(Protocol):
    """A language model in a runtime, and what it has read so far."""

    @property
    def context(self) -> int:
        """How many tokens it can hold."""

    @property
    def position(self) -> int:
        """How many it holds."""

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Read on, int64 [length] of at least one; the logits of what comes after the last token, float32 [vocabulary]."""

    def rewind(self, position: int) -> None:
        """Forget what was read from a position on."""


class Reader:
    """A decoder that knows what it has read, so that a prompt which begins with that is read from there on.

    Several answers may be under way: each step says all that it builds on, and what another one has put there is read again.

    Attributes:
        decoder: the decoder.
        ids: the tokens that it holds.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.ids: list[int] = []
        self._one_at_a_time = threading.Lock()

    @property
    def context(self) -> int:
        """How many tokens it can hold."""
        return self.decoder.context

    @property
    def position(self) -> int:
        """How many it holds."""
        return self.decoder.position

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Read on, int64 [length]; the logits of what comes next, float32 [vocabulary]."""
        logits = self.decoder.read(ids)
        self.ids += ids.tolist()
        return logits

    def rewind(self, position: int) -> None:
        """Forget what was read from a position on."""
        del self.ids[position:]
        self.decoder.rewind(position)

    def held_of(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt, from its beginning on, need not be read again; its last one always is."""
        held = len(self.ids)
        if self.ids != list(prompt[:held]):  # else it is what an answer goes on from, and long
            held = next((place for place, (mine, new) in enumerate(zip(self.ids, prompt)) if mine != new), min(held, len(prompt)))
        return min(held, len(prompt) - 1)

    def read_prompt(self, prompt: Sequence[int]) -> np.ndarray:
        """Have read a prompt and nothing else; the logits of what comes after it."""
        with self._one_at_a_time:
            # A reading that was interrupted may have left the decoder with more, or with less.
            self.rewind(min(self.held_of(prompt), self.position))
            return self.read(np.asarray(prompt[self.position:], np.int64))


@dataclass(frozen=True)
class Limits:
    """What ends a text.

    Attributes:
        tokens: how many it has at most; None for as many as the context holds.
        stop_ids: tokens that end it, and are no part of it.
        stop_strings: the same for pieces of text.
    """

    tokens: int | None
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            DataError: a string is empty, or there may be no token.
        """
        if self.tokens is not None and self.tokens < 1:
            raise DataError(f"An answer can't have {self.tokens} tokens.", why="it has 1 or more; None stands for as many as the context holds")
        if "" in self.stop_strings:
            raise DataError("A stop string is empty.", why="it would end every text at once", hint="leave it out")


class Piece(NamedTuple):
    """A step of an answer.

    Attributes:
        text: what has become certain; often nothing, as a character may need several tokens.
        tokens: how many tokens the answer has so far.
        ended: of the last piece, what ended the answer: ``stop`` (a token or a string), ``tokens`` (there may be no more), ``context`` (it is full).
    """

    text: str
    tokens: int
    ended: str | None = None


def generate(reader: Reader, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling, limits: Limits) -> Iterator[Piece]:
    """The text that comes after a prompt, as soon as it is certain: a piece for each token, and one for what was held back.

    Raises:
        NoRoom: the prompt leaves no room in the context.
    """
    require_room(len(prompt), reader.context)
    sampler, stream = Sampler(sampling), TextStream(tokenizer, UntilStop(limits.stop_strings), prompt)
    room = reader.context - len(prompt)
    read, ended = list(prompt), "context" if limits.tokens is None or room < limits.tokens else "tokens"
    for _ in range(room if limits.tokens is None else min(room, limits.tokens)):
        token = sampler.choose(reader.read_prompt(read), read)
        if token in limits.stop_ids:
            ended = "stop"
            break
        read.append(token)
        text = stream.add(token)
        if stream.until.stopped:
            yield Piece(text, len(read) - len(prompt), "stop")
            return
        yield Piece(text, len(read) - len(prompt))
    yield Piece(stream.end(), len(read) - len(prompt), ended)


def require_room(tokens: int, context: int, answer: int = 1) -> None:
    """Check that a prompt leaves room for an answer of so many tokens.

    Raises:
        NoRoom: it does not, or there is nothing to read.
    """
    if not tokens:
        raise NoRoom("There is nothing to go on from.", why="the prompt has no tokens", hint="give at least one character")
    if tokens + answer > context:
        needed = "one more is" if answer == 1 else f"{answer:,} more are"
        raise NoRoom(f"The prompt has {tokens:,} tokens, and the model's context holds {context:,}.", why=f"{needed} needed for the answer",
                     hint="shorten the prompt, or build with a larger model.max_length")


@dataclass
class UntilStop:
    """Text as it comes, up to a stop string. What looks like the beginning of one waits for more.

    Attributes:
        stop_strings: what ends the text.
        stopped: whether one of them was met.
    """

    stop_strings: tuple[str, ...] = ()
    stopped: bool = False
    _held: str = field(default="", init=False)

    def add(self, text: str) -> str:
        """The text that has become certain with some more."""
        self._held += text
        met = [place for place in (self._held.find(stop) for stop in self.stop_strings) if place >= 0]
        if met:
            self.stopped = True
            certain, self._held = self._held[:min(met)], ""
            return certain
        waiting = max((_overlap(self._held, stop) for stop in self.stop_strings), default=0)
        certain, self._held = self._held[:len(self._held) - waiting], self._held[len(self._held) - waiting:]
        return certain

    def end(self) -> str:
        """What was held back, when no more comes."""
        rest, self._held = self._held, ""
        return rest


@dataclass
class TextStream:
    """Tokens as they come, and the text that is certain so far.

    A character may need several tokens, and waits for the last of them. A token's text may depend on the one before (some tokenizers leave out the
    space that a text begins with), so each is decoded together with what was before it.

    Attributes:
        tokenizer: the tokenizer.
        until: what ends the text.
        before: the tokens that come before the text; the last is enough.
    """

    tokenizer: Tokenizer
    until: UntilStop = field(default_factory=UntilStop)
    before: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Begin a text."""
        self._known, self._new = list(self.before[-1:]), []  # type: ignore[var-annotated]

    def add(self, token: int) -> str:
        """The text that has become certain with one more token."""
        self._new.append(token)
        text = self._text()
        if not text or text.endswith(INCOMPLETE):
            return self.until.add("")
        self._known, self._new = self._new, []
        return self.until.add(text)

    def end(self) -> str:
        """What was held back, when no more tokens come; a character that was not completed is written as the tokenizer does."""
        rest = self.until.end() + self._text()
        self._known, self._new = self._new, []
        return rest

    def _text(self) -> str:
        """The text of the new tokens."""
        known = self.tokenizer.decode(self._known)
        return self.tokenizer.decode(self._known + self._new)[len(known):]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text that a stop string begins with."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
