"""A bundle as an app uses it."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeexport.errors import BundleError, DataError, RuntimeUnavailable, UnknownName
from edgeexport.session.language_model import LanguageModel
from edgeexport.session.opening import open_session
from edgeexport.session.payload import RUNTIMES, Payload, Session
from edgeexport.session.sampling import Sampling

MANIFEST_FILE = "manifest.json"


class Bundle:
    """A sealed bundle, as a directory or an archive::

        bundle = Bundle.open("help-search-raspberrypi.zip")
        vector = bundle.run("how do I reset my password?")
    """

    def __init__(self, directory: Path, lane: str | None, threads: int, unpacked: tempfile.TemporaryDirectory[str] | None = None) -> None:
        """Use :meth:`open`."""
        self.directory = directory
        self._unpacked = unpacked  # kept alive as long as the bundle
        self._threads = threads
        try:
            self.manifest: dict[str, Any] = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
            self.lanes: dict[str, dict[str, Any]] = self.manifest["lanes"]
        except FileNotFoundError as exc:
            raise BundleError(f"{directory} is not a bundle.", why=f"it has no {MANIFEST_FILE}") from exc
        except (ValueError, KeyError) as exc:
            raise BundleError(f"{directory} is damaged.", why=f"{MANIFEST_FILE} cannot be read: {exc}") from exc
        self.payload = Payload(directory)
        if lane is not None and lane not in self.lanes:
            raise UnknownName.among("lane", lane, self.lanes)
        self._lane = lane

    @classmethod
    def open(cls, path: str | Path, *, lane: str | None = None, threads: int = 1) -> Bundle:
        """Open a bundle.

        Args:
            path: its directory, or its archive, which is unpacked to a temporary place.
            lane: which lane to run; default: the first whose runtime is installed.
            threads: how many threads an operator may use.

        Raises:
            BundleError: it is not a bundle, or damaged.
            UnknownName: it has no such lane.
        """
        path = Path(path)
        if path.is_dir():
            return cls(path, lane, threads)
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = tempfile.TemporaryDirectory(prefix="edgeexport-")
                archive.extractall(unpacked.name)
        except FileNotFoundError as exc:
            raise BundleError(f"There is no bundle at {path}.") from exc
        except zipfile.BadZipFile as exc:
            raise BundleError(f"{path} is not a bundle.", why=str(exc)) from exc
        return cls(Path(unpacked.name), lane, threads, unpacked)

    @property
    def lane(self) -> str:
        """The lane that is run.

        Raises:
            RuntimeUnavailable: no lane's runtime is installed.
        """
        if self._lane is not None:
            return self._lane
        for name, entry in self.lanes.items():
            if importlib.util.find_spec(RUNTIMES[entry["runtime"]].module.partition(".")[0]) is not None:
                return name
        wanted = sorted({str(entry["runtime"]) for entry in self.lanes.values()})
        raise RuntimeUnavailable("No runtime of this bundle is installed here.", hint=f"pip install {' or '.join(wanted)}")

    @cached_property
    def session(self) -> Session | LanguageModel:
        """The loaded lane."""
        entry = self.lanes[self.lane]
        return open_session(self.payload, entry["variant"], entry["runtime"], self._threads)

    def run(self, text: str, pair: str | None = None, *, role: str | None = None) -> Any:
        """The answer to a text, in the form of Transformers' pipelines; for an embedder, the vector as float32 [hidden]; for a language model,
        the text that comes next, or what it answers to a user who says that, as :meth:`generate` does it.

        Args:
            text: the text; for question answering, the question.
            pair: the second text; for question answering, the context.
            role: ``query`` or ``document``, where an embedder tells them apart.
        """
        session = self.session
        return "".join(self.generate(text)) if isinstance(session, LanguageModel) else session.answer(text, pair, role)

    def generate(self, request: str | Sequence[Mapping[str, Any]], *, tokens: int | None = None, stop: str | Sequence[str] = (),
                 **sampling: Any) -> Iterator[str]:
        """What a language model says, piece by piece::

            for piece in bundle.generate([{"role": "user", "content": "What is a lighthouse?"}], temperature=0.7, seed=1):
                print(piece, end="", flush=True)

        Args:
            request: a conversation; or a text, which is what a user says where the model was trained on conversations, and else is gone on with.
            tokens: how many it says at most; None for as many as the context holds.
            stop: text, or several, that ends it and is no part of it.
            sampling: the fields of :class:`edgeexport.session.sampling.Sampling`; without any, the likeliest token is taken each time.

        Raises:
            DataError: the model generates no text, or has no chat template and gets a conversation.
            NoRoom: the request leaves no room in the context.
        """
        session = self.session
        if not isinstance(session, LanguageModel):
            raise DataError(f"This is a model for {self.payload.head.task}, and generates no text.", hint="use run")
        pieces = session.generate(session.prompt(request), Sampling(**sampling), tokens, [stop] if isinstance(stop, str) else stop)
        return (piece.text for piece in pieces if piece.text)

    def run_all(self, texts: Sequence[str]) -> list[Any]:
        """The answers to several texts."""
        return [self.run(text) for text in texts]
