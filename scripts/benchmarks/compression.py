"""What each means of compression is worth: bytes, latency and the task metric on unseen evaluation data, for each lane, in one run.

    .venv/bin/python scripts/benchmarks/compression.py [RECIPE] [--target raspberrypi] [--rounds N]

RECIPE has a `[compress]` section with pruning and distillation, such as `edgeexport tune` writes; the default is the demo's. Its parts are
built one after another: the original in float32, INT8 alone, pruned, the same with what is left fitted to the original's hidden states, the same
distilled, and all of the section; each of the latter in the lane's own INT8. Latencies are medians of rounds that go through all models of a
lane in turn, in one process of its runtime's environment; the range beside a speed-up is that of the rounds' own ratios, from their 5th to their
95th percentile.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgeexport.cli.build import default_limits
from edgeexport.cli.model_options import demo_recipe
from edgeexport.evaluation import Evaluation
from edgeexport.plan import buckets
from edgeexport.prepare import prepare
from edgeexport.recipe import CompressSection, Precision, load_recipe
from edgeexport.report.model import interval_text
from edgeexport.runner.agent_archive import agent_archive
from edgeexport.runner.environment import Environment
from edgeexport.store import Store
from edgeexport.target import load_target

TIMING = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from edgeexport.session.agent import full_texts
from edgeexport.session.payload import Payload, Session
job = json.loads(Path(sys.argv[2]).read_text())
sessions = {name: Session(Payload(Path(place)), variant, job["runtime"]) for name, (place, variant) in job["models"].items()}
feeds = {name: full_texts(session, job["lengths"]) for name, session in sessions.items()}
times = {name: {length: [] for length in job["lengths"]} for name in sessions}
for number in range(job["rounds"] + 1):
    for length in job["lengths"]:
        for name, session in sessions.items():
            started = time.perf_counter()
            session.model.run(feeds[name][length])
            if number:
                times[name][length].append(1000 * (time.perf_counter() - started))
print(json.dumps(times))
"""


def recipes(recipe, target):
    """Name → recipe of each row of the table."""
    section = recipe.compress
    if section.prune is None or section.distill is None:
        sys.exit("The recipe's [compress] needs prune and distill: `edgeexport tune` writes one.")
    float32 = {lane.name: Precision(preset="float32") for lane in target.lanes}
    sections = {"INT8 alone": CompressSection(), "pruned": CompressSection(prune=section.prune, reconstruct=False),
                "pruned, fitted": CompressSection(prune=section.prune),
                "pruned, distilled": CompressSection(prune=section.prune, distill=section.distill), "all": section}
    original = recipe.model_copy(update={"compress": CompressSection(), "precision": recipe.precision.model_copy(update={"lanes": float32})})
    return {"original": original} | {name: recipe.model_copy(update={"compress": value}) for name, value in sections.items()}


def timed(models, runtime, stand_in, lengths, rounds, work):
    """Name → length → milliseconds of each round."""
    job, archive = work / "job.json", work / "agent.pyz"
    archive.write_bytes(agent_archive())
    job.write_text(json.dumps({"models": models, "runtime": runtime, "lengths": lengths, "rounds": rounds}))
    done = subprocess.run([str(Environment(stand_in).ensure()), "-I", "-c", TIMING, str(archive), str(job)], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=demo_recipe().with_name("small.toml"))
    parser.add_argument("--target", default="raspberrypi")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    target, recipe, limits = load_target(given.target), load_recipe(given.recipe), default_limits(None, None)
    store = Store()
    with store.in_use(), store.workplace() as work:
        prepared = prepare(recipe, [target], store)
        found, lengths = {}, buckets(prepared.resolved)
        for name, variant in recipes(recipe, target).items():
            print(f"building: {name}", file=sys.stderr)
            evaluation = Evaluation(prepared.planned_anew(variant), limits, lambda event: None)
            for plan in evaluation.lanes:
                if plan.variant is not None:
                    place = store.view(evaluation.entries[plan.payload].artifact.tree, work / f"{plan.lane.name} {name}")
                    found.setdefault(plan.lane.name, {})[name] = evaluation.report(plan), (str(place), plan.variant)
        for lane in target.lanes:
            rows = found.get(lane.name, {})
            if not rows:
                continue
            ends = [min(lengths), max(lengths)]
            models = {name: model for name, (_, model) in rows.items()}
            times = timed(models, lane.runtime, lane.verified_by, ends, given.rounds, work)
            print(f"\n{lane.name}")
            print(f"{'':18} {'MB':>6} {'share':>6} " + " ".join(f"{f'ms at {length}':>9} {'speed-up':>17}" for length in ends) + "  metric (95 %)")
            for name, (report, _) in rows.items():
                cells = [f"{name:18} {report.size_bytes / 1e6:6.1f} {report.size_bytes / rows['original'][0].size_bytes:6.3f}"]
                for length in map(str, ends):
                    ratio = np.array(times["original"][length]) / np.array(times[name][length])
                    low, high = np.percentile(ratio, [5, 95])
                    cells.append(f"{np.median(times[name][length]):9.2f} {np.median(ratio):5.2f} ({low:.2f}, {high:.2f})")
                result = (report.untruncated or report.metrics)[0]
                share = result.lane.value / result.reference.value
                cells.append(f" {interval_text(result.lane, 3)} = {share:.1%} of the original's, n = {result.lane.n}")
                print(" ".join(cells))


if __name__ == "__main__":
    main()
