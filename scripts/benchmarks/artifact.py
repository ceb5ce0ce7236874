"""What the demo's artifacts weigh, and what length buckets are worth.

    .venv/bin/python scripts/benchmarks/artifact.py

Builds the demo twice for the LiteRT lane and the ONNX lane (stored steps are reused): with one signature of 128 tokens, and with the
recipe's four. Prints bytes relative to the float32 weights (unique parameters x 4), and the latency of a text of 10 tokens against one of
128, medians of interleaved rounds in one process of the lane's own environment.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeexport.cli.model_options import demo_recipe
from edgeexport.runner.environment import Environment

TIMING = """
import json, sys, time, statistics, warnings
sys.path.insert(0, sys.argv[1] + "/session.pyz")
from edgeexport.session import Bundle
session = Bundle.open(sys.argv[1], lane="litert").session
texts = {10: "one two three four five six seven eight", 128: "word " * 126}
encoded = {length: session.encode(text) for length, text in texts.items()}
assert {len(e.ids) for e in encoded.values()} == set(texts), [len(e.ids) for e in encoded.values()]
times = {length: [] for length in texts}
for number in range(31):
    for length, tokens in encoded.items():
        started = time.perf_counter(); session.outputs(tokens); times[length].append(1000 * (time.perf_counter() - started))
print(json.dumps({length: statistics.median(values[1:]) for length, values in times.items()}))
"""


def build(lengths: list[int]) -> tuple[dict, Path]:
    """The report and the bundle of the demo with other lengths."""
    place = Path(tempfile.mkdtemp())
    text = demo_recipe().read_text(encoding="utf-8").replace("lengths = [16, 32, 64, 128]", f"lengths = {lengths}")
    folder = demo_recipe().parent
    for name in ("questions.jsonl", "answers.jsonl", "texts.txt"):
        text = text.replace(f'"{name}"', f'"{folder / name}"')
    (place / "edgeexport.toml").write_text(text, encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "edgeexport", "build", "--target", "raspberrypi", "--json"], cwd=place, capture_output=True,
                          text=True, check=False)
    if done.returncode not in {0, 1, 3}:
        sys.exit(done.stderr)
    bundle = json.loads(done.stdout)["bundles"][0]
    return bundle["report"], place / bundle["directory"]


def main() -> None:
    for lengths in ([128], [16, 32, 64, 128]):
        report, directory = build(lengths)
        for lane in report["lanes"]:
            if lane["format"] == "tflite" or len(lengths) == 1:
                signatures = f"{len(lengths)} signature(s)" if lane["format"] == "tflite" else "any length"
                print(f"{lane['lane']:15} {lane['precision']:17} {signatures:15} {lane['size_bytes'] / 1e6:6.2f} MB = {lane['size_ratio']:.4f}x")
    python = Environment("ai-edge-litert==2.3.0").ensure()
    done = subprocess.run([str(python), "-I", "-c", TIMING, str(directory)], capture_output=True, text=True, check=True)
    times = json.loads(done.stdout)
    print(f"litert: 10 tokens {times['10']:.2f} ms, 128 tokens {times['128']:.2f} ms = {times['128'] / times['10']:.1f}x")


if __name__ == "__main__":
    main()
