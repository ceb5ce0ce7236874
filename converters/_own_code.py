"""Code that a checkpoint brings along. One that is not trusted is refused before there is an artifact of it."""

from __future__ import annotations

import json
from pathlib import Path


def brings_model(directory: Path) -> bool:
    """Whether a checkpoint artifact's model is code of its own."""
    return _maps(directory / "config.json")


def brings_code(directory: Path) -> bool:
    """Whether its model or its tokenizer is."""
    return brings_model(directory) or _maps(directory / "tokenizer_config.json")


def _maps(path: Path) -> bool:
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("auto_map"))
