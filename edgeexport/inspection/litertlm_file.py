"""What is in a ``.litertlm`` file: that of the TFLite model in it, and the bytes of the rest."""

from __future__ import annotations

import io
import mmap
import struct
from pathlib import Path
from typing import Any

from edgeexport.errors import MissingExtra, ModelFileError
from edgeexport.inspection.model import ModelReport
from edgeexport.inspection.tflite_file import read_tflite


def inspect_litertlm(path: Path) -> ModelReport:
    """What is in a ``.litertlm`` file; where several models are, in the largest.

    Raises:
        ModelFileError: it is damaged, or has no model.
        MissingExtra: a library that reads it is not installed.
    """
    try:
        from litert_lm_builder import litertlm_header_schema_py_generated as header
        from litert_lm_builder import litertlm_peek
    except ImportError as exc:
        raise MissingExtra.reader("LiteRT-LM", "litert-lm-builder") from exc
    try:
        sections = _models(litertlm_peek.read_litertlm_header(str(path), io.StringIO()), header)
    except (struct.error, LookupError, ValueError, TypeError, OverflowError, AttributeError) as exc:
        raise ModelFileError(f"The LiteRT-LM file {path} is damaged.", why=str(exc) or type(exc).__name__, hint="build or download it again") from exc
    size = path.stat().st_size
    begin, end = max(sections, key=lambda section: section[1] - section[0], default=(0, 0))
    if not 0 < begin < end <= size:
        raise ModelFileError(f"The LiteRT-LM file {path} has no whole model.", why=f"its largest one is from byte {begin} to {end} of {size}",
                             hint="build or download it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as whole, whole[begin:end] as model:
        found = read_tflite(path, model)
    return found.model_copy(update={"format": "litertlm", "bytes": size, "overhead_bytes": found.overhead_bytes + size - (end - begin)})


def _models(metadata: Any, header: Any) -> list[tuple[int, int]]:
    """Where TFLite models begin and end."""
    table = metadata.SectionMetadata()
    sections = [table.Objects(number) for number in range(table.ObjectsLength())]
    return [(section.BeginOffset(), section.EndOffset()) for section in sections if section.DataType() == header.AnySectionDataType.TFLiteModel]
