"""The light runtime: text → tokens → one runtime → an answer. NumPy, tokenizers and the runtime; nothing else.

`edgeexport run`, `edgeexport verify`, the sample in each bundle and the measuring agent are all thin users of this package.
"""

from edgeexport.session.bundle import Bundle
from edgeexport.session.payload import Payload, Session, TruncationWarning

__all__ = ["Bundle", "Payload", "Session", "TruncationWarning"]
