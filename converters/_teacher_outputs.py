"""What a teacher makes of a data set, on disk: in shards that are written one after the other and read as they are needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ._examples import Example

if TYPE_CHECKING:
    import numpy as np

INDEX_FILE = "teacher.json"
# A shard ends at whichever comes first.
SHARD_ROWS = 1024
SHARD_BYTES = 256_000_000


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher makes of one text.

    Attributes:
        answers: float32 [rows, values], as :meth:`Objective.run` gives them.
        anchors: int32 [anchors, 2]: the keys of the tokens that `hidden` and `relations` are about.
        hidden: float16 or float32 [anchors, layers, width]: the hidden states after the layers that were asked for.
        relations: float16 or float32 [3, anchors, anchors]: how alike the queries, the keys and the values of the last layer are.
    """

    answers: np.ndarray
    anchors: np.ndarray
    hidden: np.ndarray
    relations: np.ndarray

    @property
    def size(self) -> int:
        """Bytes."""
        return self.answers.nbytes + self.anchors.nbytes + self.hidden.nbytes + self.relations.nbytes


def narrowed(values: np.ndarray) -> np.ndarray:
    """The values in 16 bits, or in 32 where one is beyond the range of float16, as MobileBERT's hidden states are."""
    import numpy as np

    return values.astype(np.float16 if np.abs(values).max(initial=0) <= np.finfo(np.float16).max else np.float32)


class TeacherWriter:
    """Writes shards; memory holds one at a time."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._rows: list[TeacherOutput] = []
        self._places: dict[int, tuple[int, int]] = {}
        self._shards = self._bytes = 0

    def add(self, example: Example, output: TeacherOutput) -> None:
        """The next text."""
        self._places[example.row] = (self._shards, len(self._rows))
        self._rows.append(output)
        self._bytes += output.size
        if len(self._rows) == SHARD_ROWS or self._bytes >= SHARD_BYTES:
            self._write()

    def close(self) -> None:
        """Write what is left, and where each row is."""
        if self._rows:
            self._write()
        (self._out / INDEX_FILE).write_text(json.dumps({str(row): place for row, place in self._places.items()}), encoding="utf-8")

    def _write(self) -> None:
        import numpy as np

        rows = self._rows
        for name in ("answers", "anchors", "hidden"):
            np.save(self._out / f"{name}-{self._shards}.npy", np.concatenate([getattr(row, name) for row in rows]))
        np.save(self._out / f"relations-{self._shards}.npy", np.concatenate([row.relations.ravel() for row in rows]))
        sizes = np.array([(len(row.answers), len(row.anchors), row.relations.size) for row in rows], np.int64)
        np.save(self._out / f"ends-{self._shards}.npy", np.cumsum(sizes, axis=0))
        self._shards += 1
        self._rows, self._bytes = [], 0


class TeacherOutputs:
    """Reads what :class:`TeacherWriter` wrote; files are mapped, not loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        places = json.loads((path / INDEX_FILE).read_text(encoding="utf-8"))
        self._places: dict[int, tuple[int, int]] = {int(row): (shard, place) for row, (shard, place) in places.items()}
        self._open: dict[str, np.ndarray] = {}

    def __contains__(self, row: int) -> bool:
        return row in self._places

    def __getitem__(self, row: int) -> TeacherOutput:
        shard, place = self._places[row]
        ends = self._file("ends", shard)
        start, stop = (ends[place - 1] if place else 0 * ends[0]).tolist(), ends[place].tolist()
        count = stop[1] - start[1]
        relations = self._file("relations", shard)[start[2]:stop[2]]
        return TeacherOutput(
            self._file("answers", shard)[start[0]:stop[0]], self._file("anchors", shard)[start[1]:stop[1]],
            self._file("hidden", shard)[start[1]:stop[1]], relations.reshape(-1, count, count))

    def _file(self, name: str, shard: int) -> np.ndarray:
        import numpy as np

        name = f"{name}-{shard}.npy"
        if name not in self._open:
            self._open[name] = np.load(self._path / name, mmap_mode="r")
        return self._open[name]
