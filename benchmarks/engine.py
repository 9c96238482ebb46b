"""Compares the engine with the generation loop of transformers: same weights, same prompts, in one process, in turns.

    python benchmarks/engine.py OUT.json                                     # nano on this machine
    python benchmarks/engine.py OUT.json --size published --dtype bfloat16   # 5.8 billion random weights, for a GPU

One stream by `HiggsAudioV2ForConditionalGeneration.generate` of transformers, by the plain loop (`generation/loop.py`)
and by the engine; then several streams by the engine. Sampling is greedy and segments end with the last frame, so that
all cases generate the same number of columns; with nano's weights, with and without guidance. A round measures every
case once. Figures are medians over rounds, ratios medians of the ratios within a round. "floor" is the time to read the
bytes of a step once (weights in the format of the case, keys and values of every slot) at the bandwidth of a large
copy, measured in the same round. "memory" is the peak of a case above the memory in use before it: GPU memory on a GPU,
memory of the process on Linux; elsewhere it is not measured and reported as 0.
"""

import argparse
import ctypes
import gc
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import clock, median_and_range
from transformers import GenerationConfig, HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_audio import NANO, HiggsAudioConfig, HiggsAudioForConditionalGeneration
from higgs_audio.checkpoint.layouts import TRANSFORMERS, write_fields
from higgs_audio.engine import Engine, Request
from higgs_audio.engine.kv_cache import slot_bytes
from higgs_audio.generation.loop import generate
from higgs_audio.generation.sampling import SamplingOptions
from higgs_audio.native import are_exact_in_bfloat16

PROMPT, FRAMES = 100, 100  # positions of the prompt, frames of the segment
SECONDS_PER_FRAME = 1 / 25
FIRST_COLUMNS = 20  # columns that nano's audio tokenizer needs for the first chunk
GREEDY = {"do_sample": False, "ras_win_len": None}
SIZES: dict[str, dict[str, int]] = {
    "published": {},
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}
COPY_BYTES = 256 << 20
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # on Linux only


@dataclass(frozen=True)
class Case:
    """A row of the table: an implementation and a number of streams; each guided stream takes two slots."""

    implementation: str
    streams: int
    guided: bool = False

    @property
    def name(self) -> str:
        return f"{self.implementation}, {self.streams}" + (", guided" if self.guided else "")

    @property
    def num_slots(self) -> int:
        return self.streams * (1 + self.guided)


def main() -> None:
    args = parse_arguments()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model = load(args.size, device, dtype)
    reference = transformers_model(model) if args.twin else None
    cases = [Case("transformers", 1)] * (reference is not None) + [Case("plain loop", 1), Case("engine", 1)]
    cases += [Case("engine", count) for count in args.streams if count > 1]
    if args.size == "nano":
        cases += [Case("plain loop", 1, True), *(Case("engine", count, True) for count in args.streams)]
    runs = {case.name: make_run(case, model, reference) for case in cases}
    rounds = [measure(runs, model, cases) for _ in range(args.rounds + 1)][1:]  # the first warms up
    report = summary(cases, rounds, args)
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="JSON report")
    parser.add_argument("--size", choices=("nano", *SIZES), default="nano", help="nano's weights, or random ones")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16], help="streams of the engine at once")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--no-twin", dest="twin", action="store_false", help="do not measure transformers")
    return parser.parse_args()


def load(size: str, device: torch.device, dtype: torch.dtype) -> HiggsAudioForConditionalGeneration:
    """Loads nano, or creates a model with random weights on the device."""
    if size == "nano":
        return HiggsAudioForConditionalGeneration.from_pretrained(NANO, dtype=dtype).to(device)
    text = HiggsAudioConfig().text_config.to_dict() | SIZES[size]
    torch.set_default_dtype(dtype)
    with device:
        torch.manual_seed(0)
        model = HiggsAudioForConditionalGeneration(HiggsAudioConfig(text_config=text)).eval()
    torch.set_default_dtype(torch.float32)
    return model


