"""The engine against transformers' own loop: the same weights, the same prompts, in one process, in turns.

    python benchmarks/engine.py OUT.json                                     # nano on this machine
    python benchmarks/engine.py OUT.json --size published --dtype bfloat16   # 5.8 billion random numbers, for a GPU

One stream by transformers' `HiggsAudioV2ForConditionalGeneration.generate`, by the plain loop (`generate.generate`) and
by the engine; then the engine with several at once. Greedy, no end before the last frame, so that all make the same
number of columns; where the weights are nano's, with and without guidance. A round measures every row once; figures are
medians over rounds, ratios medians of the ratios within a round. `floor` is the time that the bytes of a step need
(weights once, as whoever makes the step holds them; keys and values of every row) at the bandwidth of a large copy,
measured in the same round. `memory` is what a case takes at most beyond what was taken before it (of the process on
Linux, of the GPU on one; elsewhere it is not measured, and 0).
"""

import argparse
import ctypes
import gc
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_audio import NANO, HiggsAudioConfig, HiggsAudioForConditionalGeneration
from higgs_audio.checkpoint.layouts import TRANSFORMERS, write_fields
from higgs_audio.engine import Engine, Request
from higgs_audio.engine.kv_cache import row_bytes
from higgs_audio.generation.loop import generate
from higgs_audio.generation.sampling import SamplingOptions
from higgs_audio.native import are_half

PROMPT, FRAMES = 100, 100  # positions, columns of sound
SECONDS_A_FRAME = 1 / 25
FIRST_COLUMNS = 20  # until the first chunk of nano's audio tokenizer is certain
GREEDY = {"do_sample": False, "ras_win_len": None}
SIZES: dict[str, dict[str, int]] = {
    "published": {},
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}
COPY_BYTES = 256 << 20
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Case:
    """A row of the table: who makes how many streams; `guided` ones run the model on two rows each."""

    who: str
    streams: int
    guided: bool = False

    @property
    def name(self) -> str:
        return f"{self.who}, {self.streams}" + (", guided" if self.guided else "")


def main() -> None:
    args = parse_arguments()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model = load(args.size, device, dtype)
    twin = twin_of(model) if args.twin else None
    cases = [Case("transformers", 1)] * (twin is not None) + [Case("plain loop", 1), Case("engine", 1)]
    cases += [Case("engine", count) for count in args.streams if count > 1]
    if args.size == "nano":
        cases += [Case("plain loop", 1, True), *(Case("engine", count, True) for count in args.streams)]
    runs = {case.name: runner(case, model, twin) for case in cases}
    rounds = [measure(runs, model, cases) for _ in range(args.rounds + 1)][1:]  # the first warms up
    report = summary(cases, rounds, args)
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--size", choices=("nano", *SIZES), default="nano")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-twin", dest="twin", action="store_false", help="leave transformers out")
    return parser.parse_args()


def load(size: str, device: torch.device, dtype: torch.dtype) -> HiggsAudioForConditionalGeneration:
    """nano, or random weights of a size, made where they are to be."""
    if size == "nano":
        return HiggsAudioForConditionalGeneration.from_pretrained(NANO, dtype=dtype).to(device)
    text = HiggsAudioConfig().text_config.to_dict() | SIZES[size]
    torch.set_default_dtype(dtype)
    with device:
        torch.manual_seed(0)
        model = HiggsAudioForConditionalGeneration(HiggsAudioConfig(text_config=text)).eval()
    torch.set_default_dtype(torch.float32)
    return model


def twin_of(model: HiggsAudioForConditionalGeneration) -> HiggsAudioV2ForConditionalGeneration:
    """transformers' class with the very tensors of ours."""
    theirs = HiggsAudioV2Config(**write_fields(model.config.to_dict(), TRANSFORMERS, "the model"))
    with torch.device("meta"):
        twin = HiggsAudioV2ForConditionalGeneration(theirs, use_text_head=model.text_lm_head is not None)
    twin.load_state_dict(model.state_dict(), strict=True, assign=True)
    ours: Any = model.model.rotary_emb
    for name, buffer in list(twin.named_buffers()):  # not in the state: made again, where they belong
        if buffer.is_meta:
            owner = twin.get_submodule(name.rpartition(".")[0])
            leaf = name.rpartition(".")[2]
            made = ours.inv_freq if "inv_freq" in leaf else model.model.embed_audio_tokens.offsets
            setattr(owner, leaf, made.clone())
    return twin.eval()


def prompt(model: HiggsAudioForConditionalGeneration, number: int) -> torch.Tensor:
    """Token ids [T] of text that ends where sound begins."""
    ids = torch.randint(40, 250, (PROMPT,), generator=torch.Generator().manual_seed(number))
    ids[-1] = model.config.audio_out_bos_token_id
    return ids


def runner(case: Case, model: HiggsAudioForConditionalGeneration, twin: Any) -> Callable[[], tuple[float, float, int]]:
    """Does a case once: seconds in all, seconds to the first chunk's columns, columns made."""
    if case.who == "engine":
        return lambda: by_engine(case, engine_for(model, case))
    ids = prompt(model, 0)[None].to(model.device)
    options: dict[str, Any] = {**GREEDY, "min_frames": FRAMES, "max_frames": FRAMES, "max_new_tokens": FRAMES + 10}
    options |= {"text_guidance_scale": 1.5, "negative_prompt_ids": ids} if case.guided else {"text_guidance_scale": 1.0}
    own = {name: getattr(model.config, name) for name in ("pad_token_id", "bos_token_id")}
    theirs = GenerationConfig(max_new_tokens=FRAMES + 9, do_sample=False, eos_token_id=None, **own)

    def run() -> tuple[float, float, int]:
        start = clock(model)
        if case.who == "plain loop":
            made = generate(model, ids, **options, eos_token_id=model.config.audio_eos_token_id)[1][0].shape[1]
        else:
            made = twin.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=theirs).shape[1]
        return clock(model) - start, float("nan"), made

    return run


