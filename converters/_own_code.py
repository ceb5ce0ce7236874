"""Code that a checkpoint brings along."""

from __future__ import annotations

from pathlib import Path


def has_own_code(directory: Path) -> bool:
    """Whether a checkpoint artifact holds code of its own, which it does only where the user trusts it."""
    return any(directory.glob("*.py"))
