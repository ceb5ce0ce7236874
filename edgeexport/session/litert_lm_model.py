"""A language model in LiteRT-LM, which chooses the tokens itself, and tells the probabilities of given ones only."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from edgeexport.errors import BundleError, DataError
from edgeexport.session import scoring
from edgeexport.session.chat import ChatTemplate
from edgeexport.session.generation import Limits, Piece, UntilStop, require_room
from edgeexport.session.language_model import FILLER, GREEDY, LanguageModel, Prompt, no_template
from edgeexport.session.payload import Payload
from edgeexport.session.run_litert_lm import LitertLm
from edgeexport.session.sampling import Sampling
from edgeexport.session.scoring import CONTINUED, Expectation

# By which name a template asks for the time.
TELLS_TIME = "strftime_now"
# So many of a text's last tokens may become others when the rest of it is left out.
UNSETTLED = 8


class LitertLmModel(LanguageModel):
    """A variant of a payload in LiteRT-LM."""

    def __init__(self, payload: Payload, model: LitertLm) -> None:
        """Take a loaded model.

        Raises:
            BundleError: other tokens end a text in it than in the bundle.
        """
        super().__init__(payload)
        if set(model.stops) != set(self.spec.stop_ids):
            raise BundleError("LiteRT-LM ends texts at other tokens than the model.",
                              why=f"at {sorted(model.stops)}, not {sorted(self.spec.stop_ids)}")
        self._model = model

    def prompt_of_text(self, text: str) -> Prompt:
        """A text to go on with, as LiteRT-LM reads it."""
        ids = np.asarray(self._model.tokens(text), np.int64)
        places = [(0, 0)] * len(self._model.start) + self.tokenizer.encode(text, add_special_tokens=False).offsets
        # Where LiteRT-LM reads other tokens than the tokenizer makes, which fails the lane, nothing says where they lie.
        return Prompt(text, ids, scoring.ends_of(places if len(places) == len(ids) else [(0, 0)] * len(ids)))

    def prompt_of_conversation(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True, today: datetime | None = None) -> Prompt:
        """A conversation as the template in the file writes it."""
        if self.spec.chat_template is None:
            raise no_template()
        found = self._model.write(messages, answer=answer)
        if today is not None and TELLS_TIME in self.spec.chat_template:
            # It knows the present time alone. What it writes rightly now, it would have written rightly on another day.
            template = ChatTemplate(self.spec.chat_template, self.spec.tokens)
            now, then = (template.render(messages, answer=answer, today=day) for day in (None, today))
            if now.endswith(found):  # what begins a text is put before it later
                found = then[len(now) - len(found):]
        return self.prompt_of_text(found)

    def held_of(self, prompt: Prompt) -> int:
        """Nothing: each prompt is read from its beginning."""
        return 0

    def generate(self, prompt: Prompt, sampling: Sampling = GREEDY, tokens: int | None = None, stop: Sequence[str] = ()) -> Iterator[Piece]:
        """The text that comes after a prompt, as LiteRT-LM hands it out."""
        require_room(len(prompt.ids), self.context)
        Limits(tokens, frozenset(self.spec.stop_ids), tuple(stop))  # whether they can be
        until, count, most = UntilStop(tuple(stop)), 0, self.context - len(prompt.ids) if tokens is None else tokens
        for text in self._model.go_on(prompt.text, sampling, tokens):
            certain, count = until.add(text), min(count + self._tokens_of(text), most)
            yield Piece(certain, count, "stop" if until.stopped else None)
            if until.stopped:
                return
        # It does not say what ended the text.
        full = len(prompt.ids) + count >= self.context - 1
        yield Piece(until.end(), count, "tokens" if tokens is not None and count >= tokens else "context" if full else "stop")

    def _tokens_of(self, piece: str) -> int:
        """How many tokens a piece of an answer is made of: it comes when a character is complete, and its tokens are not said. (A model that says
        nonsense may have taken other tokens for the same text.)"""
        return max(1, len(self.tokenizer.encode(piece, add_special_tokens=False).ids))

    def expect(self, prompt: Prompt, *, continued: bool) -> Expectation:
        """How likely it holds the tokens of a prompt, or those that it goes on with, to be."""
        if continued:
            return self._continue(prompt)
        shown = self._cut(prompt, self.context - 1)
        positions = scoring.scored(min(len(prompt.ids), self.context))
        positions = [place for place in positions if place + 1 < len(shown.ids)]
        if not positions:
            return scoring.NOTHING_BUT_CAME
        after = np.add(positions, 1)
        return scoring.came_only(self._model.log_probabilities(shown.text)[after], shown.ids[after])

    def _continue(self, prompt: Prompt) -> Expectation:
        """What it goes on with, as far as its text tells the tokens."""
        room = min(CONTINUED, self.context - 1 - len(prompt.ids))
        if room < 1:
            return scoring.NOTHING_BUT_CAME
        pieces, text, ids = list(self._model.go_on(prompt.text, GREEDY, room)), prompt.text, prompt.ids.tolist()
        for piece in pieces:
            token = self._ids_by_text.get(piece)
            if token is None or self._model.tokens(text + piece) != [*ids, token]:
                break
            text, ids = text + piece, [*ids, token]
        else:
            # Whether a stop token ended it, or bytes came that are no character yet, is not said. What has half of the probability did.
            stops = {stop: text + str(self.tokenizer.id_to_token(stop)) for stop in self.spec.stop_ids} if len(pieces) < room else {}
            for stop, whole in stops.items():
                if self._model.log_probabilities(whole)[-1] > math.log(0.5):
                    text, ids = whole, [*ids, stop]
        place = slice(len(prompt.ids), len(ids))
        return scoring.came_only(self._model.log_probabilities(text)[place], np.asarray(ids[place], np.int64))

    @cached_property
    def _ids_by_text(self) -> dict[str, int]:
        """The token of each text that only one has, as it reads behind another token."""
        first = [self.tokenizer.encode("a", add_special_tokens=False).ids[-1]]
        known = len(self.tokenizer.decode(first))
        texts = [text[known:] for text in self.tokenizer.decode_batch([[*first, number] for number in range(self.tokenizer.get_vocab_size())])]
        count = Counter(texts)
        return {text: number for number, text in enumerate(texts) if count[text] == 1}

    def _cut(self, prompt: Prompt, count: int) -> Prompt:
        """The beginning of a prompt, of so many tokens or a few less: one that ends where a token does, and leaves those before as they are."""
        if len(prompt.ids) <= count:
            return prompt
        for number in range(count, len(self._model.start), -1)[:UNSETTLED]:
            shorter = self.prompt_of_text(prompt.text[:prompt.ends[number - 1]])
            # Tokens that are parts of a character end where it does.
            if len(shorter.ids) <= count and np.array_equal(shorter.ids, prompt.ids[:len(shorter.ids)]):
                return shorter
        raise DataError("A text cannot be cut to the context.", why=f"of {len(prompt.ids):,} tokens, {count:,} are held")

    def seconds_by_token(self, prompt_tokens: int, answer_tokens: int) -> list[float]:
        """How long each token of an answer takes, those of a piece alike; the first takes the reading."""
        prompt = self._cut(self.prompt_of_text(FILLER * (1 + prompt_tokens // 4)), prompt_tokens)
        last = time.perf_counter()
        found: list[float] = []
        for piece in self._model.go_on(prompt.text, GREEDY, 1 + answer_tokens):
            now, count = time.perf_counter(), self._tokens_of(piece) if found else 1
            found += [(now - last) / count] * count
            last = now
        if not found:  # a token that ends the text is no piece, and takes as long
            found.append(time.perf_counter() - last)
        return found[:1 + answer_tokens]

    def fill(self) -> None:
        """Read a text that fills the context."""
        self.seconds_by_token(self.context - 1, 0)
