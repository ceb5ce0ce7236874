"""Chat templates in Transformers as if it were the day of proof, see :mod:`edgeexport.session.chat`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from unittest.mock import patch

from edgeexport.session.chat import DAY_OF_PROOF


class _Then(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return DAY_OF_PROOF


@contextmanager
def day_of_proof() -> Iterator[None]:
    """Have Transformers' templates take that day for the present. They ask the clock itself, and take no function from whoever calls them."""
    with patch("transformers.utils.chat_template_utils.datetime", _Then):
        yield
