"""Text that goes on: what is read, what ends it, and when it is certain."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgeexport.errors import DataError, NoRoom
from edgeexport.session.generation import GenerationSpec, Limits, Reader, TextStream, UntilStop, generate
from edgeexport.session.sampling import Sampling

GREEDY = Sampling()


def bytes_tokenizer() -> Tokenizer:
    """A token for each byte, so that most characters beyond ASCII need several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = bytes_tokenizer()
END = 255


class Reciter:
    """A model that knows one text by heart; it remembers what it was given to read."""

    def __init__(self, text: str, context: int = 64) -> None:
        self.ids = [*TOKENIZER.encode(text).ids, END]
        self.context, self.position, self.given = context, 0, []  # type: ignore[var-annotated]
        self.reader = Reader(self)

    def read(self, ids: np.ndarray) -> np.ndarray:
        assert len(ids) and self.position + len(ids) <= self.context
        self.given.append(ids.tolist())
        self.position += len(ids)
        return np.eye(256, dtype=np.float32)[self.ids[self.position] if self.position < len(self.ids) else END]

    def rewind(self, position: int) -> None:
        self.position = min(self.position, position)


def said(model: Reciter, prompt: str, tokens: int | None = None, stop: tuple[str, ...] = ()) -> list[str]:
    pieces = generate(model.reader, TOKENIZER, TOKENIZER.encode(prompt).ids, GREEDY, Limits(tokens, frozenset({END}), stop))
    return [piece.text for piece in pieces if piece.text]


def test_it_goes_on_until_the_token_that_ends_it() -> None:
    model = Reciter("one two three")
    assert said(model, "one") == list(" two three")
    assert model.given[0] == TOKENIZER.encode("one").ids and all(len(ids) == 1 for ids in model.given[1:])


def test_it_ends_at_a_number_of_tokens_and_reads_none_in_vain() -> None:
    model = Reciter("one two three")
    assert "".join(said(model, "one", tokens=4)) == " two" and len(model.given) == 4


def test_it_ends_when_the_context_is_full() -> None:
    assert "".join(said(Reciter("one two three", context=8), "one")) == " two "


def test_a_character_comes_when_it_is_whole() -> None:
    assert said(Reciter("é 島!"), "é") == [" ", "島", "!"]


def test_tokens_are_counted_and_what_is_not_completed_is_said_too() -> None:
    # The first bytes of a character that never comes whole; and a model that says nothing.
    model = Reciter("é 島")
    del model.ids[-2]
    pieces = list(generate(model.reader, TOKENIZER, TOKENIZER.encode("é").ids, GREEDY, Limits(None, frozenset({END}))))
    assert "".join(piece.text for piece in pieces) == TOKENIZER.decode(TOKENIZER.encode("é 島").ids[:-1])[1:] == " \ufffd"
    assert [piece.tokens for piece in pieces] == [1, 2, 3, 3]
    assert list(generate(Reciter("é").reader, TOKENIZER, TOKENIZER.encode("é").ids, GREEDY, Limits(None, frozenset({END})))) == [("", 0, "stop")]


def fallback_tokenizer() -> Tokenizer:
    """As Llama 2's: words with a mark for the space before them, and bytes, of which the newline is one."""
    words = ["\u2581Once", "\u2581upon", "a", "<0x0A>", "<0xE5>", "<0xB3>", "<0xB6>"]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


@pytest.mark.parametrize(("before", "tokens", "expected"), [
    ([], [0, 1, 2], "Once upona"),  # a text begins without a space
    ([0], [1, 1], " upon upon"),  # and goes on with one
    ([2], [4, 5, 6, 2], "\u5cf6a"),
    ([2], [3, 3], "\n\n"),
])
def test_tokens_that_are_bytes_or_begin_with_a_space(before: list[int], tokens: list[int], expected: str) -> None:
    stream = TextStream(fallback_tokenizer(), before=before)
    assert "".join([*(stream.add(token) for token in tokens), stream.end()]) == expected


@pytest.mark.parametrize("tokens", [[3, 4, 2, 1], [4, 5, 6, 4, 5, 2], [4, 4, 4], [3, 4, 3, 5, 6, 3]])
def test_bytes_that_are_no_character_stop_nothing(tokens: list[int]) -> None:
    stream = TextStream(fallback_tokenizer(), before=[2])
    said = "".join([*(stream.add(token) for token in tokens), stream.end()])
    assert "\ufffd" in said and said.replace("\ufffd", "").strip("\n") in {"a upon", "\u5cf6a", ""}


