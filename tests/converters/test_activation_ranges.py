"""Ranges of activations: the histogram against NumPy's, the criteria against implementations of a few lines, and a model's true extremes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from edgeexport.converters import _onnx_quantization, _tflite_quantization
from edgeexport.converters._activation_ranges import BINS, COVERED, LEVELS, Histogram, load_histograms, save_histograms
from edgeexport.converters._calibration import calibration_feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from int8 import CLASSIFIER, EMBEDDER, model_file
from tiny import LENGTHS, TEXTS
from zoo import Zoo, as_rows

from edgeexport.policy import preset


def filled(chunks: list[np.ndarray]) -> Histogram:
    histogram = Histogram()
    for chunk in chunks:
        histogram.add(chunk)
    return histogram


def parts(values: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return [part for part in np.split(values, sorted(cut % (len(values) + 1) for cut in cuts)) if part.size]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 400), spread=st.floats(0.01, 3.0), shift=st.floats(-5, 5),
       cuts=st.lists(st.integers(0, 400), max_size=6), scale=st.sampled_from([1e-6, 1.0, 1e4]))
def test_counts_are_numpy_s_in_any_chunking(seed: int, count: int, spread: float, shift: float, cuts: list[int], scale: float) -> None:
    """With the reach that the first chunk gave, doubled as often as the values asked for."""
    random = np.random.default_rng(seed)
    values = (scale * (shift + random.standard_normal(count) * np.exp(spread * random.standard_normal(count)))).astype(np.float32)
    chunks = parts(values, cuts)
    histogram = filled(chunks)
    reach, largest = histogram._reach, float(np.abs(values).max())
    first = max(float(np.abs(chunks[0]).max()), 1e-9)
    doublings = math.log2(reach / first)
    assert doublings == round(doublings) and doublings >= 0
    assert reach >= largest and (doublings == 0 or reach / 2 < largest)
    assert histogram._counts.shape == (BINS,)
    assert histogram._counts.sum() == count
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))

    wanted, edges = np.histogram(values.astype(np.float64), BINS, (-reach, reach))
    apart = np.abs(np.cumsum(histogram._counts) - np.cumsum(wanted))[:-1]
    # Where a value lies on an edge but for rounding, it may be on either side.
    near = np.array([(np.abs(values.astype(np.float64) - edge) <= 1e-6 * reach).sum() for edge in edges[1:-1][apart > 0]])
    assert (apart[apart > 0] <= near).all()
    assert (apart > 0).mean() < 0.05


def test_what_is_no_number_does_not_count() -> None:
    plain = filled([np.float32([1, 2, -3]), np.float32([4])])
    found = filled([np.float32([np.nan]), np.float32([1, np.inf, 2, -3, np.nan]), np.float32([]), np.float32([4, -np.inf])])
    assert np.array_equal(found._counts, plain._counts)
    for method in ("minmax", "percentile", "entropy"):
        assert found.range(method) == plain.range(method)  # type: ignore[arg-type]
        assert Histogram().range(method) == (0.0, 0.0)  # type: ignore[arg-type]
        assert filled([np.float32([np.nan])]).range(method) == (0.0, 0.0)  # type: ignore[arg-type]


def test_zero_lies_in_every_range() -> None:
    for values, wanted in (([2.0, 3.0], (0.0, 3.0)), ([-2.0, -3.0], (-3.0, 0.0)), ([0.0, 0.0], (0.0, 0.0)), ([-1.0, 5.0], (-1.0, 5.0))):
        histogram = filled([np.float32(values)])
        assert histogram.range("minmax") == wanted
        for method in ("percentile", "entropy"):
            low, high = histogram.range(method)  # type: ignore[arg-type]
            assert wanted[0] <= low <= 0 <= high <= wanted[1]


def heavy(count: int, seed: int = 0) -> np.ndarray:
    """Mostly small, a few large: as what lies between a transformer's layers."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(count)
    values[::997] *= 40
    return (values - 0.3).astype(np.float32)


@pytest.mark.parametrize("chunk", [1000, 400_000])
def test_percentiles_are_numpy_s(chunk: int) -> None:
    values = heavy(400_000)
    histogram = filled([values[start:start + chunk] for start in range(0, len(values), chunk)])
    low, high = histogram.range("percentile")
    width = 2 * histogram._reach / BINS
    tail = (1 - COVERED) / 2
    wanted = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    assert wanted[0] - width <= low <= wanted[0] and wanted[1] <= high <= wanted[1] + width
    assert float(values.min()) < low and high < float(values.max())
    # So many values are cut off at the most.
    assert ((values < low) | (values > high)).mean() <= 1 - COVERED


