"""The command line as the tests call it: a process each, with a store and a working directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of a tiny classifier, to be filled in with its directory and added to.
TINY_DECODER_RECIPE = """schema = 1
name = "tiny-chat"
[model]
source = "{model}"
[export]
lengths = [16]
"""
TINY_RECIPE = """schema = 1
name = "tiny"
[model]
source = "{model}"
[export]
lengths = [16, 32]
"""


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Cli:
    """The command line with a store and a working directory of its own; the runtimes' environments are shared by all tests."""

    directory: Path
    python: str = sys.executable

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "EDGEEXPORT_CACHE": str(self.directory / "cache"), "CI": "true", "COLUMNS": "80"}

    def command(self, *arguments: str) -> list[str]:
        return [self.python, "-m", "edgeexport", *arguments]

    def __call__(self, *arguments: str, env: dict[str, str] | None = None) -> Ran:
        done = subprocess.run(self.command(*arguments), cwd=self.directory, env=self.environment | (env or {}), capture_output=True,
                              text=True, check=False, stdin=subprocess.DEVNULL)
        return Ran(done.returncode, done.stdout, done.stderr)
