"""A directory takes the place of another, on file systems that can exchange names and on those that can't."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeexport.take_place import exchange, take_place


@pytest.mark.parametrize("can", [True, False])
def test_one_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.mkdir()
        (path / "name").write_text(path.name)
    if can:
        assert exchange(one, other)
        assert ((one / "name").read_text(), (other / "name").read_text()) == ("other", "one")
        with pytest.raises(FileNotFoundError):
            exchange(one, tmp_path / "none")
        exchange(one, other)
    else:
        monkeypatch.setattr("edgeexport.take_place.exchange", lambda one, other: False)
    take_place(one, other)
    assert ((one / "name").read_text(), (other / "name").read_text()) == ("other", "one")
    take_place(one, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "other"]
