"""Ids of tokens in the JSON beside a model: under keys such as ``pad_token_id``, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SUFFIX = "_token_id"


def named_ids(data: Any) -> set[int]:
    """The ids that the data names."""
    found: set[int] = set()

    def note(number: int) -> int:
        found.add(number)
        return number

    _visit(data, note)
    return found


def renumbered(data: Any, new_ids: Mapping[int, int]) -> Any:
    """The data with new ids; an id that no token had stays as it is."""
    return _visit(data, lambda number: new_ids.get(number, number))


def _visit(data: Any, change: Callable[[int], int], *, is_id: bool = False) -> Any:
    if isinstance(data, dict):
        return {key: _visit(value, change, is_id=str(key).endswith(SUFFIX)) for key, value in data.items()}
    if isinstance(data, list):  # several tokens may end a text
        return [_visit(value, change, is_id=is_id) for value in data]
    return change(data) if is_id and isinstance(data, int) else data
