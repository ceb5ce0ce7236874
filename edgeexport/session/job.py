"""What the measuring agent's jobs have in common: they speak in JSON, a line an event, and know the memory of their process."""

from __future__ import annotations

import json
import resource
import sys
from typing import Any


def say(event: dict[str, Any]) -> None:
    """Write an event on standard output."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def report(fraction: float, message: str) -> None:
    """Tell the supervisor how far the job is."""
    say({"fraction": fraction, "message": message})


def peak_rss_mb() -> float:
    """Highest resident memory of this process so far, in MB of 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
