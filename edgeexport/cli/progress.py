"""Progress of a build: a live table on a terminal, one line per finished step elsewhere."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Protocol

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from edgeexport.cli.terminal import err, megabytes, seconds
from edgeexport.schedule import Event


class Progress(Protocol):
    """Shows the events of a build while in the block."""

    def tell(self, event: Event) -> None:
        """Take an event, from any thread."""

    def __enter__(self) -> Progress:
        """Begin."""
        ...

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """End."""


def show_progress() -> Progress:
    """A live table on a terminal; lines elsewhere."""
    return LiveProgress() if err.is_terminal and not os.environ.get("CI") else LineProgress()


class LineProgress:
    """One line for each step that was run; what was stored is counted."""

    def __init__(self) -> None:
        self._stored = 0

    def tell(self, event: Event) -> None:
        """Print what has ended."""
        if event.what == "cached":
            self._stored += 1
        elif event.what in {"finished", "reused", "failed"}:
            err.print(ended(event), soft_wrap=True)

    def __enter__(self) -> LineProgress:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Say how much was there already."""
        if kind is None and self._stored:
            err.print(stored(self._stored))


class LiveProgress:
    """The running steps with what they are doing, below the finished ones."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[float, Event]] = {}
        self._lock = threading.Lock()
        self._stored = 0
        self._live = Live(self._table(), console=err, refresh_per_second=8, transient=True, get_renderable=self._table)

    def tell(self, event: Event) -> None:
        """Take an event."""
        with self._lock:
            if event.what == "started":
                self._running[event.node] = (time.monotonic(), event)
            elif event.what == "progress" and event.node in self._running:
                self._running[event.node] = (self._running[event.node][0], event)
            else:
                self._running.pop(event.node, None)
                self._stored += event.what == "cached"
        if event.what in {"finished", "reused", "failed"}:
            self._live.refresh()  # else the step is drawn once more as running, below the line that says it has ended
            self._live.console.print(ended(event), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        with self._lock:
            for node, (started, event) in self._running.items():
                share = "" if event.fraction is None else f"{100 * event.fraction:3.0f} %"
                table.add_row("[cyan]…[/]", escape(node), f"[dim]{escape(event.message)}[/]", share, seconds(time.monotonic() - started))
        return table

    def __enter__(self) -> LiveProgress:
        """Begin."""
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Clear the running steps; say how much was there already."""
        self._live.stop()
        if kind is None and self._stored:
            err.print(f"[dim]{stored(self._stored)}[/]")


def stored(count: int) -> str:
    """How much was there already."""
    return "1 step was stored already" if count == 1 else f"{count} steps were stored already"


def ended(event: Event) -> str:
    """A line for a step that has ended."""
    if event.what == "failed":
        return f"[red]✗[/] {escape(event.node)}  [dim]{escape(event.message)}[/]"
    if event.entry is None:
        return event.node
    if event.what == "reused":
        return f"[green]✓[/] {escape(event.node)}  [dim]its inputs' contents did not change[/]"
    run = event.entry.run
    peak = f", peak {run.peak_rss_mb:,.0f} MB" if run.peak_rss_mb is not None else ""
    return f"[green]✓[/] {escape(event.node)}  [dim]{seconds(run.seconds)}, {megabytes(event.entry.artifact.size)}{peak}[/]"