def transformers_model(model: HiggsAudioForConditionalGeneration) -> HiggsAudioV2ForConditionalGeneration:
    """Returns an instance of the transformers class that shares the tensors of `model`."""
    config = HiggsAudioV2Config(**write_fields(model.config.to_dict(), TRANSFORMERS, "the model"))
    with torch.device("meta"):
        reference = HiggsAudioV2ForConditionalGeneration(config, use_text_head=model.text_lm_head is not None)
    reference.load_state_dict(model.state_dict(), strict=True, assign=True)
    rotary: Any = model.model.rotary_emb
    for name, buffer in list(reference.named_buffers()):  # not in the state dict: created again
        if buffer.is_meta:
            owner = reference.get_submodule(name.rpartition(".")[0])
            leaf = name.rpartition(".")[2]
            tensor = rotary.inv_freq if "inv_freq" in leaf else model.model.embed_audio_tokens.offsets
            setattr(owner, leaf, tensor.clone())
    return reference.eval()


def prompt_ids(model: HiggsAudioForConditionalGeneration, seed: int) -> torch.Tensor:
    """Returns random text ids [T] that end with the audio bos."""
    ids = torch.randint(40, 250, (PROMPT,), generator=torch.Generator().manual_seed(seed))
    ids[-1] = model.config.audio_out_bos_token_id
    return ids


def make_run(
    case: Case, model: HiggsAudioForConditionalGeneration, reference: Any
) -> Callable[[], tuple[float, float, int]]:
    """Returns a function that runs a case once; it returns the seconds, the seconds to the columns of the first chunk,
    and the number of columns."""
    if case.implementation == "engine":
        return lambda: run_engine(case, make_engine(model, case))
    ids = prompt_ids(model, 0)[None].to(model.device)
    options: dict[str, Any] = {**GREEDY, "min_frames": FRAMES, "max_frames": FRAMES, "max_new_tokens": FRAMES + 10}
    options |= {"text_guidance_scale": 1.5, "negative_prompt_ids": ids} if case.guided else {"text_guidance_scale": 1.0}
    text_ids = {name: getattr(model.config, name) for name in ("pad_token_id", "bos_token_id")}
    config = GenerationConfig(max_new_tokens=FRAMES + 9, do_sample=False, eos_token_id=None, **text_ids)

    def run() -> tuple[float, float, int]:
        start = clock()
        if case.implementation == "plain loop":
            count = generate(model, ids, **options, eos_token_id=model.config.audio_eos_token_id)[1][0].shape[1]
        else:
            mask = torch.ones_like(ids)
            count = reference.generate(input_ids=ids, attention_mask=mask, generation_config=config).shape[1]
        return clock() - start, float("nan"), count

    return run


def make_engine(model: HiggsAudioForConditionalGeneration, case: Case) -> Engine:
    context = PROMPT + FRAMES + 16
    memory = 2 * case.num_slots * slot_bytes(model.model.text_config, context, model.dtype)
    return Engine(model, memory=memory, context=context, max_slots=case.num_slots)


def run_engine(case: Case, engine: Engine) -> tuple[float, float, int]:
    model = engine.runner.model
    sampling = SamplingOptions(**GREEDY, text_guidance_scale=1.5 if case.guided else 1.0)
    start, first = clock(), float("nan")
    handles = []
    for number in range(case.streams):
        ids = prompt_ids(model, number)
        negative_ids = ids if case.guided else None
        no_columns = torch.zeros(0, model.config.audio_num_codebooks, dtype=torch.long)
        handles.append(engine.submit(Request(ids, no_columns, sampling, 0, FRAMES, FRAMES, negative_ids)))
    count = 0
    for handle in handles:
        for _ in handle:
            count += 1
            if count == FIRST_COLUMNS:
                first = clock() - start
    return clock() - start, first, count


