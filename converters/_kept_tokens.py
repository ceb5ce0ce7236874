"""Which tokens of a vocabulary stay, so that a text which was known stays known.

**WordPiece** takes the longest piece that fits, again and again, and calls a whole word unknown where none fits. With a piece for each
character, at the start of a word and within it, one always fits. A character may lack its own piece and be known only inside longer ones:
these all stay. The longest of them is then taken where it was taken before, unless a piece that begins earlier, and within a word, runs into it;
so those that end as one of them begins must go. (At the start of a word a shorter piece than before is taken, which reaches nowhere new.)

**BPE** begins with single characters and joins neighbours in the order of its merges. A token needs the two parts of its last merge, and
theirs. Where every token on a word's way stays, the way is the same: at each step the merge that came first among all still comes first among
those left. A token comes of the same merges wherever it comes, since a merge across its border would have prevented it; so the way of its own
text alone tells its parts.

**Unigram** takes the best sum of scores, and unknown is only what has no piece of its own. With a piece for each character there is no choice
about that. Where a character is known only inside longer pieces, these stay, and the unknown token must cost more than any other way: it may
have been a little worse than the best way, and better than the next.

Source: models/wordpiece, models/bpe and models/unigram of the tokenizers library, version 0.23.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from itertools import pairwise

from edgeexport.errors import CheckpointError, RecipeError

from ._tokenizer_file import BPE, WORDPIECE, TokenizerFile

BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Demands:
    """What a tokenizer's model asks of a choice of its tokens.

    Attributes:
        alphabet: ids that must stay: the single characters and bytes, and what else a known text could not do without.
        order: the other ids that may stay, the most useful first, as far as the vocabulary's own order tells.
        parts: id of a BPE token → ids of the two tokens that it is made of.
        unknown_last: whether the unknown token must cost more than any other way to read a text.
    """

    alphabet: frozenset[int]
    order: tuple[int, ...]
    parts: dict[int, tuple[int, int]] = field(default_factory=dict)
    unknown_last: bool = False


def demands(file: TokenizerFile, apart: Set[int]) -> Demands:
    """What must stay and what may.

    Args:
        file: the tokenizer.
        apart: ids of tokens that stay in any case, and are found before a text is split: no characters are known by them alone.

    Raises:
        CheckpointError: no choice can keep known what is known.
    """
    if file.model["type"] == WORDPIECE:
        return _wordpiece(file, apart)
    return _bpe(file) if file.model["type"] == BPE else _unigram(file, apart)


def choose(wanted: Demands, special: Set[int], size: int, tokens: Mapping[int, int], texts: Mapping[int, int]) -> list[int]:
    """The ids that stay, in ascending order: those that must, then the most frequent ones, then the rest in the vocabulary's own order.

    Args:
        wanted: what the tokenizer's model asks.
        special: ids that must stay besides, with what they are made of.
        size: how many may stay.
        tokens: id → how often it comes in the user's texts.
        texts: id → in how many of them; decides where two come equally often.

    Raises:
        RecipeError: more must stay than may.
    """
    kept = wanted.alphabet.union(*(_with_parts(number, wanted.parts) for number in special))
    if len(kept) > size:
        raise RecipeError(f"A vocabulary of {size:,} tokens is too small for this model.",
                          why="its special tokens and single characters, without which texts would become unknown, are "
                              f"{len(kept):,} already", hint=f"the smallest size is {len(kept)}")
    for number in sorted(wanted.order, key=lambda number: (-tokens.get(number, 0), -texts.get(number, 0))):
        added = _with_parts(number, wanted.parts) - kept
        if len(kept) + len(added) <= size:
            kept |= added
    return sorted(kept)


def _with_parts(number: int, parts: dict[int, tuple[int, int]]) -> set[int]:
    found, todo = set(), [number]
    while todo:
        token = todo.pop()
        found.add(token)
        todo += parts.get(token, ())
    return found


def _wordpiece(file: TokenizerFile, apart: Set[int]) -> Demands:
    pieces, prefix = file.pieces, file.model["continuing_subword_prefix"]
    goes_on = {number for piece, number in pieces.items() if piece.startswith(prefix) and piece != prefix}
    texts = {number: piece.removeprefix(prefix) if number in goes_on else piece for piece, number in pieces.items()}
    single = {(text, number in goes_on) for number, text in texts.items() if len(text) == 1}

    def hidden(number: int) -> int:
        """One more than the last place of a character without a piece of its own; 0 where there is none."""
        return max((place + 1 for place, character in enumerate(texts[number])
                    if (character, place > 0 or number in goes_on) not in single), default=0)

    alphabet = {number for number, text in texts.items() if len(text) == 1 or (number not in apart and hidden(number))}
    openings = {texts[number][:end] for number in alphabet & goes_on for end in range(1, hidden(number))}
    running_in = {number for number in goes_on if any(texts[number][start:] in openings for start in range(1, len(texts[number])))}
    if running_in & alphabet:
        piece = next(piece for piece, number in pieces.items() if number in running_in & alphabet)
        raise CheckpointError("The vocabulary cannot be trimmed without making known words unknown.",
                              why=f"it has characters that only longer pieces hold which overlap, such as '{piece}'", hint="leave the step out")
    # What normalization or splitting takes apart never comes: BERT has 994 such places in reserve.
    never = {number for number, text in texts.items() if not _is_one_word(file, f"a{text}" if number in goes_on else text)}
    order = sorted(texts.keys() - alphabet - running_in, key=lambda number: (number in never, number))
    return Demands(frozenset(alphabet), tuple(order))


def _is_one_word(file: TokenizerFile, text: str) -> bool:
    normalizer, splitter = file.tokenizer.normalizer, file.tokenizer.pre_tokenizer
    text = normalizer.normalize_str(text) if normalizer else text
    return splitter is None or len(splitter.pre_tokenize_str(text)) == 1


def _bpe(file: TokenizerFile) -> Demands:
    pieces = file.pieces
    ranks = {(left, right): rank for rank, (left, right) in enumerate(file.model["merges"])}
    alphabet = {number for piece, number in pieces.items() if len(piece) == 1} | _byte_pieces(file)
    parts, ranked = {}, {}
    for piece, number in pieces.items():
        last = _last_merge(piece, ranks)
        if last is not None:
            parts[number] = (file.ids[last[0]], file.ids[last[1]])
            ranked[number] = ranks[last]
    # What no merge makes comes only as a whole word, and only where the tokenizer looks for those first.
    order = sorted(set(pieces.values()) - alphabet, key=lambda number: (ranked.get(number, len(ranks)), number))
    return Demands(frozenset(alphabet), tuple(order), parts)


def _last_merge(piece: str, ranks: dict[tuple[str, str], int]) -> tuple[str, str] | None:
    """The two tokens of which the merges make a piece out of its characters at last; None where they don't."""
    tokens = list(piece)
    while len(tokens) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairwise(tokens)))
        if rank == len(ranks):
            return None
        if len(tokens) == 2:
            return tokens[0], tokens[1]
        tokens[place:place + 2] = [tokens[place] + tokens[place + 1]]
    return None


def _unigram(file: TokenizerFile, apart: Set[int]) -> Demands:
    pieces = file.pieces
    scores: list[float] = [score for _, score in file.model["vocab"]]
    spelled_in_bytes = _byte_pieces(file)
    hidden: set[int] = set()
    if len(spelled_in_bytes) < 256:
        hidden = {number for piece, number in pieces.items() if number not in apart and any(character not in pieces for character in piece)}
    alphabet = {number for piece, number in pieces.items() if len(piece) == 1} | spelled_in_bytes | hidden
    # Transformers' classes for these tokenizers know by heart which id the unknown token has: what stands before it stays.
    alphabet |= set(range(file.model["unk_id"] or 0))
    order = sorted(set(pieces.values()) - alphabet, key=lambda number: (-scores[number], number))
    return Demands(frozenset(alphabet), tuple(order), unknown_last=bool(hidden))


def _byte_pieces(file: TokenizerFile) -> set[int]:
    return {number for piece, number in file.pieces.items() if BYTE_PIECE.fullmatch(piece)} if file.model["byte_fallback"] else set()
