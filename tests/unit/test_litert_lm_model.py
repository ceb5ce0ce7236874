"""What a session makes of a runtime that chooses the tokens itself: a fake that recites."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgeexport.errors import BundleError, DataError, NoRoom
from edgeexport.session.generation import GENERATION_FILE, GenerationSpec
from edgeexport.session.litert_lm_model import LitertLmModel
from edgeexport.session.payload import Payload
from edgeexport.session.run_litert_lm import LitertLm
from edgeexport.session.sampling import Sampling
from edgeexport.session.scoring import scored
from edgeexport.session.text import TextSpec

CONTEXT, START, STOP = 24, "<s>", "</s>"


def tokenizer() -> Tokenizer:
    """Of bytes."""
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), START, STOP])},
                                merges=[]))
    made.add_special_tokens([START, STOP])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


class Reciter(LitertLm):
    """Goes on with what is left of a text, a token a piece; how likely it holds a token to be tells its place."""

    def __init__(self, text: str, *, ends: bool = True) -> None:
        self.text, self.ends, self.tokenizer = text, ends, tokenizer()
        self.context, self.start, self.stops = CONTEXT, (self.tokenizer.token_to_id(START),), (self.tokenizer.token_to_id(STOP),)

    def tokens(self, text: str) -> list[int]:
        return [*self.start, *self.tokenizer.encode(text).ids]

    def go_on(self, text: str, sampling: Sampling, tokens: int | None) -> Iterator[str]:
        assert self.text.startswith(text)
        held: list[int] = []
        for number in self.tokenizer.encode(self.text.removeprefix(text)).ids[:tokens]:
            held.append(number)
            piece = self.tokenizer.decode(held)
            if "\ufffd" not in piece:
                yield piece
                held = []

    def log_probabilities(self, text: str) -> np.ndarray:
        assert len(self.tokens(text)) < CONTEXT
        found = -np.arange(len(self.tokens(text)), dtype=np.float32) / 100
        if text.endswith(STOP) and not self.ends:
            found[-1] = -3.0
        return found


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    (tmp_path / "text").mkdir()
    made = tokenizer()
    made.save(str(tmp_path / "text" / "tokenizer.json"))
    (tmp_path / "text" / "text.json").write_text(json.dumps(TextSpec(CONTEXT, CONTEXT, 0, ("input_ids",)).as_dict()))
    (tmp_path / "text" / GENERATION_FILE).write_text(json.dumps(GenerationSpec(stop_ids=(made.token_to_id(STOP),)).as_dict()))
    (tmp_path / "payload.json").write_text(json.dumps({"task": "text-generation", "labels": [], "problem_type": None, "variants": {}}))
    return Payload(tmp_path)


def said(model: LitertLmModel, prompt: str, **options: Any) -> tuple[str, int]:
    pieces = list(model.generate(model.prompt_of_text(prompt), **options))
    return "".join(piece.text for piece in pieces), pieces[-1].tokens


def test_it_says_what_the_runtime_says_up_to_a_stop_string(payload: Payload) -> None:
    model = LitertLmModel(payload, Reciter("one two three"))
    assert said(model, "one") == (" two three", 10)
    assert said(model, "one", tokens=4) == (" two", 4)
    assert said(model, "one", stop=["o t"]) == (" tw", 6)
    assert said(model, "one", stop=["ee!"]) == (" two three", 10)


@pytest.mark.parametrize("options", [{"tokens": 0}, {"stop": [""]}])
def test_what_would_end_every_answer_is_told(payload: Payload, options: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        said(LitertLmModel(payload, Reciter("one two")), "one", **options)


def test_a_prompt_that_leaves_no_room_is_told(payload: Payload) -> None:
    model = LitertLmModel(payload, Reciter("x" * 40))
    with pytest.raises(NoRoom, match="context holds 24"):
        said(model, "x" * 23)
    assert said(model, "x" * 22) == ("x" * 18, 1)  # the runtime knows itself when it is full; no more is counted than there is room for


def test_it_must_end_texts_where_the_bundle_says(payload: Payload) -> None:
    runtime = Reciter("a")
    runtime.stops = (0, 1)
    with pytest.raises(BundleError, match="ends texts at other tokens"):
        LitertLmModel(payload, runtime)


def test_without_a_template_nobody_converses(payload: Payload) -> None:
    with pytest.raises(DataError, match="no chat template"):
        LitertLmModel(payload, Reciter("a")).prompt_of_conversation([{"role": "user", "content": "a"}])


@pytest.mark.parametrize("length", [1, 2, 20, CONTEXT - 2, CONTEXT - 1, CONTEXT, 60])
def test_of_a_text_it_tells_how_likely_each_token_is_that_came(payload: Payload, length: int) -> None:
    model = LitertLmModel(payload, Reciter("a"))
    prompt = model.prompt_of_text("y" * length)
    found = model.expect(prompt, continued=False)
    # Of what fills the context, the last token that it can score is the one before the last.
    positions = [place for place in scored(min(length + 1, CONTEXT)) if place + 1 < CONTEXT - 1]
    assert found.numbers[:, 0].tolist() == np.float32([-(place + 1) / 100 for place in positions]).tolist()
    assert found.came.tolist() == [prompt.ids[place + 1] for place in positions]


@pytest.mark.parametrize("length", range(CONTEXT - 6, CONTEXT + 2))
def test_a_text_is_cut_where_a_character_ends(payload: Payload, length: int) -> None:
    model = LitertLmModel(payload, Reciter("a"))
    found = model.expect(model.prompt_of_text("y" * length + "𓀀" * 6), continued=False)
    assert len(found.came) > 0  # the fake has scored no more than it holds


@pytest.mark.parametrize(("text", "ends", "told"), [
    (" b", True, [" b", STOP]),  # it ended with the stop token,
    (" b", False, [" b"]),       # or with bytes that are no character yet
    ("é", True, []),             # of two tokens, and told as one piece
    (" bé", True, [" b"]),
])
def test_of_a_continuation_it_tells_the_tokens_that_its_text_tells(payload: Payload, text: str, ends: bool, told: list[str]) -> None:
    model = LitertLmModel(payload, Reciter("a" + text, ends=ends))
    prompt = model.prompt_of_text("a")
    found = model.expect(prompt, continued=True)
    ids = [number for part in told for number in tokenizer().encode(part).ids]
    assert found.came.tolist() == ids and found.tokens.shape == (len(ids), 0)
    assert found.numbers[:, 0].tolist() == np.float32([-(len(prompt.ids) + place) / 100 for place in range(len(ids))]).tolist()
    assert len(model.expect(model.prompt_of_text("z" * (CONTEXT - 2)), continued=True).came) == 0
