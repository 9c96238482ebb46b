"""Measures memory and speed of the full-size language model in bf16, int8 and 4 bits: the first tables of
docs/small-machines.md.

    python benchmarks/small_machines.py OUT.json [--weights bf16 int8 nf4] [--steps N] [--prompt TOKENS] [--threads N]

The model has random weights in the published architecture and runs on a CPU. Each kind of weights is measured in a new
process, one after the other, since two do not fit into 24 GiB; kinds that OUT.json already has are not measured again.
One decoder layer is quantized, by the same `from_pretrained` as any checkpoint, and then copied: this takes the memory
of 28 layers, but not the time to quantize them.

Times are CPU seconds, on one thread by default, so that other processes do not count. All layers take the same time:
the time of 28 is extrapolated from the times of one and of four (`--whole` runs all of them).
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

WEIGHTS = ("bf16", "int8", "nf4")
GIB, GB = 2**30, 1e9
GPU_SIZES = (8, 12, 16, 24)  # GiB
POSITIONS = 4096  # of the KV cache in the second table: a prompt and about 2.5 minutes of audio
RESERVE = 1.0 * GB  # assumed, not measured: CUDA's context, activations, dequantized matrices


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if args.only:
        print(json.dumps(measure(args.only, args.steps, args.prompt, args.whole)))
        return
    path = Path(args.out)
    done = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for weights in args.weights:
        if weights not in done:
            done[weights] = measure_in_new_process(weights, sys.argv[1:])
            path.write_text(json.dumps(done, indent=1), encoding="utf-8")
    done = {weights: done[weights] for weights in WEIGHTS if weights in done}
    print(*measured_rows(done), "", *fitting_rows(done), sep="\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON report")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), help="kinds to measure")
    parser.add_argument("--steps", type=int, default=3, help="timed decode steps, after one for warm-up")
    parser.add_argument("--prompt", type=int, default=100, help="text tokens of the prefill")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--whole", action="store_true", help="run all layers, which takes minutes per kind of weights")
    parser.add_argument("--only", choices=WEIGHTS, help=argparse.SUPPRESS)  # for `measure_in_new_process`
    return parser.parse_args()


def measure_in_new_process(weights: str, arguments: list[str]) -> dict[str, Any]:
    """Calls `measure` in a new process."""
    command = [sys.executable, __file__, *arguments, "--only", weights]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


# Measurement of one kind of weights.


def measure(weights: str, num_steps: int, num_tokens: int, whole: bool) -> dict[str, Any]:
    """Measures the bytes and seconds of one kind of weights, and the bytes of text weights that can be offloaded to the
    host."""
    from higgs_audio.model.offload import num_bytes, offload_text

    before = resident_bytes()
    model = full_size(weights)
    resident = resident_bytes() - before
    seconds = time_model(model, num_steps, num_tokens) if whole else extrapolate(model, num_steps, num_tokens)
    total = sum(num_bytes(parameter) for parameter in model.parameters())
    layer = sum(num_bytes(parameter) for parameter in model.model.layers[0].mlp.parameters())
    offload_text(model, "meta")
    offloaded = sum(num_bytes(parameter) for parameter in model.parameters() if parameter.device.type == "cpu")
    return {
        "parameters": sum(parameter.numel() for parameter in meta_parameters()),
        "weight_bytes": total,
        "resident_bytes": resident,
        "home_bytes": offloaded,
        "text_layer_bytes": layer,
        "whole": whole,
        "threads": torch.get_num_threads(),
        **seconds,
    }


def full_size(weights: str) -> Any:
    """Creates the published architecture: loads one layer in the format `weights` and copies it to 28."""
    from higgs_audio import HiggsAudioConfig, HiggsAudioForConditionalGeneration
    from higgs_audio.model.quantize import quantization_config

    config = HiggsAudioConfig()
    num_layers = config.text_config.num_hidden_layers
    single = copy.deepcopy(config)
    single.text_config.num_hidden_layers, single.audio_dual_ffn_layers = 1, [0]
    with torch.device("meta"):
        shapes = HiggsAudioForConditionalGeneration(single).state_dict()
    source = {name: torch.empty(t.shape, dtype=torch.bfloat16).uniform_(-0.02, 0.02) for name, t in shapes.items()}
    options = {} if weights == "bf16" else {"quantization_config": quantization_config(weights, torch.bfloat16)}
    model = HiggsAudioForConditionalGeneration.from_pretrained(
        None, config=single, state_dict=source, dtype=torch.bfloat16, device_map={"": "cpu"}, **options
    ).eval()
    del source
    layers = model.model.layers
    for number in range(1, num_layers):
        layers.append(copy.deepcopy(layers[0]))
        layers[number].self_attn.layer_idx = number
    model.config.text_config.num_hidden_layers = num_layers
    return model


def meta_parameters() -> list[torch.Tensor]:
    """Returns the parameters of the architecture on the meta device."""
    from higgs_audio import HiggsAudioConfig, HiggsAudioForConditionalGeneration

    with torch.device("meta"):
        return list(HiggsAudioForConditionalGeneration(HiggsAudioConfig()).parameters())


def extrapolate(model: Any, num_steps: int, num_tokens: int) -> dict[str, float]:
    """Extrapolates `time_model` from the first layer and the first four layers to all layers."""
    layers, times = model.model.layers, {}
    for count in (1, 4):
        model.model.layers = layers[:count]
        times[count] = time_model(model, num_steps, num_tokens)
    model.model.layers = layers
    rest = len(layers) - 1
    return {name: t + rest * (times[4][name] - t) / 3 for name, t in times[1].items()}


@torch.no_grad()
def time_model(model: Any, num_steps: int, num_tokens: int) -> dict[str, float]:
    """Returns the seconds of a prefill of text, and the median of the decode steps after it."""
    ids = torch.randint(0, 1000, (1, num_tokens))
    start = time.process_time()
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    prefill = time.process_time() - start
    steps = []
    for _ in range(num_steps + 1):
        column = torch.randint(0, 1024, (1, 1, model.config.audio_num_codebooks))
        start = time.process_time()
        model(audio_input_ids=column, past_key_values=cache, use_cache=True, with_text=False)
        steps.append(time.process_time() - start)
    return {"prefill_seconds": prefill, "step_seconds": statistics.median(steps[1:])}


def resident_bytes() -> int:
    """Returns the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


