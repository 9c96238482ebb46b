"""Compares the speed of two commits: runs a benchmark on each in turns and prints the ratio new / old of every figure.

    git worktree add ../old main
    python benchmarks/paired.py ../old/src src                                        # speech.py
    python benchmarks/paired.py ../old/src src --pairs 6 --benchmark engine.py -- {out} --rounds 2 --no-twin

Each run is a new process, with PYTHONPATH set to one of the two `src` folders and with the benchmark from the
`benchmarks` folder beside it, which uses the names of that commit. The order alternates from pair to pair, so that a
machine that becomes slower slows both. A line shows the geometric mean of the ratios within the pairs and its 95 %
confidence interval (Student's t, on logarithms): below 1, the new commit has the smaller figure. Figures that only one
commit reports are omitted.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIGURATION = ("arguments", "threads", "torch", "columns")  # entries of a report that are not measured


def main() -> None:
    args = parse_arguments()
    for source in (args.old, args.new):
        check_source(source)
    pairs = []
    for number in range(args.pairs):
        sides = ("old", "new") if number % 2 == 0 else ("new", "old")
        figures = {side: run(getattr(args, side), args.benchmark, args.arguments) for side in sides}
        pairs.append(ratios(figures["old"], figures["new"]))
        print(f"pair {number + 1} of {args.pairs} done", file=sys.stderr)
    print(*table(pairs), sep="\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD_SRC", help="src folder of the old commit")
    parser.add_argument("new", type=Path, metavar="NEW_SRC", help="src folder of the new commit")
    parser.add_argument("--benchmark", default="speech.py", help="file in the benchmarks folder of each commit")
    parser.add_argument("--pairs", type=int, default=8, help="runs of each commit, at least 2 (default: %(default)s)")
    parser.epilog = "The arguments of the benchmark follow --; {out} is its JSON report (default: {out})."
    words = sys.argv[1:]
    middle = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:middle])
    args.arguments = words[middle + 1 :] or ["{out}"]
    if args.pairs < 2:
        parser.error(f"--pairs {args.pairs}: an interval needs at least 2")
    if not any("{out}" in argument for argument in args.arguments):
        parser.error("the arguments of the benchmark must contain {out}, the path of its JSON report")
    return args


def environment(source: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(source.resolve())}


def check_source(source: Path) -> None:
    """Exits unless a process whose PYTHONPATH is `source` imports the package from there."""
    command = [sys.executable, "-c", "import higgs_audio; print(higgs_audio.__file__)"]
    found = subprocess.run(command, env=environment(source), capture_output=True, text=True).stdout.strip()
    if source.resolve() not in Path(found or "/").resolve().parents:
        sys.exit(f"{source} is not a src folder of this package: Python imports higgs_audio from {found or 'nowhere'}")


def run(source: Path, benchmark: str, arguments: list[str]) -> dict[str, float]:
    """Runs a benchmark once; returns its figures by name."""
    script = source.absolute().parent / "benchmarks" / benchmark
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "report.json")
        command = [sys.executable, str(script), *(argument.replace("{out}", out) for argument in arguments)]
        subprocess.run(command, env=environment(source), check=True, stdout=subprocess.DEVNULL)
        return dict(figures_of(json.loads(Path(out).read_text(encoding="utf-8"))))


def figures_of(report: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yields the path of keys and the value of every number in a report; the median of [median, minimum, maximum]."""
    if isinstance(report, bool):
        return
    if isinstance(report, (int, float)):
        yield name, float(report)
    elif isinstance(report, dict):
        for key, value in report.items():
            if key not in CONFIGURATION:
                yield from figures_of(value, f"{name}, {key}" if name else key)
    elif isinstance(report, list) and report and isinstance(report[0], dict):
        for row in report:
            label = next(value for value in row.values() if isinstance(value, str))
            yield from figures_of(row, label)
    elif isinstance(report, list) and report:
        yield from figures_of(report[0], name)


def ratios(old: dict[str, float], new: dict[str, float]) -> dict[str, float]:
    """Returns new / old for the figures that both runs have and that are positive, finite numbers."""
    both = [name for name in old if name in new]
    return {name: new[name] / old[name] for name in both if 0 < old[name] < math.inf and 0 < new[name] < math.inf}


def table(pairs: list[dict[str, float]]) -> list[str]:
    """Returns the lines of a table, with one row for each figure that all pairs have."""
    lines = ["| figure | new / old | 95 % interval |", "| --- | ---: | ---: |"]
    for name in pairs[0]:
        if all(name in pair for pair in pairs):
            mean, low, high = interval([pair[name] for pair in pairs])
            lines.append(f"| {name} | {mean:.3f} | {low:.3f} to {high:.3f} |")
    return lines


def interval(values: list[float]) -> tuple[float, float, float]:
    """Returns the geometric mean of ratios and the limits of its 95 % confidence interval."""
    logs = [math.log(value) for value in values]
    mean = statistics.fmean(logs)
    half = student_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def student_quantile(degrees: int) -> float:
    """Returns the 97.5 % quantile of Student's t distribution: exact up to 2 degrees of freedom, then within 1 %.

    The expansion in powers of 1 / degrees is formula 26.7.5 of Abramowitz and Stegun.
    """
    if degrees <= 2:
        return (12.7062, 4.3027)[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


if __name__ == "__main__":
    main()