def measure(runs: dict[str, Callable], model: HiggsAudioForConditionalGeneration, cases: list[Case]) -> dict[str, Any]:
    """Runs one round: measures the bandwidth of a copy, and every case once."""
    bandwidth = copy_bandwidth(model)
    figures: dict[str, Any] = {"bandwidth": bandwidth}
    for case in cases:
        before = begin_peak(model.device)
        seconds, first, count = runs[case.name]()
        used, floor = peak_bytes(model.device) - before, step_bytes(model, case) / bandwidth
        figures[case.name] = {"seconds": seconds, "first": first, "columns": count, "floor": floor, "bytes": used}
    return figures


def begin_peak(device: torch.device) -> int:
    """Resets the peak of the memory in use; returns the bytes in use now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if CLEAR_REFS.exists():
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # otherwise a case could reuse memory that another has freed
        CLEAR_REFS.write_text("5")
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """Returns the peak of the memory in use since `begin_peak`, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not CLEAR_REFS.exists():
        return 0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def copy_bandwidth(model: HiggsAudioForConditionalGeneration) -> float:
    """Returns the bytes that a large copy reads and writes per second, the best of five."""
    source = torch.zeros(COPY_BYTES // 4, device=model.device)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        start = clock()
        target.copy_(source)
        times.append(clock() - start)
    return 2 * COPY_BYTES / min(times)


def step_bytes(model: HiggsAudioForConditionalGeneration, case: Case) -> int:
    """Returns the bytes that a step reads: the weights that audio positions use, and the keys and values of every
    slot."""
    config = model.model.text_config
    skipped = (".mlp.", ".input_layernorm.", ".post_attention_layernorm.", "embed_", "text_lm_head")
    names = [(name, weight) for name, weight in model.named_parameters() if not any(part in name for part in skipped)]
    is_packed = case.implementation == "engine" and model.device.type == "cpu" and model.dtype == torch.float32
    is_bfloat16 = is_packed and are_exact_in_bfloat16(weight for _, weight in names)
    weights = sum(weight.numel() * (2 if is_bfloat16 else weight.element_size()) for _, weight in names)
    return weights + case.num_slots * slot_bytes(config, PROMPT + FRAMES // 2, model.dtype)


def summary(cases: list[Case], rounds: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    baselines = {False: cases[0].name, True: "plain loop, 1, guided"}
    bandwidth = statistics.median(figures["bandwidth"] for figures in rounds)
    return {
        "arguments": vars(args),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "GB/s": bandwidth / 1e9,
        "peak GPU bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "rows": [summary_row(case, baselines[case.guided], rounds) for case in cases],
    }


def summary_row(case: Case, baseline: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures of one case, and how many times as fast as the baseline it is."""
    results = [figures[case.name] for figures in rounds]
    seconds = [result["seconds"] / result["columns"] for result in results]
    baseline_seconds = [figures[baseline]["seconds"] / figures[baseline]["columns"] for figures in rounds]
    median = statistics.median(seconds)
    return {
        "case": case.name,
        "ms a column": [1000 * value for value in median_and_range(seconds)],
        "real-time factor": median * case.streams / SECONDS_PER_FRAME,
        "seconds of sound a second": SECONDS_PER_FRAME / median,
        "times as fast": median_and_range([base / own for base, own in zip(baseline_seconds, seconds, strict=True)]),
        "as": baseline,
        "first columns, s": statistics.median(result["first"] for result in results),
        "memory, bytes": max(result["bytes"] for result in results),
        "floor, ms a step": 1000 * statistics.median(result["floor"] for result in results),
    }


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['GB/s']:.0f} GB/s, {report['threads']} threads, torch {report['torch']}",
        "",
        "| case, streams | ms per column (range) | audio per second | times as fast | first 20 | floor | memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        median, minimum, maximum = row["ms a column"]
        ratio, low, high = row["times as fast"]
        first = "" if math.isnan(row["first columns, s"]) else f"{row['first columns, s']:.3f} s"
        lines.append(
            f"| {row['case']} | {median:.2f} ({minimum:.2f} to {maximum:.2f}) | "
            f"{row['seconds of sound a second']:.1f} s | "
            f"{ratio:.2f} ({low:.2f} to {high:.2f}) | {first} | "
            f"{row['floor, ms a step']:.2f} | {row['memory, bytes'] / 2**20:.0f} MiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
