"""What commands share in speaking: one console, JSON or tables, numbers in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console

from edgeexport.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS
from edgeexport.verify.check import Verdict

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

EXIT_CODES = {Verdict.PASS: EXIT_PASS, Verdict.FAIL: EXIT_FAIL, Verdict.INCONCLUSIVE: EXIT_INCONCLUSIVE}
STYLES = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow", None: "dim"}

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
Command = Callable[..., Any]


def print_json(value: Any) -> None:
    """Print an object as JSON, and nothing else, to standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def megabytes(size: float | None) -> str:
    """Bytes as ``25.7 MB`` (10^6 bytes)."""
    return "?" if size is None else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def seconds(value: float) -> str:
    """Seconds as ``3.2 s`` or ``2 min 05 s``."""
    return f"{value:.1f} s" if value < 100 else f"{int(value // 60)} min {int(value % 60):02d} s"


def styled(verdict: Verdict | None) -> str:
    """A verdict in its colour."""
    return f"[{STYLES[verdict]}]{verdict.value if verdict else 'null'}[/]"
