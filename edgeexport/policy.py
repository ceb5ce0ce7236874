"""A quantizer's option: a default scheme and ordered overrides; the named ones are presets."""

from __future__ import annotations

from typing import Literal

from edgeexport.artifact import Model
from edgeexport.errors import UnknownName

Scheme = Literal["float", "dynamic", "weight-only", "static", "blockwise", "blockwise-4bit"]
Ranges = Literal["minmax", "percentile", "entropy"]


class Override(Model):
    """Another scheme for what matches.

    Attributes:
        match: a shell pattern, tried on the path of an operator's module, such as ``*.layer.0.*`` or ``classifier``, and on the names of its
            weights and outputs; ``op:NAME`` matches every operator of that type, ``op:*`` every operator. One that matches nothing is an error.
        scheme: how those operators are computed. ``static`` and ``dynamic`` may be mixed in one file, and so may ``blockwise`` (8 bits) and
            ``blockwise-4bit``.
    """

    match: str
    scheme: Scheme


class Policy(Model):
    """How the operators of a model are computed; the last override that matches decides.

    Attributes:
        default: the scheme where no override matches.
        overrides: exceptions.
        ranges: how the range of a static activation is read from the values that calibration showed.
        smoothing: how much of the outliers of activations moves into the weights, from 0 to 1; None for what serves the model.
    """

    default: Scheme
    overrides: tuple[Override, ...] = ()
    ranges: Ranges = "minmax"
    smoothing: float | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether some operator has a static activation scale, which must be measured on data."""
        return self.default == "static" or any(override.scheme == "static" for override in self.overrides)

    @property
    def is_dynamic(self) -> bool:
        """Whether some operator rounds its activations by a scale of the moment."""
        return self.default == "dynamic" or any(override.scheme == "dynamic" for override in self.overrides)

    @property
    def measured(self) -> Policy:
        """The policy for which activations are measured: the same for all that differ only by operators made less static."""
        return Policy(default=self.default, overrides=tuple(override for override in self.overrides if override.scheme == "static"))


PRESETS: dict[str, dict[str, Policy]] = {
    "onnx": {
        "float32": Policy(default="float"),
        "dynamic-int8": Policy(default="dynamic"),
        "static-int8": Policy(default="static"),
        "blockwise-int8": Policy(default="blockwise"),
        "blockwise-int4": Policy(default="blockwise-4bit"),
    },
    "tflite": {
        "float32": Policy(default="float"),
        "dynamic-int8": Policy(default="dynamic"),
        "weight-only-int8": Policy(default="weight-only"),
        "static-int8": Policy(default="static"),
    },
}


def preset(model_format: str, name: str) -> Policy:
    """The policy that `name` stands for in a format.

    Raises:
        UnknownName: the format has no such preset.
    """
    if name not in PRESETS[model_format]:
        raise UnknownName.among(f"{model_format} precision", name, PRESETS[model_format])
    return PRESETS[model_format][name]