def migacz(counts: list[int], edges: np.ndarray, levels: int) -> float:
    """Pages 38 to 41 of the talk, in its own words: for each threshold P is the histogram with the outliers in its last bins, Q the histogram
    quantized to levels and spread over the bins that are not empty; the threshold of the least divergence is taken."""
    middle = len(counts) // 2
    best, found = math.inf, float(edges[-1])
    for half in range(levels // 2, middle + 1, levels // 8):
        inside = counts[middle - half:middle + half]
        p = [float(count) for count in inside]
        p[0] += sum(counts[:middle - half])
        p[-1] += sum(counts[middle + half:])
        q = [0.0] * len(inside)
        for level in range(levels):
            bins = [i for i in range(len(inside)) if i * levels // len(inside) == level]
            real = [i for i in bins if inside[i] > 0]
            for i in real:
                q[i] = sum(inside[j] for j in bins) / len(real)
        total_p, total_q = sum(p), max(sum(q), 1e-9)
        divergence = sum(a / total_p * math.log((a / total_p) / (max(b, 1e-9) / total_q)) for a, b in zip(p, q, strict=True) if a > 0)
        if divergence < best - 1e-12:
            best, found = divergence, float(edges[middle + half])
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_entropy_is_migacz_s(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Few levels and bins, so that the slow form takes no minute."""
    from edgeexport.converters import _activation_ranges

    monkeypatch.setattr(_activation_ranges, "LEVELS", 32)
    monkeypatch.setattr(_activation_ranges, "BINS", 256)
    values = heavy(20_000, seed)
    histogram = filled([values])
    edges = np.linspace(-histogram._reach, histogram._reach, 257)
    limit = migacz(histogram._counts.tolist(), edges, 32)
    assert histogram.range("entropy") == (max(histogram.low, -limit), min(histogram.high, limit))
    assert 0.05 * histogram._reach < limit < 0.9 * histogram._reach, "something must have been cut, and not all"


def test_entropy_keeps_what_is_evenly_used() -> None:
    values = np.linspace(-1, 1, 100_000, dtype=np.float32)
    low, high = filled([values]).range("entropy")
    assert low == pytest.approx(-1, abs=0.02) and high == pytest.approx(1, abs=0.02)
    assert BINS % (2 * LEVELS) == 0


def test_memory_is_bounded() -> None:
    import tracemalloc

    def stream() -> Iterator[np.ndarray]:
        for seed in range(40):
            yield np.random.default_rng(seed).standard_normal(100_000).astype(np.float32) * (1 + seed)

    histogram = Histogram()
    histogram.add(next(stream()))
    tracemalloc.start()
    for chunk in stream():
        histogram.add(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000  # a few copies of one chunk of 0.4 MB, and not all 16 MB
    assert histogram._counts.sum() == 41 * 100_000


def data_of(zoo: Zoo, view: Any, texts: list[str]) -> dict[int, list[dict[str, np.ndarray]]]:
    rows = zoo.dataset("ranges", as_rows(texts))
    return {length: calibration_feeds(view, rows.path, (length,)) for length in LENGTHS}


def test_minmax_are_the_true_extremes(zoo: Zoo) -> None:
    """Of what the layers of the PyTorch model read and make, for the same tokens and padding."""
    import torch
    from edgeexport.converters._task_model import task_module

    view, file = zoo.loaded(CLASSIFIER), model_file(zoo.exported(CLASSIFIER, "tflite"))
    texts = list(TEXTS[40:200:20])
    data = data_of(zoo, view, texts)
    chosen = [each for each in _tflite_quantization.chosen_operators(file, preset("tflite", "static-int8")) if each.weights]
    found = _tflite_quantization.histograms(file, chosen, data, 1, lambda share: None)
    ranges = {name: histogram.range("minmax") for name, histogram in found.items()}

    module = task_module(view.path, CLASSIFIER.task)
    extremes: dict[str, list[float]] = {}

    def note(name: str) -> Any:
        def hook(linear: Any, inputs: Any, output: Any) -> None:
            for side, values in (("in", inputs[0]), ("out", output)):
                low, high = extremes.setdefault(f"{name} {side}", [0.0, 0.0])
                extremes[f"{name} {side}"] = [min(low, float(values.min())), max(high, float(values.max()))]
        return hook

    for name, linear in module.model.named_modules():
        if isinstance(linear, torch.nn.Linear):
            linear.register_forward_hook(note(name))
    for length, feeds in zip(LENGTHS, data.values(), strict=True):
        extremes.clear()
        with torch.no_grad():
            for feed in feeds:
                module(**{name: torch.from_numpy(value).long() for name, value in feed.items()})
        graph = LENGTHS.index(length)
        seen = 0
        for each in chosen:
            if each.graph != graph or each.operator != "FULLY_CONNECTED":
                continue
            for tensor, side in zip(each.activations, ("in", "out"), strict=True):
                if side == "in" and not each.group.endswith("output.dense"):
                    continue  # TFLite's converter moves the factors of a layer normalization into the matrix behind it
                low, high = ranges[tensor]
                wanted = extremes[f"{each.group} {side}"]
                assert [low, high] == pytest.approx(wanted, abs=1e-3 * max(map(abs, wanted))), (each.group, side)
                seen += 1
        assert seen == 14 + 4


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_ranges_are_cut_within_the_extremes(zoo: Zoo, method: str) -> None:
    """A static model with them still answers as the original, and differs from one with the extremes."""
    policy = preset("tflite", "static-int8")
    vectors = {}
    for each in ("minmax", method):
        quantized = zoo.quantized(EMBEDDER, "tflite", f"static-{each}", policy.model_copy(update={"ranges": each}))
        session = zoo.session(EMBEDDER, quantized)
        vectors[each] = np.array([session.outputs(session.encode(text))["sentence_embedding"][0] for text in TEXTS[41:241:10]])
    original = zoo.original(EMBEDDER)
    wanted = np.array([original.vector(text, "mean", normalize=True) for text in TEXTS[41:241:10]])
    assert not np.array_equal(vectors[method], vectors["minmax"])
    for found in vectors.values():
        assert (found * wanted).sum(axis=1).mean() > 0.9


def test_histograms_last(tmp_path: Any) -> None:
    kept = {"a": filled([heavy(1000)]), "b": Histogram(), "c/d:0": filled([np.float32([-1, 2])])}
    save_histograms(kept, tmp_path / "h.npz")
    found = load_histograms(tmp_path / "h.npz")
    assert list(found) == list(kept)
    for name, histogram in kept.items():
        for method in ("minmax", "percentile", "entropy"):
            assert found[name].range(method) == histogram.range(method)  # type: ignore[arg-type]
    save_histograms({}, tmp_path / "none.npz")
    assert load_histograms(tmp_path / "none.npz") == {}


def test_onnx_sees_what_the_layers_read_and_make(zoo: Zoo) -> None:
    """Against the PyTorch model's own layers, over texts of different lengths."""
    import torch
    from edgeexport.converters._task_model import task_module

    view, file = zoo.loaded(CLASSIFIER), model_file(zoo.exported(CLASSIFIER, "onnx"))
    feeds = calibration_feeds(view, zoo.dataset("ranges", as_rows(TEXTS[40:200:20])).path)
    chosen = [each for each in _onnx_quantization.chosen_operators(file, preset("onnx", "static-int8")) if each.weights]
    found = _onnx_quantization.histograms(file, chosen, {0: feeds}, 1, lambda share: None)

    module = task_module(view.path, CLASSIFIER.task)
    extremes: dict[str, list[float]] = {}

    def note(name: str) -> Any:
        def hook(linear: Any, inputs: Any, output: Any) -> None:
            low, high = extremes.setdefault(name, [0.0, 0.0])
            extremes[name] = [min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))]
        return hook

    linears = {name: linear for name, linear in module.model.named_modules() if isinstance(linear, torch.nn.Linear)}
    for name, linear in linears.items():
        linear.register_forward_hook(note(name))
    with torch.no_grad():
        for feed in feeds:
            module(**{name: torch.from_numpy(value) for name, value in feed.items()})
    assert {each.group for each in chosen} == set(linears)
    for each in chosen:
        wanted = extremes[each.group]
        assert found[each.activations[0]].range("minmax") == pytest.approx(wanted, abs=1e-4 * max(map(abs, wanted))), each.group
