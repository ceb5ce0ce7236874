"""The session package as one archive that runs where the device is: the measuring agent, and the library in each bundle."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

from edgeexport.artifact import digest_bytes

MAIN = "import sys\n\nfrom edgeexport.session.agent import main\n\nsys.exit(main(sys.argv[1]))\n"
# Any fixed moment: the same sources give the same bytes.
EPOCH = (1980, 1, 1, 0, 0, 0)


@cache
def agent_archive() -> bytes:
    """The archive's bytes: `edgeexport/session`, what it imports, and a main module; equal sources give equal bytes."""
    package = Path(__file__).parent.parent
    names = ["__init__.py", "errors.py", *sorted(f"session/{path.name}" for path in (package / "session").glob("*.py"))]
    files = {f"edgeexport/{name}": (package / name).read_bytes() for name in names} | {"__main__.py": MAIN.encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return buffer.getvalue()


@cache
def agent_digest() -> str:
    """Digest of the archive: part of the key of whatever it measures."""
    return digest_bytes(agent_archive())