@pytest.mark.parametrize(("stop", "expected"), [(("two",), "one "), (("three", "two t"), "one "), (("tw0",), "one two three"), (("e t",), "on")])
def test_a_stop_string_ends_it_and_no_part_of_it_is_said(stop: tuple[str, ...], expected: str) -> None:
    pieces = said(Reciter("> one two three"), "> ", stop=stop)
    assert "".join(pieces) == expected
    for word in stop:  # not even for a moment
        assert not any("".join(pieces[:count]).endswith(word) for count in range(len(pieces) + 1))


def test_what_looks_like_a_stop_string_waits_and_is_said_at_the_end() -> None:
    stream = TextStream(TOKENIZER, UntilStop(("###",)))
    assert [stream.add(token) for token in TOKENIZER.encode("a##b#").ids] == ["a", "", "", "##b", ""]
    assert stream.end() == "#" and not stream.until.stopped


def test_a_conversation_is_not_read_again() -> None:
    model = Reciter("hello there general")
    assert "".join(said(model, "hello", tokens=6)) == " there"
    model.given.clear()
    assert "".join(said(model, "hello there")) == " general"
    # Of "hello there" all but the last token is held: what was said last was never read.
    assert model.given[0] == TOKENIZER.encode("e").ids


@pytest.mark.parametrize(("prompt", "read"), [("ab", "b"), ("abxyz", "xyz"), ("xbc", "xbc"), ("abc", "c"), ("abcdefg", "g")])
def test_another_prompt_is_read_from_where_it_differs(prompt: str, read: str) -> None:
    model = Reciter("abcdef")
    said(model, "abc", tokens=4)  # "def" and its end; of these the last was chosen, and never read
    model.given.clear()
    said(model, prompt, tokens=1)
    assert model.given == [TOKENIZER.encode(read).ids] and model.reader.ids == TOKENIZER.encode(prompt).ids


def test_two_answers_under_way_leave_each_other_alone() -> None:
    model = Reciter("abcdefgh")
    limits = Limits(None, frozenset({END}))
    answers = {prompt: generate(model.reader, TOKENIZER, TOKENIZER.encode(prompt).ids, GREEDY, limits) for prompt in ("ab", "xb")}
    found = dict.fromkeys(answers, "")
    for _ in range(9):
        for prompt, pieces in answers.items():
            piece = next(pieces, None)
            found[prompt] += piece.text if piece else ""
            # What the model holds is what the answer goes on from, whatever the other one left there.
            held = TOKENIZER.decode(model.reader.ids)
            assert piece is None or held == (prompt + found[prompt])[:len(held)]
    assert found == {"ab": "cdefgh", "xb": "cdefgh"}


@pytest.mark.parametrize(("prompt", "tokens", "stop", "ended"), [
    ("ab", None, (), "stop"), ("ab", 5, (), "stop"), ("ab", 4, (), "tokens"), ("ab", None, ("d",), "stop"), ("ab" + "x" * 60, None, (), "context"),
    ("ab" + "x" * 60, 2, (), "tokens")])
def test_what_ended_an_answer_is_said_with_its_last_piece(prompt: str, tokens: int | None, stop: tuple[str, ...], ended: str) -> None:
    model = Reciter("abcdef" if len(prompt) < 10 else "b" * 99)
    pieces = list(generate(model.reader, TOKENIZER, TOKENIZER.encode(prompt).ids, GREEDY, Limits(tokens, frozenset({END}), stop)))
    assert [piece.ended for piece in pieces] == [None] * (len(pieces) - 1) + [ended]


def test_an_empty_stop_string_is_told() -> None:
    with pytest.raises(DataError, match="stop string is empty"):
        said(Reciter("x"), "y", stop=("",))


def test_what_an_interrupted_reading_left_is_not_taken_for_read() -> None:
    model = Reciter("abcdef")
    model.position = 3  # read, but nobody knows what
    said(model, "ab", tokens=1)
    assert model.given == [TOKENIZER.encode("ab").ids] and model.position == 2


@pytest.mark.parametrize("tokens", [0, -1])
def test_an_answer_of_no_token_is_told(tokens: int) -> None:
    with pytest.raises(DataError, match="can't have"):
        said(Reciter("abc"), "a", tokens=tokens)


@pytest.mark.parametrize(("prompt", "told"), [("", "nothing to go on from"), ("x" * 64, "64 tokens"), ("x" * 100, "100 tokens")])
def test_a_prompt_without_room_is_told(prompt: str, told: str) -> None:
    with pytest.raises(NoRoom, match=told):
        said(Reciter("x"), prompt)


def test_a_spec_survives_being_written() -> None:
    spec = GenerationSpec((2, 7), "{{ x }}", {"bos_token": "<s>"}, {"chat_template": "chat_template.jinja"})
    assert GenerationSpec.from_dict(spec.as_dict()) == spec
