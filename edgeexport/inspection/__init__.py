"""What is in a model file: operators, how they compute, and where the bytes are."""

from __future__ import annotations

from pathlib import Path

from edgeexport.errors import ModelFileError
from edgeexport.inspection.model import ModelReport

__all__ = ["ModelReport", "inspect_file"]

# Source: FlatBuffers' internals, "File identification"; TFLite's schema.fbs, file_identifier.
TFLITE_MAGIC = b"TFL3"
# Source: litert-lm-builder's litertlm_core, HEADER_MAGIC_BYTES.
LITERTLM_MAGIC = b"LITERTLM"
# An ONNX file starts with ModelProto's field 1, ir_version, a varint. Source: onnx.proto; Protocol Buffers' encoding.
ONNX_FIRST_BYTE = b"\x08"


def inspect_file(path: str | Path) -> ModelReport:
    """What is in an ONNX, TFLite or LiteRT-LM file; its content decides which it is, and where it does not tell, its suffix.

    Raises:
        ModelFileError: there is no such file, or it is damaged or of another form.
        MissingExtra: the library that reads this format is not installed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as exc:
        raise ModelFileError(f"Cannot read the model {path}.", why=exc.strerror) from exc
    if start[4:8] == TFLITE_MAGIC:
        from edgeexport.inspection.tflite_file import inspect_tflite

        return inspect_tflite(path)
    if start == LITERTLM_MAGIC:
        from edgeexport.inspection.litertlm_file import inspect_litertlm

        return inspect_litertlm(path)
    if path.suffix == ".tflite":
        raise ModelFileError(f"{path} is not a TFLite file.", why=f"bytes 4 to 8 should be {TFLITE_MAGIC!r}, and are {start[4:8]!r}",
                             hint="the file may be damaged, or only a pointer to it; build or download it again")
    if path.suffix == ".onnx" or start[:1] == ONNX_FIRST_BYTE:
        from edgeexport.inspection.onnx_file import inspect_onnx

        return inspect_onnx(path)
    raise ModelFileError(f"{path} is neither an ONNX, a TFLite nor a LiteRT-LM file.", why="it does not begin as one of them does",
                         hint="the file may be damaged, or only a pointer to it; build or download it again")
