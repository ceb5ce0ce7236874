"""Standard error while LiteRT is loaded: kept quiet, given back, and not needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from edgeexport.session.run_tflite_decoder import quietly
with quietly():
    os.system("echo hidden >&2")
try:
    with quietly():
        raise ValueError("told")
except ValueError as exc:
    print(exc)
if sys.stderr is not None:
    print("seen", file=sys.stderr)
"""


@pytest.mark.parametrize(("prefix", "errors"), [("", "seen\n"), ("exec 2>&-;", "")])
def test_what_is_written_meanwhile_is_hidden_and_errors_are_raised(prefix: str, errors: str) -> None:
    done = subprocess.run(["sh", "-c", f'{prefix} exec "$0" -c "$1"', sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "told\n", errors)
