"""A language model in LiteRT-LM, which does everything itself: tokens, the chat template, the loop over tokens, what ends a text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.errors import DataError
from edgeexport.session.run_tflite_decoder import SHARED_WEIGHTS, quietly
from edgeexport.session.sampling import Sampling

# To draw from so many of the likeliest tokens is to draw from all.
EVERY_TOKEN = 2**31 - 1


class LitertLm:
    """A ``.litertlm`` file; see the converter pack_litertlm.

    Attributes:
        context: the tokens that it holds.
        start: the tokens that it puts before every text.
        stops: the tokens that end a text.
    """

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load the model with a fixed number of threads."""
        import litert_lm

        litert_lm.set_min_log_severity(litert_lm.LogSeverity.SILENT)
        with quietly():
            # Unless it is told otherwise, it writes the weights as XNNPACK wants them beside the model.
            self._engine = litert_lm.Engine(str(path), backend=litert_lm.Backend.CPU(thread_count=threads), cache_dir=SHARED_WEIGHTS)
        self._library, self.context = litert_lm, context
        start = self._engine.bos_token_id
        self.start: tuple[int, ...] = () if start is None else (start,)
        self.stops = tuple(token for sequence in self._engine.eos_token_ids for token in sequence)

    def tokens(self, text: str) -> list[int]:
        """The tokens that it reads for a text."""
        return [*self.start, *self._engine.tokenize(text)]

    def write(self, messages: Sequence[Mapping[str, Any]], *, answer: bool) -> str:
        """A conversation by the file's own template, without the start token.

        Args:
            messages: each with ``role`` and ``content``, in order.
            answer: end with what begins an answer of the model.

        Raises:
            DataError: the template refuses the conversation, of which LiteRT-LM says nothing but an empty text.
        """
        *before, last = [dict(message) for message in messages]
        with self._engine.create_conversation(messages=before, extra_context={"add_generation_prompt": answer}) as conversation:
            written: str = conversation.render_message_to_string(last)
        if not written:
            raise DataError("The chat template refuses this conversation.", why=f"{len(messages)} messages, the last one: {json.dumps(last)[:80]}")
        return written

    def go_on(self, text: str, sampling: Sampling, tokens: int | None) -> Iterator[str]:
        """What comes after a text, a piece for each token, or for several that make a character; leaving early ends it.

        Raises:
            DataError: a wish that LiteRT-LM does not fulfil for plain texts.
        """
        if sampling.repetition_penalty != 1.0:
            raise DataError("LiteRT-LM has no repetition penalty here.", why="it knows one in conversations of its own only",
                            hint="leave it out, or take another lane")
        # What is not said means the likeliest token alone, and always the same seed.
        seed = secrets.randbelow(2**31) if sampling.seed is None else sampling.seed
        chosen = self._library.SamplerConfig(top_k=1, temperature=1.0) if sampling.temperature == 0 else self._library.SamplerConfig(
            top_k=sampling.top_k or EVERY_TOKEN, top_p=sampling.top_p, temperature=sampling.temperature, seed=seed)
        with self._engine.create_session(apply_prompt_template=False, sampler_config=chosen, max_output_tokens=tokens) as session:
            session.run_prefill([text])
            try:
                for response in session.run_decode_async():
                    yield from response.texts
            finally:
                session.cancel_process()

    def log_probabilities(self, text: str) -> np.ndarray:
        """The logarithms of the probabilities of a text's tokens, each after those before it, float32 [tokens]; NaN for the first one.

        Tokens go through the signature that answers are made by, one by one. Texts are scored from their beginning: after a prompt that was read
        before, LiteRT-LM 0.18.1 gives other numbers for the same tokens, which are not the model's.

        Raises:
            DataError: it holds no text so long.
        """
        beginning: str = self._engine.detokenize(list(self.start)) if self.start else ""
        with self._engine.create_session(apply_prompt_template=False) as session:
            try:
                (scores,) = session.run_text_scoring([beginning + text]).token_scores
            except RuntimeError as exc:
                raise DataError("LiteRT-LM cannot score this text.", why=f"{exc}; it has {len(self.tokens(text)):,} tokens") from exc
        found = np.asarray(scores, np.float32)
        found[:1] = np.nan
        return found
