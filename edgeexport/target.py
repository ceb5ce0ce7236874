"""A target: the profile of a device, read from a TOML file."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import Field, StringConstraints, model_validator

from edgeexport.artifact import Model, Task
from edgeexport.errors import TargetError, UnknownName
from edgeexport.policy import PRESETS
from edgeexport.toml_file import read_toml

Format = Literal["onnx", "tflite", "litertlm"]
# What is packed into another file → the form of the model in it.
PACKED = {"litertlm": "tflite"}
Isa = Literal["x86_64", "aarch64", "armv7l"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class Device(Model):
    """The hardware. Figures are of the smallest board that carries the name."""

    isa: Isa
    cpu: str
    features: tuple[str, ...] = ()
    cores: int = Field(gt=0)
    ram_mb: int = Field(gt=0, description="Memory of the device, in MB of 2^20 bytes.")


class Lane(Model):
    """A way to run a model on the device.

    Attributes:
        name: also the name of its evidence in a bundle.
        format: the file format.
        runtime: the runtime's distribution name.
        version: the range of versions that may be on the device.
        precision: the preset that is right in that very runtime.
        verified_by: the stand-in on the build host, ``name==version``.
        required: a bundle without this lane does not pass.
        tasks: the tasks it serves; default: all but text generation, which asks other things of a runtime.
        note: what a user of this lane should know.
    """

    name: Name
    format: Format
    runtime: str
    version: str
    precision: str
    verified_by: str
    required: bool = True
    tasks: tuple[Task, ...] = tuple(task for task in Task if task is not Task.TEXT_GENERATION)
    note: str | None = None

    @property
    def model_format(self) -> str:
        """The form of the model itself, which is exported and quantized."""
        return PACKED.get(self.format, self.format)

    @model_validator(mode="after")
    def _names_exist(self) -> Lane:
        if self.name == "reference":
            raise ValueError("a lane can't be called 'reference': its evidence would take the place of the original's")
        if self.precision not in PRESETS[self.model_format]:
            raise ValueError(f"lane '{self.name}': {self.format} has no precision '{self.precision}'; "
                             f"known: {', '.join(sorted(PRESETS[self.model_format]))}")
        return self

    @model_validator(mode="after")
    def _stand_in_stands_for_the_runtime(self) -> Lane:
        name, _, version = self.verified_by.partition("==")
        try:
            fits = name == self.runtime and Version(version) in SpecifierSet(self.version)
        except (InvalidSpecifier, InvalidVersion) as exc:
            raise ValueError(f"lane '{self.name}': {exc}") from exc
        if not fits:
            raise ValueError(f"lane '{self.name}': {self.verified_by} is not {self.runtime} {self.version}, so it would prove nothing")
        return self


class Budget(Model):
    """Limits that a lane must keep; None is no limit."""

    size_mb_max: float | None = Field(None, gt=0, description="Bytes of the variant's model files / 10^6.")
    size_ratio_max: float | None = Field(None, gt=0, description="Those bytes relative to the float32 weights.")
    ram_mb_max: float | None = Field(None, gt=0, description="Peak resident memory of the process / 2^20.")
    latency_ms_max: float | None = Field(None, gt=0, description="Median latency at the largest length, on the device.")


class Target(Model):
    """A device profile: hardware, lanes and budgets, each figure with its source."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    title: str
    device: Device
    lanes: tuple[Lane, ...] = Field(min_length=1)
    budget: Budget = Budget()
    sources: dict[str, str] = Field(default_factory=dict, description="Dotted key → where its figure comes from.")

    @model_validator(mode="after")
    def _lane_names_differ(self) -> Target:
        names = [lane.name for lane in self.lanes]
        if len(set(names)) != len(names):
            raise ValueError(f"lane names must differ, got {', '.join(names)}")
        return self

    def lane(self, name: str) -> Lane:
        """The lane called `name`.

        Raises:
            UnknownName: the target has no such lane.
        """
        for lane in self.lanes:
            if lane.name == name:
                return lane
        raise UnknownName.among(f"lane of target '{self.name}'", name, [lane.name for lane in self.lanes])


def target_names() -> list[str]:
    """The names of the targets that ship with the product."""
    folder = importlib.resources.files("edgeexport.targets")
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_target(name_or_path: str) -> Target:
    """A shipped target by name, or a user's own by the path of its TOML file.

    Raises:
        UnknownName: no such target.
        TargetError: there is no such file, or it is not a valid profile.
    """
    path = target_path(name_or_path)
    return read_toml(path, Target, TargetError, {"name": path.stem})


def target_path(name_or_path: str) -> Path:
    """The file of a target.

    Raises:
        UnknownName: no such target.
        TargetError: there is no such file.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise TargetError(f"There is no target file {path}.", hint="`edgeexport targets list` shows the built-in ones")
        return path
    if name_or_path not in target_names():
        raise UnknownName.among("target", name_or_path, target_names())
    return Path(str(importlib.resources.files("edgeexport.targets") / f"{name_or_path}.toml"))
