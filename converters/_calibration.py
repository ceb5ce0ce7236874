"""Calibration data as model inputs: tokenized as the lanes will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeexport.artifact import Task
from edgeexport.dataset import ROWS_FILE, read_rows
from edgeexport.session.text import Tokenizer, read_text_spec
from edgeexport.step import View


def calibration_feeds(checkpoint: View, dataset: Path, lengths: Sequence[int] = ()) -> list[dict[str, np.ndarray]]:
    """Model inputs, int64 [1, length], for each row of a data set.

    Args:
        checkpoint: the checkpoint artifact, for its tokenizer and text spec.
        dataset: the data set artifact.
        lengths: static lengths to fill up to, the last of which cuts; empty where the length is dynamic.
    """
    spec = read_text_spec(checkpoint.path / "text.json")
    longest = min(spec.max_length, lengths[-1]) if lengths else spec.max_length
    cut = "only_second" if checkpoint.spec.task is Task.QUESTION_ANSWERING else "longest_first"
    tokenizer = Tokenizer(checkpoint.path / "tokenizer.json", replace(spec, max_length=longest), cut)
    feeds = []
    for row in read_rows(dataset / ROWS_FILE):
        encoded = tokenizer.encode(spec.prefixed(row.text, row.role), row.text_pair)
        count = len(encoded.ids)
        feeds.append(encoded.feeds(spec, next((length for length in lengths if length >= count), count)))
    return feeds
