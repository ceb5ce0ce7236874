"""Digests depend on contents and names, and on nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeexport.artifact import Artifact, Blob, Kind, Spec, Task, canonical_json, digest_bytes, digest_file, digest_json, tree_digest

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=5),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8)


def test_canonical_json_has_sorted_keys_no_blanks_and_plain_letters() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": {"ü": "x y"}}) == '{"a":{"ü":"x y"},"b":[1,2.5,null,true]}'


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_has_no_canonical_form(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": number})


@given(st.dictionaries(names, json_values, max_size=5), st.randoms())
def test_the_order_of_keys_does_not_change_a_digest(value: dict[str, object], random: object) -> None:
    keys = list(value)
    random.shuffle(keys)  # type: ignore[attr-defined]
    assert digest_json({key: value[key] for key in keys}) == digest_json(value)


def test_digests_are_sha256_in_hexadecimal(tmp_path: Path) -> None:
    assert digest_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@given(st.dictionaries(names, st.binary(max_size=4), max_size=4))
def test_an_artifacts_digest_is_its_trees(files: dict[str, bytes]) -> None:
    tree = {name: Blob(digest=digest_bytes(data), size=len(data)) for name, data in files.items()}
    artifact = Artifact(tree=tree, spec=Spec(kind=Kind.ONNX))
    assert artifact.digest == tree_digest({name: digest_bytes(data) for name, data in files.items()})
    assert artifact.digest == Artifact(tree=tree, spec=Spec(kind=Kind.TFLITE, parameters=3)).digest
    assert artifact.size == sum(map(len, files.values()))


def test_another_name_or_content_is_another_artifact() -> None:
    digests = [tree_digest(files) for files in ({"a": "1"}, {"b": "1"}, {"a": "2"}, {}, {"a": "1", "b": "1"})]
    assert len(set(digests)) == 5


def test_schemas_are_frozen_and_refuse_keys_that_nobody_declared() -> None:
    blob = Blob(digest="x", size=1)
    with pytest.raises(ValidationError):
        blob.size = 2  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Blob(digest="x", size=1, colour="red")  # type: ignore[call-arg]


def test_what_must_have_a_task_says_so() -> None:
    assert Spec(kind=Kind.ONNX, task=Task.FILL_MASK).require_task() is Task.FILL_MASK
    with pytest.raises(ValueError, match="a dataset without a task"):
        Spec(kind=Kind.DATASET).require_task()
