"""edgeexport: Hugging Face checkpoints to INT8 TFLite and ONNX bundles, proven in the runtime the device has.

The light Python API is :class:`edgeexport.Bundle`::

    from edgeexport import Bundle
    answer = Bundle.open("help-search-raspberrypi").run("how do I reset my password?")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeexport.session import Bundle

__all__ = ["Bundle", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Deferred, so that `edgeexport --help` does not pay for NumPy.
    if name == "Bundle":
        from edgeexport.session import Bundle

        return Bundle
    raise AttributeError(f"module 'edgeexport' has no attribute '{name}'")
