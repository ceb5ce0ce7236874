"""A base install of the product: an environment with its required dependencies and nothing else, made without a network."""

from __future__ import annotations

import importlib.metadata
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

import edgeexport
from edgeexport import converters, targets


def make_base_install(directory: Path) -> Path:
    """Make the environment from links to what is installed here; returns its interpreter."""
    venv.create(directory, symlinks=True)
    site = next(directory.glob("lib/python*/site-packages"))
    own, *others = required("edgeexport", set())
    for distribution in others:
        for name in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            (site / name).symlink_to(Path(str(distribution.locate_file(name))))
    # The product may be installed in place, where its parts lie in several directories.
    (site / "edgeexport").mkdir()
    for path in Path(edgeexport.__path__[0]).iterdir():
        (site / "edgeexport" / path.name).symlink_to(path)
    for package in (converters, targets):
        (site / "edgeexport" / package.__name__.rpartition(".")[2]).symlink_to(package.__path__[0])
    (site / f"edgeexport-{own.version}.dist-info").mkdir()
    (site / f"edgeexport-{own.version}.dist-info" / "METADATA").write_text(own.read_text("METADATA") or own.read_text("PKG-INFO") or "")
    return directory / "bin" / "python"


def required(name: str, seen: set[str]) -> Iterator[importlib.metadata.Distribution]:
    """A distribution and all that it requires without any extra."""
    if name in seen:
        return
    seen.add(name)
    distribution = importlib.metadata.distribution(name)
    yield distribution
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield from required(requirement.name.lower().replace("_", "-"), seen)
