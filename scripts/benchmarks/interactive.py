"""How long a person waits when nothing is to be done: `--help`, `plan`, and the demo build with everything stored.

    .venv/bin/python scripts/benchmarks/interactive.py [--rounds N]

Medians of fresh processes. The first build fills the store where it is not filled yet, and is not counted.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

COMMANDS = {"--help": ["--help"], "plan": ["plan", "--target", "raspberrypi"],
            "build, everything stored": ["build", "--target", "raspberrypi", "--json"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as place:
        def run(arguments: list[str]) -> float:
            started = time.perf_counter()
            done = subprocess.run([sys.executable, "-m", "edgeexport", *arguments], cwd=place, capture_output=True, text=True, check=False)
            if done.returncode not in {0, 1, 3}:
                sys.exit(done.stderr)
            return time.perf_counter() - started

        run(COMMANDS["build, everything stored"])
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(rounds):
            for name, arguments in COMMANDS.items():
                times[name].append(run(arguments))
    for name, values in times.items():
        print(f"{name:26} {statistics.median(values):6.2f} s   ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
