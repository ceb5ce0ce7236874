"""A language model as an app uses it: text or a conversation in, text out, as it comes.

There are two kinds, by who chooses the tokens of an answer: the session (:mod:`.decoder_model`), or the runtime itself (:mod:`.litert_lm_model`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from edgeexport.errors import DataError
from edgeexport.session.chat import DAY_OF_PROOF
from edgeexport.session.generation import Piece
from edgeexport.session.payload import Payload
from edgeexport.session.sampling import Sampling
from edgeexport.session.scoring import Expectation
from edgeexport.session.text import require_text

USER = "user"
GREEDY = Sampling()
FILLER = "many words make a long text that fills every context there is "


class Prompt(NamedTuple):
    """What a model is to read.

    Attributes:
        text: as text; special tokens that a template writes are in it, those that a tokenizer puts around a text are not.
        ids: as the model reads it, int64 [length].
        ends: up to which character of the text each token reaches, int64 [length].
    """

    text: str
    ids: np.ndarray
    ends: np.ndarray


class LanguageModel(ABC):
    """A variant of a payload for text generation in a runtime.

    Attributes:
        payload: the payload.
        spec: what ends a text, and how a conversation is written.
        tokenizer: the payload's tokenizer.
    """

    def __init__(self, payload: Payload) -> None:
        self.payload, self.spec = payload, payload.require_generation()
        self.tokenizer = payload.whole_tokenizer()

    @property
    def context(self) -> int:
        """How many tokens it can hold."""
        return self.payload.spec.max_length

    def prompt(self, request: str | Sequence[Mapping[str, Any]], *, raw: bool = False) -> Prompt:
        """What the model reads when a person asks.

        Args:
            request: a conversation; or a text, which is what a user says where the model was trained on conversations, and else is gone on with.
            raw: go on with a text, whatever the model was trained on.

        Raises:
            DataError: the model was trained on no conversations, or its template refuses this one.
        """
        if isinstance(request, Sequence) and not isinstance(request, str) and request:
            return self.prompt_of_conversation(request)
        request = require_text(request)
        if raw or self.spec.chat_template is None:
            return self.prompt_of_text(request)
        return self.prompt_of_conversation([{"role": USER, "content": request}])

    def prompt_of_row(self, row: Mapping[str, Any]) -> tuple[Prompt, bool]:
        """What the model reads of a row of a data set, and whether it is to be continued."""
        if row.get("messages"):
            open_end = row["messages"][-1]["role"] != "assistant"
            return self.prompt_of_conversation(row["messages"], answer=open_end, today=DAY_OF_PROOF), open_end
        return self.prompt_of_text(row["text"]), row.get("role") == "prompt"

    @abstractmethod
    def prompt_of_text(self, text: str) -> Prompt:
        """A text to go on with."""

    @abstractmethod
    def prompt_of_conversation(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True, today: datetime | None = None) -> Prompt:
        """A conversation as the template writes it, which may write the present time; with `answer`, up to what begins an answer of the model.

        Raises:
            DataError: the model was trained on no conversations, or its template refuses this one.
        """

    @abstractmethod
    def held_of(self, prompt: Prompt) -> int:
        """How many tokens of a prompt, from its beginning on, the model need not read again."""

    @abstractmethod
    def generate(self, prompt: Prompt, sampling: Sampling = GREEDY, tokens: int | None = None, stop: Sequence[str] = ()) -> Iterator[Piece]:
        """The text that comes after a prompt, as it comes.

        Args:
            prompt: what is read.
            sampling: how tokens are chosen.
            tokens: how many at most; None for as many as the context holds.
            stop: pieces of text that end it, and are no part of it.

        Raises:
            NoRoom: the prompt leaves no room in the context.
        """

    @abstractmethod
    def expect(self, prompt: Prompt, *, continued: bool) -> Expectation:
        """What the model expects at the scored positions of a prompt, as far as the context holds it; or of what it goes on with after it."""

    @abstractmethod
    def seconds_by_token(self, prompt_tokens: int, answer_tokens: int) -> list[float]:
        """How long each token of an answer takes, the first with the reading of a prompt of so many tokens."""

    @abstractmethod
    def fill(self) -> None:
        """Read as much as the context holds."""


def no_template() -> DataError:
    """Why there is no conversation."""
    return DataError("This model has no chat template.", why="it goes on with a text, and was not trained on conversations",
                     hint="give a text to go on with: edgeexport run BUNDLE \"Once upon a time\"")
