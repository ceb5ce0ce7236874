"""A language model of which the session chooses the tokens, from what a decoder expects."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from edgeexport.session import scoring
from edgeexport.session.chat import ChatTemplate
from edgeexport.session.generation import Limits, Piece, Reader, generate
from edgeexport.session.language_model import FILLER, GREEDY, LanguageModel, Prompt, no_template
from edgeexport.session.payload import Payload
from edgeexport.session.sampling import Sampling
from edgeexport.session.scoring import Expectation


class DecoderModel(LanguageModel):
    """A variant of a payload in a runtime that gives logits.

    Attributes:
        decoder: the model, which knows what it has read.
        template: how a conversation is written; None where the model was not trained on any.
    """

    def __init__(self, payload: Payload, decoder: Reader) -> None:
        super().__init__(payload)
        self.decoder = decoder
        self.template = ChatTemplate(self.spec.chat_template, self.spec.tokens) if self.spec.chat_template else None

    def prompt_of_text(self, text: str) -> Prompt:
        """A text to go on with, with the tokens that the tokenizer puts around one."""
        return self._prompt(text, begins=True)

    def prompt_of_conversation(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True, today: datetime | None = None) -> Prompt:
        """A conversation as the template writes it, which writes all special tokens itself."""
        return self._prompt(self.write_conversation(messages, answer=answer, today=today), begins=False)

    def _prompt(self, text: str, *, begins: bool) -> Prompt:
        """A text with its tokens; `begins` puts those around it that the tokenizer adds."""
        encoded = self.tokenizer.encode(text, add_special_tokens=begins)
        return Prompt(text, np.asarray(encoded.ids, np.int64), scoring.ends_of(encoded.offsets))

    def write_conversation(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True, today: datetime | None = None) -> str:
        """A conversation as the template writes it, which writes all special tokens itself; see :meth:`prompt_of_conversation`."""
        if self.template is None:
            raise no_template()
        return self.template.render(messages, answer=answer, today=today)

    def held_of(self, prompt: Prompt) -> int:
        """How many tokens of a prompt were read already."""
        return self.decoder.held_of(prompt.ids.tolist())

    def generate(self, prompt: Prompt, sampling: Sampling = GREEDY, tokens: int | None = None, stop: Sequence[str] = ()) -> Iterator[Piece]:
        """The text that comes after a prompt; see :func:`edgeexport.session.generation.generate`."""
        limits = Limits(tokens, frozenset(self.spec.stop_ids), tuple(stop))
        return generate(self.decoder, self.tokenizer, prompt.ids.tolist(), sampling, limits)

    def expect(self, prompt: Prompt, *, continued: bool) -> Expectation:
        """What the decoder expects, in its own pieces."""
        read = scoring.continue_text if continued else scoring.read_text
        return read(self.decoder, prompt.ids[:self.context]) or scoring.NOTHING

    def seconds_by_token(self, prompt_tokens: int, answer_tokens: int) -> list[float]:
        """How long reading takes, by the decoder alone."""
        self.decoder.rewind(0)
        ids, seconds = self._filler(prompt_tokens), []
        for _ in range(1 + min(answer_tokens, self.decoder.context - prompt_tokens)):
            started = time.perf_counter()
            ids = self.decoder.read(ids).argmax().reshape(1)
            seconds.append(time.perf_counter() - started)
        return seconds

    def fill(self) -> None:
        """Read to the end of the context."""
        if self.decoder.position < self.decoder.context:
            self.decoder.read(self._filler(self.decoder.context - self.decoder.position))

    def _filler(self, count: int) -> np.ndarray:
        return np.resize(self.prompt_of_text(FILLER * 16).ids, count)