def engine_for(model: HiggsAudioForConditionalGeneration, case: Case) -> Engine:
    context = PROMPT + FRAMES + 16
    rows = case.streams * (1 + case.guided)
    memory = 2 * rows * row_bytes(model.model.text_config, context, model.dtype)
    return Engine(model, memory=memory, context=context, max_rows=rows)


def by_engine(case: Case, engine: Engine) -> tuple[float, float, int]:
    model = engine._runner.model
    sampling = SamplingOptions(**GREEDY, text_guidance_scale=1.5 if case.guided else 1.0)
    start, first = clock(model), float("nan")
    answers = []
    for number in range(case.streams):
        ids = prompt(model, number)
        hidden = ids if case.guided else None
        none = torch.zeros(0, model.config.audio_num_codebooks, dtype=torch.long)
        answers.append(engine.submit(Request(ids, none, sampling, 0, FRAMES, FRAMES, hidden)))
    made = 0
    for answer in answers:
        for _ in answer:
            made += 1
            if made == FIRST_COLUMNS:
                first = clock(model) - start
    return clock(model) - start, first, made


def clock(model: HiggsAudioForConditionalGeneration) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(runs: dict[str, Callable], model: HiggsAudioForConditionalGeneration, cases: list[Case]) -> dict[str, Any]:
    """One round: every case once, and the bandwidth."""
    bandwidth = copy_bandwidth(model)
    found: dict[str, Any] = {"bandwidth": bandwidth}
    for case in cases:
        before = begin_peak(model.device)
        seconds, first, made = runs[case.name]()
        taken, floor = peak_bytes(model.device) - before, step_bytes(model, case) / bandwidth
        found[case.name] = {"seconds": seconds, "first": first, "columns": made, "floor": floor, "bytes": taken}
    return found


def begin_peak(device: torch.device) -> int:
    """Bytes that are taken now; from here on the most is remembered."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if CLEAR.exists():
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # or what the case before has freed would be taken unseen
        CLEAR.write_text("5")
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most that were taken since then."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not CLEAR.exists():
        return 0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def copy_bandwidth(model: HiggsAudioForConditionalGeneration) -> float:
    """Bytes read a second where memory is read once: half of what a large copy moves."""
    source = torch.zeros(COPY_BYTES // 4, device=model.device)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        start = clock(model)
        target.copy_(source)
        times.append(clock(model) - start)
    return 2 * COPY_BYTES / min(times)


def step_bytes(model: HiggsAudioForConditionalGeneration, case: Case) -> int:
    """Bytes that a step reads: what audio passes of the weights, and the keys and values of every row."""
    config = model.model.text_config
    skipped = (".mlp.", ".input_layernorm.", ".post_attention_layernorm.", "embed_", "text_lm_head")
    names = [(name, weight) for name, weight in model.named_parameters() if not any(part in name for part in skipped)]
    is_packed = case.who == "engine" and model.device.type == "cpu" and model.dtype == torch.float32
    half = is_packed and are_half(weight for _, weight in names)
    weights = sum(weight.numel() * (2 if half else weight.element_size()) for _, weight in names)
    rows = case.streams * (1 + case.guided)
    return weights + rows * row_bytes(config, PROMPT + FRAMES // 2, model.dtype)


def summary(cases: list[Case], rounds: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    reference = {False: cases[0].name, True: "plain loop, 1, guided"}
    rows = []
    for case in cases:
        frames = [one[case.name]["columns"] for one in rounds]
        times = [one[case.name]["seconds"] for one in rounds]
        per = [seconds / columns for seconds, columns in zip(times, frames, strict=True)]
        base = reference[case.guided]
        ratios = [
            one[base]["seconds"] / one[base]["columns"] * one[case.name]["columns"] / one[case.name]["seconds"]
            for one in rounds
        ]
        median = statistics.median(per)
        rows.append(
            {
                "case": case.name,
                "ms a column": [1000 * median, 1000 * min(per), 1000 * max(per)],
                "real-time factor": median * case.streams / SECONDS_A_FRAME,
                "seconds of sound a second": SECONDS_A_FRAME / median,
                "times as fast": [statistics.median(ratios), min(ratios), max(ratios)],
                "as": base,
                "first columns, s": statistics.median(one[case.name]["first"] for one in rounds),
                "memory, bytes": max(one[case.name]["bytes"] for one in rounds),
                "floor, ms a step": 1000 * statistics.median(one[case.name]["floor"] for one in rounds),
            }
        )
    bandwidth = statistics.median(one["bandwidth"] for one in rounds)
    return {
        "arguments": vars(args),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "GB/s": bandwidth / 1e9,
        "peak GPU bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "rows": rows,
    }


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['GB/s']:.0f} GB/s, {report['threads']} threads, torch {report['torch']}",
        "",
        "| who, streams | ms a column (least to most) | sound a second | times as fast | first 20 | floor | memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        median, least, most = row["ms a column"]
        ratio, low, high = row["times as fast"]
        first = "" if math.isnan(row["first columns, s"]) else f"{row['first columns, s']:.3f} s"
        lines.append(
            f"| {row['case']} | {median:.2f} ({least:.2f} to {most:.2f}) | {row['seconds of sound a second']:.1f} s | "
            f"{ratio:.2f} ({low:.2f} to {high:.2f}) | {first} | "
            f"{row['floor, ms a step']:.2f} | {row['memory, bytes'] / 2**20:.0f} MiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
