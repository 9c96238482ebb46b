"""Measures text to speech beside other processes: busy loops on every core, with one thread and with two.

    python benchmarks/busy.py [OUT.json] [--loops 0 1 2] [--threads 1 2] [--rounds 12]
    git worktree add ../old main
    python benchmarks/busy.py --old ../old/src                                        # compares two commits, too

Every configuration (commit, number of threads) is a process of its own that loads the checkpoint once and then waits.
In a round, each of them speaks the same text once, one after another, in an order that rotates from round to round; so
whatever else runs disturbs all of them alike. `--loops N` starts N busy loops on each core, pinned to it unless
`--unpinned`. All loops are children of this process and are ended with it.

A line has the medians over rounds of the real-time factor (wall time per second of audio) and of the CPU time per
second of audio, and the median (lower to upper quartile) of the ratio, within a round, of the wall time to that of the
first configuration: with the default arguments, that of one thread.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TEXT = "The sun rises in the east and sets in the west. This has been observed by humans for thousands of years."
SOURCE = Path(__file__).resolve().parent.parent / "src"
LOOP = "import os, sys\nif sys.argv[1] != '-': os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
Figures = dict[str, float]  # "wall" and "cpu", in seconds per second of audio


def main() -> None:
    args = parse_arguments()
    if args.serve:
        serve(args.serve, args.model)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    sources = {"old": args.old, "new": SOURCE} if args.old else {"": SOURCE}
    configurations = {
        f"{name} {count} thread{'s' * (count > 1)}".strip(): (source, count)
        for count in args.threads
        for name, source in sources.items()
    }
    report = {}
    with contextlib.ExitStack() as stack:
        speakers = {
            name: stack.enter_context(speaker(source, count, args.model))
            for name, (source, count) in configurations.items()
        }
        for loops in args.loops:
            with busy_loops(loops, args.unpinned):
                rounds = [run_round(speakers, number) for number in range(args.rounds + 1)][1:]  # the first warms up
            report[f"{loops} loops per core"] = rounds
            print(f"{loops} busy loops on each of {os.cpu_count()} cores", *table(rounds), sep="\n", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="JSON report")
    parser.add_argument("--old", type=Path, help="src folder of another commit, compared with this one")
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 2], help="busy loops per core (default: 0 1 2)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch's threads (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=12, help="measured rounds (default: %(default)s)")
    parser.add_argument("--unpinned", action="store_true", help="the system places the busy loops")
    parser.add_argument("--model", default="nano", help="checkpoint: a name or a folder (default: %(default)s)")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)  # this process is a speaker with N threads
    return parser.parse_args()


def serve(num_threads: int, model: str) -> None:
    """Speaks once for every seed on stdin, and writes the figures to stdout."""
    import torch

    from higgs_audio import HiggsAudio

    torch.set_num_threads(num_threads)
    tts = HiggsAudio.from_pretrained(model)
    print("ready", flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        speech = tts.generate(TEXT, seed=int(line))
        figures = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({name: value / speech.seconds for name, value in figures.items()}), flush=True)


@contextlib.contextmanager
def speaker(source: Path, num_threads: int, model: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a process that serves."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(num_threads), "--model", model],
        env={**environment, "PYTHONPATH": str(source.resolve())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout and process.stdout.readline() == "ready\n", "the checkpoint cannot be loaded"
        yield process


@contextlib.contextmanager
def busy_loops(per_core: int, unpinned: bool) -> Iterator[None]:
    """Runs busy loops on each core."""
    cores = sorted(os.sched_getaffinity(0)) * per_core
    loops = [subprocess.Popen([sys.executable, "-c", LOOP, "-" if unpinned else str(core)]) for core in cores]
    try:
        time.sleep(0.5 if loops else 0)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run_round(speakers: dict[str, subprocess.Popen[str]], number: int) -> dict[str, Figures]:
    """Lets every process speak once; returns the figures by configuration."""
    names = list(speakers)
    turn = number % len(names)
    figures = {name: speak(speakers[name], number) for name in names[turn:] + names[:turn]}
    return {name: figures[name] for name in names}


def speak(process: subprocess.Popen[str], seed: int) -> Figures:
    assert process.stdin and process.stdout
    process.stdin.write(f"{seed}\n")
    process.stdin.flush()
    figures: Figures = json.loads(process.stdout.readline())
    return figures


def table(rounds: list[dict[str, Figures]]) -> list[str]:
    lines = ["| | real-time factor | CPU | ratio of wall times |", "| --- | ---: | ---: | ---: |"]
    first = next(iter(rounds[0]))
    for name in rounds[0]:
        wall, cpu = (statistics.median(figures[name][kind] for figures in rounds) for kind in ("wall", "cpu"))
        ratios = [figures[name]["wall"] / figures[first]["wall"] for figures in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(f"| {name} | {wall:.3f} | {cpu:.3f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return lines


if __name__ == "__main__":
    main()