# Tables.


def measured_rows(done: dict[str, Any]) -> list[str]:
    rows = [
        "| weights | bytes | resident, measured | text weights on the host | left on the device | step | prefill |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for weights, m in done.items():
        sizes = (m["weight_bytes"], m["resident_bytes"], m["home_bytes"], m["weight_bytes"] - m["home_bytes"])
        cells = [f"{size / GB:.2f} GB" for size in sizes]
        rows.append(f"| {weights} | {' | '.join(cells)} | {m['step_seconds']:.2f} s | {m['prefill_seconds']:.1f} s |")
    return rows


def fitting_rows(done: dict[str, Any]) -> list[str]:
    """Returns the rows of the second table: the memory that each variant needs on the GPU, and which GPUs have it."""
    codec = codec_bytes()
    rows = [
        f"| weights | text weights | audio tokenizer | sum | {' | '.join(f'{size} GB' for size in GPU_SIZES)} |",
        f"| --- | --- | --- | ---: | {' | '.join('---' for _ in GPU_SIZES)} |",
    ]
    for weights, m in done.items():
        for text_on_host in (False, True):
            for codec_on_host in (False, True):
                kept = m["weight_bytes"] - text_on_host * (m["home_bytes"] - m["text_layer_bytes"])
                total = kept + cache_bytes() + RESERVE + (not codec_on_host) * codec
                fits = ["yes" if total <= size * GIB else "no" for size in GPU_SIZES]
                places = ["host" if on_host else "device" for on_host in (text_on_host, codec_on_host)]
                rows.append(f"| {weights} | {' | '.join(places)} | {total / GB:.1f} GB | {' | '.join(fits)} |")
    return rows


def codec_bytes() -> int:
    """Returns the bytes of the published audio tokenizer in float32."""
    from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig

    with torch.device("meta"):
        return 4 * sum(
            value.numel() for value in HiggsAudioTokenizer(HiggsAudioTokenizerConfig()).state_dict().values()
        )


def cache_bytes() -> int:
    """Returns the bytes of a KV cache in bf16."""
    from higgs_audio import HiggsAudioConfig

    text = HiggsAudioConfig().text_config
    return POSITIONS * text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim * 2


if __name__ == "__main__":
    main()
