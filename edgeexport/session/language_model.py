"""A language model as an app uses it: text or a conversation in, text out, as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeexport.errors import DataError
from edgeexport.session.chat import ChatTemplate
from edgeexport.session.generation import Limits, Piece, Reader, generate
from edgeexport.session.payload import Payload, loader
from edgeexport.session.sampling import Sampling

USER = "user"
GREEDY = Sampling()


class LanguageModel:
    """A variant of a payload for text generation in a runtime.

    Attributes:
        payload: the payload.
        decoder: the model, which knows what it has read.
        template: how a conversation is written; None where the model was not trained on any.
    """

    def __init__(self, payload: Payload, variant: str, runtime: str, threads: int = 1) -> None:
        """Load the tokenizer and the model.

        Raises:
            RuntimeUnavailable: the runtime is not installed here, or runs no language models.
        """
        load = loader(runtime, generates=True)
        self.payload, self.spec = payload, payload.require_generation()
        self.tokenizer = payload.whole_tokenizer()
        self.template = ChatTemplate(self.spec.chat_template, self.spec.tokens) if self.spec.chat_template else None
        self.decoder = Reader(load(payload.model_path(variant), threads, payload.spec.max_length))

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int64 [length], with those that the tokenizer puts before and after one."""
        return np.asarray(self.tokenizer.encode(text).ids, np.int64)

    def encode_conversation(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True) -> np.ndarray:
        """The tokens of a conversation, int64 [length]: the template writes all special tokens itself; see :meth:`write_conversation`."""
        return np.asarray(self.tokenizer.encode(self.write_conversation(messages, answer=answer), add_special_tokens=False).ids, np.int64)

    def write_conversation(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True) -> str:
        """A conversation as the template writes it.

        Args:
            messages: each with ``role`` and ``content``, in order.
            answer: end with what begins an answer of the model.

        Raises:
            DataError: the model was trained on no conversations, or its template refuses this one.
        """
        if self.template is None:
            raise DataError("This model has no chat template.", why="it goes on with a text, and was not trained on conversations",
                            hint="give a text to go on with: edgeexport run BUNDLE \"Once upon a time\"")
        return self.template.render(messages, answer=answer)

    def encode_row(self, row: Mapping[str, Any]) -> tuple[np.ndarray, bool]:
        """The tokens of a row of a data set, int64 [length], and whether it is to be continued."""
        if row.get("messages"):
            open_end = row["messages"][-1]["role"] != "assistant"
            return self.encode_conversation(row["messages"], answer=open_end), open_end
        return self.encode(row["text"]), row.get("role") == "prompt"

    def encode_request(self, request: str | Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The tokens of what a person asks, int64 [length]: a conversation, a text to go on with, or one of a user, where the model knows users."""
        if not isinstance(request, str):
            return self.encode_conversation(request)
        return self.encode(request) if self.template is None else self.encode_conversation([{"role": USER, "content": request}])

    def generate(self, ids: np.ndarray, sampling: Sampling = GREEDY, tokens: int | None = None, stop: Sequence[str] = ()) -> Iterator[Piece]:
        """The text that comes after tokens; see :func:`edgeexport.session.generation.generate`.

        Raises:
            NoRoom: they leave no room in the context.
        """
        return generate(self.decoder, self.tokenizer, ids.tolist(), sampling, Limits(tokens, frozenset(self.spec.stop_ids), tuple(stop)))
