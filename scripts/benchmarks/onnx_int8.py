"""INT8 alone in ONNX, against onnxruntime's own dynamic quantization: bytes, likeness to float32, speed, and what padding and batch change.

    .venv/bin/python scripts/benchmarks/onnx_int8.py [RECIPE]

Default is the demo's model. Likeness is on the probe set and on the recipe's evaluation texts, which chose nothing. Times are medians of
rounds that go through all files in turn, one thread; beside each ratio stand the 5th and 95th percentile of the rounds' own.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgeexport.cli.build import default_limits
from edgeexport.cli.model_options import demo_recipe
from edgeexport.prepare import prepare
from edgeexport.recipe import load_recipe
from edgeexport.schedule import Scheduler
from edgeexport.session.agent import full_texts
from edgeexport.session.payload import Payload, Session
from edgeexport.store import Store
from edgeexport.target import load_target

LENGTHS = (16, 64, 128)
ROUNDS = 100
TEXTS_A_SET = 400
BATCH = 8


def files(recipe, store, work):
    """Name → model file, and a payload whose tokenizer reads the texts; the data sets."""
    prepared = prepare(load_recipe(recipe), [load_target("linux-x86_64")], store)
    plan = next(lane for lane in prepared.plan.lanes if lane.lane.format == "onnx")
    entries = Scheduler(prepared.plan, store, default_limits(None, None), lambda event: None).run([plan.exported, plan.payload])
    payload = Payload(store.view(entries[plan.payload].artifact.tree, work / "payload"))
    found = {"float32": store.view(entries[plan.exported].artifact.tree, work / "float32") / "model.onnx", "ours": payload.model_path(plan.variant)}
    for name, weights, per_channel in (("plain", QuantType.QInt8, False), ("plain, per channel", QuantType.QInt8, True)):
        found[name] = work / f"{name}.onnx"
        quantize_dynamic(found["float32"], found[name], weight_type=weights, per_channel=per_channel)
    return found, Session(payload, plan.variant, "onnxruntime"), prepared.resolved.datasets


def opened(path):
    """A session with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def cosines(wanted, found):
    """Of the vectors, row by row."""
    return (wanted * found).sum(axis=-1) / np.linalg.norm(wanted, axis=-1) / np.linalg.norm(found, axis=-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=demo_recipe())
    store = Store()
    with store.in_use(), tempfile.TemporaryDirectory() as place:
        paths, reader, datasets = files(parser.parse_args().recipe, store, Path(place))
        sessions = {name: opened(path) for name, path in paths.items()}
        inputs = [value.name for value in sessions["float32"].get_inputs()]

        def answer(name, feeds):
            return sessions[name].run(None, {key: feeds[key] for key in inputs})[0]

        print(f"{'':20} {'MB':>6} {'share':>7}")
        for name, path in paths.items():
            print(f"{name:20} {path.stat().st_size / 1e6:6.2f} {path.stat().st_size / paths['float32'].stat().st_size:7.4f}")
        for dataset in ("probes", "evaluation"):
            rows = [row for row in datasets[dataset].rows if row.role != "document"][:TEXTS_A_SET] if dataset in datasets else []
            encoded = [reader.encode(row.text, row.text_pair, row.role) for row in rows]
            feeds = [each.feeds(reader.payload.spec, len(each.ids)) for each in encoded]
            wanted = [answer("float32", each) for each in feeds]
            for name in paths if feeds else ():
                if name != "float32":
                    found = np.array([cosines(a, answer(name, each)).mean() for a, each in zip(wanted, feeds, strict=True)])
                    print(f"{dataset}, {len(found)} texts, {name}: cosine mean {found.mean():.5f}, 5th percentile {np.percentile(found, 5):.5f}, "
                          f"least {found.min():.5f}")
        short = [each.feeds(reader.payload.spec, len(each.ids)) for each in map(reader.encode, ["a few words", "some more words than before"])]
        for name in paths:
            alone = answer(name, short[0])
            longest = max(each["input_ids"].shape[1] for each in short) + 9
            padded = {key: np.pad(short[0][key], ((0, 0), (0, longest - short[0][key].shape[1]))) for key in inputs}
            mixed = {key: np.concatenate([padded[key]] + [np.pad(short[1][key], ((0, 0), (0, longest - short[1][key].shape[1])))] * (BATCH - 1))
                     for key in inputs}
            print(f"{name}: padding changes an answer by {np.abs(answer(name, padded) - alone).max():.1e}, "
                  f"a batch of {BATCH} by {np.abs(answer(name, mixed)[:1] - alone).max():.1e}")

        full = full_texts(reader, LENGTHS)
        times = {(name, length): [] for name in paths for length in LENGTHS}
        for number in range(ROUNDS + 2):
            for length in LENGTHS:
                for name in paths:
                    answer(name, full[length])  # so that the caches hold this model's weights, not the one's before
                    started = time.perf_counter()
                    answer(name, full[length])
                    if number > 1:
                        times[name, length].append(1000 * (time.perf_counter() - started))
        for length in LENGTHS:
            for name in paths:
                ratio = np.array(times["ours", length]) / np.array(times[name, length])
                low, high = np.percentile(ratio, [5, 95])
                print(f"{length:4} tokens {name:20} {np.median(times[name, length]):6.2f} ms; "
                      f"ours takes {np.median(ratio):.3f} of it ({low:.3f}, {high:.3f})")


if __name__ == "__main__":
    main()
