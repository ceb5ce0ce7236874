"""Every error a user can meet.

Each says what failed, why, and what to do next. The command line prints them and exits with :attr:`EdgeExportError.exit_code`;
`--json` shows them as an object whose ``kind`` is the class name.

This module imports only the standard library: the session that travels inside a bundle uses it too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_ERROR = 2
EXIT_INCONCLUSIVE = 3
EXIT_INTERRUPTED = 130


class EdgeExportError(Exception):
    """What failed, why, and what to do next."""

    exit_code = EXIT_ERROR

    def __init__(self, what: str, *, why: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what, self.why, self.hint = what, why, hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.hint:
            lines.append(f"  try: {self.hint}")
        return "\n".join(lines)

    @property
    def reason(self) -> str:
        """What and why as one line, for where an error is part of a report."""
        return f"{self.what.removesuffix('.')}: {self.why}" if self.why else self.what

    def as_dict(self) -> dict[str, str | None]:
        """The error as plain data, for `--json` and for crossing a process boundary."""
        return {"kind": type(self).__name__, "what": self.what, "why": self.why, "hint": self.hint}


class UnknownName(EdgeExportError):
    """A name (target, recipe key, preset, lane) that does not exist."""

    @classmethod
    def among(cls, what: str, name: str, known: Iterable[str]) -> UnknownName:
        """The error for `name`, with the nearest of the `known` names as its hint."""
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else None
        return cls(f"Unknown {what} '{name}'.", why=f"known: {', '.join(known)}", hint=hint)


class UsageError(EdgeExportError):
    """A command line that is not valid."""


class RecipeError(EdgeExportError):
    """A recipe that is not valid."""


class TargetError(EdgeExportError):
    """A target profile that is not valid."""


class CheckpointError(EdgeExportError):
    """A model source that is missing, damaged or not supported."""


class NetworkError(EdgeExportError):
    """A hub or registry that could not be reached."""


class DataError(EdgeExportError):
    """A dataset that is missing or has wrong fields."""


class NoRoom(DataError):
    """A question so long that no room is left for the text that holds its answer."""


class LineageError(EdgeExportError):
    """Evaluation data that would shape the model it judges."""


class MissingExtra(EdgeExportError):
    """An optional dependency that this command needs."""

    @classmethod
    def named(cls, extra: str, module: str) -> MissingExtra:
        """The error for a `module` that comes with the optional dependency group `extra`."""
        return cls(f"This needs the extra '{extra}'.", why=f"the package '{module}' is not installed",
                   hint=f"pip install 'edgeexport[{extra}]'")


    @classmethod
    def reader(cls, form: str, package: str) -> MissingExtra:
        """The error where only the library that reads a file format is needed, not the whole extra that brings it."""
        return cls(f"Looking into {form} files needs the package '{package}'.", hint=f"pip install {package}")


class PlanError(EdgeExportError):
    """A build that is refused before any work."""


class StepFailed(EdgeExportError):
    """A step that raised, crashed, hung or ran out of memory."""


class StoreError(EdgeExportError):
    """The store cannot be read or written."""


class OutputError(EdgeExportError):
    """A place that cannot be written to."""


class BundleError(EdgeExportError):
    """A bundle that is damaged, edited or not a bundle."""


class ModelFileError(EdgeExportError):
    """A model file that is damaged or of an unknown form."""


class RuntimeUnavailable(EdgeExportError):
    """A lane's runtime that cannot run here."""


class VerdictRefused(EdgeExportError):
    """Publishing or pulling something whose verdict is not pass."""


def from_dict(data: dict[str, str | None]) -> EdgeExportError:
    """The error that :meth:`EdgeExportError.as_dict` described; an unknown kind becomes a plain one."""
    kinds = {cls.__name__: cls for direct in EdgeExportError.__subclasses__() for cls in (direct, *direct.__subclasses__())}
    cls = kinds.get(data.get("kind") or "", EdgeExportError)
    return cls(data.get("what") or "unknown error", why=data.get("why"), hint=data.get("hint"))
