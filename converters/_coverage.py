"""How well a vocabulary serves a user's texts: how often its tokens come, and what becomes of the texts when some of them go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any

from edgeexport.dataset import ROWS_FILE, stream_rows
from edgeexport.errors import DataError
from edgeexport.session.text import TextSpec

from ._tokenizer_file import TokenizerFile

# So many of the dropped tokens are shown.
SHOWN = 8

# A text, or two that belong together.
Text = tuple[str, str | None]


def read_texts(dataset: Path, spec: TextSpec) -> Iterator[Text]:
    """The texts of a data set artifact, with the prefixes that the model gets."""
    for row in stream_rows(dataset / ROWS_FILE):
        yield (spec.query_prefix if row.role == "query" else spec.document_prefix) + row.text, row.text_pair


def count_tokens(file: TokenizerFile, texts: Iterable[Text], tokens: Counter[int], in_texts: Counter[int]) -> None:
    """Add how often each token comes, and in how many of the texts; long texts are not cut."""
    for text, pair in texts:
        ids = file.tokenizer.encode(text, pair, add_special_tokens=False).ids
        tokens.update(ids)
        in_texts.update(set(ids))


def measure_coverage(name: str, texts: Iterable[Text], before: TokenizerFile, after: TokenizerFile, kept: Set[int],
                     max_length: int) -> dict[str, Any]:
    """What becomes of a data set's texts; special tokens count only for the length.

    Args:
        name: the data set.
        texts: its texts.
        before: the tokenizer with all of its tokens.
        after: the one with some of them.
        kept: the old ids of these.
        max_length: of how many tokens the model reads, special tokens included.

    Returns:
        ``texts`` and ``tokens``, counts; ``kept_share``, the part of the tokens that are still there; ``tokens_per_text``, ``unknown`` (tokens) and
        ``cut`` (texts that are too long), each ``before`` and ``after``; ``dropped``, the most frequent tokens that are gone, with
        the ``pieces`` that stood for them at their first place.

    Raises:
        DataError: there are no texts.
    """
    count = 0
    tokens: Counter[int] = Counter()
    lengths, unknown, cut = Counter[str](), Counter[str](), Counter[str]()
    pieces: dict[int, list[str]] = {}
    for text, pair in texts:
        count += 1
        encodings = {"before": before.tokenizer.encode(text, pair, add_special_tokens=False),
                     "after": after.tokenizer.encode(text, pair, add_special_tokens=False)}
        for when, file in (("before", before), ("after", after)):
            ids = encodings[when].ids
            lengths[when] += len(ids)
            unknown[when] += sum(number == file.unknown_id for number in ids)
            cut[when] += len(ids) + file.tokenizer.num_special_tokens_to_add(pair is not None) > max_length
        old, new = encodings["before"], encodings["after"]
        tokens.update(old.ids)
        for number, span, sequence in zip(old.ids, old.offsets, old.sequence_ids, strict=True):
            if number not in kept and number not in pieces:
                pieces[number] = [token for token, (start, end), other in zip(new.tokens, new.offsets, new.sequence_ids, strict=True)
                                  if other == sequence and start < span[1] and end > span[0]]
    if not tokens:
        raise DataError(f"The data set '{name}' has no texts to count tokens in.", hint="name one that has, or leave it out")
    dropped = sorted((number for number in tokens if number not in kept), key=lambda number: (-tokens[number], number))
    return {
        "texts": count, "tokens": tokens.total(), "kept_share": 1 - sum(tokens[number] for number in dropped) / tokens.total(),
        "tokens_per_text": {when: lengths[when] / count for when in ("before", "after")},
        "unknown": {when: unknown[when] for when in ("before", "after")}, "cut": {when: cut[when] for when in ("before", "after")},
        "dropped": [{"token": before.tokenizer.id_to_token(number), "count": tokens[number], "pieces": pieces[number]} for number in dropped[:SHOWN]]}
