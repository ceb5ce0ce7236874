"""A lane's environment: the runtime, NumPy and tokenizers, pinned, and nothing else. Made on first use, offline afterwards."""

from __future__ import annotations

import importlib.resources
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from edgeexport.artifact import digest_bytes
from edgeexport.errors import RuntimeUnavailable, UnknownName
from edgeexport.store import FREE_SPACE, default_root

COMPLETE = "complete"
LEAST_FREE = 200e6  # bytes; an environment takes up to 150 MB, NumPy and tokenizers included


class Environment:
    """A virtual environment made from a lock file ``runtimes/NAME==VERSION.txt``.

    The lock's first line may be ``# python X.Y``, where the runtime has wheels for one version only.

    Attributes:
        stand_in: ``name==version`` of the runtime.
        lock: the pinned requirements, with hashes.
    """

    def __init__(self, stand_in: str, root: Path | None = None) -> None:
        """Find the lock file.

        Raises:
            UnknownName: the product has no environment for this stand-in.
        """
        folder = Path(str(importlib.resources.files("edgeexport.runner"))) / "runtimes"
        path = folder / f"{stand_in}.txt"
        if not path.is_file():
            raise UnknownName.among("stand-in runtime", stand_in, [file.stem for file in folder.glob("*.txt")])
        self.stand_in = stand_in
        self.lock = path.read_text(encoding="utf-8")
        self._lock_path = path
        self.directory = (root or default_root()) / "environments" / f"{stand_in}-{self.digest[:12]}"

    @property
    def digest(self) -> str:
        """Digest of the lock: part of the key of whatever is measured here."""
        return digest_bytes(self.lock.encode())

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.directory / "bin" / "python"

    @property
    def ready(self) -> bool:
        """Whether it was made completely, and the interpreter that it was made with is still there."""
        return (self.directory / COMPLETE).is_file() and self.python.exists()

    def ensure(self, report: Callable[[str], None] = lambda message: None) -> Path:
        """Make the environment if it is not there; safe when several builds do so at once.

        Raises:
            RuntimeUnavailable: no fitting Python, or the packages can't be fetched; says which.
        """
        if self.ready:
            return self.python
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.directory}.lock"):
            if self.ready:
                return self.python
            report(f"making the environment for {self.stand_in}")
            shutil.rmtree(self.directory, ignore_errors=True)
            self._run([self._base_python(), "-m", "venv", str(self.directory)])
            self._run([str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes",
                       "--only-binary", ":all:", "-r", str(self._lock_path)])
            self._run([str(self.python), "-m", "pip", "uninstall", "--quiet", "--yes", "pip", "setuptools"])
            (self.directory / COMPLETE).touch()
        return self.python

    def base_python_or_problem(self) -> tuple[str | None, str | None]:
        """The interpreter that the environment can be made with, or why there is none."""
        try:
            return self._base_python(), None
        except RuntimeUnavailable as exc:
            return None, f"{exc.what} {exc.hint}"

    def _base_python(self) -> str:
        first = self.lock.splitlines()[0]
        wanted = first.removeprefix("# python ").strip() if first.startswith("# python ") else ""
        if not wanted or wanted == f"{sys.version_info.major}.{sys.version_info.minor}":
            return sys.executable
        found = shutil.which(f"python{wanted}")
        if found is None:
            raise RuntimeUnavailable(f"{self.stand_in} needs Python {wanted}.", why=f"this is Python {sys.version.split()[0]}",
                                     hint=f"install python{wanted}, or leave the lane out")
        return found

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                              env={key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}})
        if done.returncode:
            what, free = f"The environment for {self.stand_in} could not be made.", shutil.disk_usage(self.directory.parent).free
            if free < LEAST_FREE:  # pip and venv name many causes then, hardly ever this one
                raise RuntimeUnavailable(what, why=f"{self.directory.parent} has {free / 1e6:.0f} MB left",
                                         hint=FREE_SPACE)
            lines = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
            raise RuntimeUnavailable(what, why=lines[-1] if lines else None, hint="check the network; the package index is needed once")


