"""Memory and speed of the full-size language model in bf16, int8 and 4 bits: the table of docs/small-machines.md.

    python benchmarks/small_machines.py OUT.json [--weights bf16 int8 nf4] [--steps N] [--prompt TOKENS] [--threads N]

Random weights in the published architecture, on a CPU. Each kind of weights is a process of its own, one after the
other, since two do not fit into 24 GiB; what OUT.json has is not measured again. One decoder layer is quantised, by
the same `from_pretrained` as any checkpoint, and then copied, which takes the memory of 28 and not the time.

Seconds are of the processor, on one thread by default, so that other work on the machine does not count. Layers are
alike: what one and four of them take gives what 28 take (`--whole` runs them all).
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
CARDS = (8, 12, 16, 24)  # GiB
POSITIONS = 4096  # of the KV cache in the sums: a prompt and about 2.5 minutes of sound
RESERVE = 1.0 * GB  # assumed, not measured: CUDA's context, activations, dequantised matrices


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
            done[weights] = in_own_process(weights, sys.argv[1:])
            path.write_text(json.dumps(done, indent=1), encoding="utf-8")
    done = {weights: done[weights] for weights in WEIGHTS if weights in done}
    print(*measured_rows(done), "", *fitting_rows(done), sep="\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--steps", type=int, default=3, help="audio steps that are timed, after one that is not")
    parser.add_argument("--prompt", type=int, default=100, help="text tokens of the prefill")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole", action="store_true", help="time all layers: minutes for each kind of weights")
    parser.add_argument("--only", choices=WEIGHTS, help=argparse.SUPPRESS)  # a process of its own
    return parser.parse_args()


def in_own_process(weights: str, arguments: list[str]) -> dict[str, Any]:
    """`measure` in a process that has held nothing else."""
    command = [sys.executable, __file__, *arguments, "--only", weights]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


# One kind of weights.


def measure(weights: str, num_steps: int, num_tokens: int, whole: bool) -> dict[str, Any]:
    """Bytes and seconds of one kind of weights; then its text weights are taken home, and the bytes counted again."""
    from higgs_audio.model.offload import num_bytes, offload_text

    before = resident_bytes()
    model = full_size(weights)
    resident = resident_bytes() - before
    seconds = time_model(model, num_steps, num_tokens) if whole else extrapolate(model, num_steps, num_tokens)
    total = sum(num_bytes(parameter) for parameter in model.parameters())
    layer = sum(num_bytes(parameter) for parameter in model.model.layers[0].mlp.parameters())
    offload_text(model, "meta")
    home = sum(num_bytes(parameter) for parameter in model.parameters() if parameter.device.type == "cpu")
    return {
        "parameters": sum(parameter.numel() for parameter in small_shapes()),
        "weight_bytes": total,
        "resident_bytes": resident,
        "home_bytes": home,
        "text_layer_bytes": layer,
        "whole": whole,
        "threads": torch.get_num_threads(),
        **seconds,
    }


def full_size(weights: str) -> Any:
    """The published architecture: one layer loaded as `weights`, 28 times."""
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


def small_shapes() -> list[torch.Tensor]:
    """The parameters of the architecture, without memory."""
    from higgs_audio import HiggsAudioConfig, HiggsAudioForConditionalGeneration

    with torch.device("meta"):
        return list(HiggsAudioForConditionalGeneration(HiggsAudioConfig()).parameters())


def extrapolate(model: Any, num_steps: int, num_tokens: int) -> dict[str, float]:
    """`time_model` from its first and its first four layers."""
    layers, times = model.model.layers, {}
    for count in (1, 4):
        model.model.layers = layers[:count]
        times[count] = time_model(model, num_steps, num_tokens)
    model.model.layers = layers
    rest = len(layers) - 1
    return {name: t + rest * (times[4][name] - t) / 3 for name, t in times[1].items()}


@torch.no_grad()
def time_model(model: Any, num_steps: int, num_tokens: int) -> dict[str, float]:
    """Seconds of one prefill of text, and the median of the audio steps that follow it."""
    ids = torch.randint(0, 1000, (1, num_tokens))
    began = time.process_time()
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    prefill = time.process_time() - began
    steps = []
    for _ in range(num_steps + 1):
        column = torch.randint(0, 1024, (1, 1, model.config.audio_num_codebooks))
        began = time.process_time()
        model(audio_input_ids=column, past_key_values=cache, use_cache=True, with_text=False)
        steps.append(time.process_time() - began)
    return {"prefill_seconds": prefill, "step_seconds": statistics.median(steps[1:])}


def resident_bytes() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


# What fits.


def measured_rows(done: dict[str, Any]) -> list[str]:
    rows = [
        "| weights | bytes | resident, measured | text weights at home | left on the device | a step | prefill |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for weights, m in done.items():
        sizes = (m["weight_bytes"], m["resident_bytes"], m["home_bytes"], m["weight_bytes"] - m["home_bytes"])
        cells = [f"{size / GB:.2f} GB" for size in sizes]
        rows.append(f"| {weights} | {' | '.join(cells)} | {m['step_seconds']:.2f} s | {m['prefill_seconds']:.1f} s |")
    return rows


def fitting_rows(done: dict[str, Any]) -> list[str]:
    """Each variant's sum on the device, and the cards that hold it."""
    codec = codec_bytes()
    rows = [
        f"| weights | text weights | audio tokenizer | sum | {' | '.join(f'{card} GB' for card in CARDS)} |",
        f"| --- | --- | --- | ---: | {' | '.join('---' for _ in CARDS)} |",
    ]
    for weights, m in done.items():
        for home in (False, True):
            for codec_at_home in (False, True):
                kept = m["weight_bytes"] - home * (m["home_bytes"] - m["text_layer_bytes"])
                total = kept + cache_bytes() + RESERVE + (not codec_at_home) * codec
                fits = ["yes" if total <= card * GIB else "no" for card in CARDS]
                places = ["host" if there else "device" for there in (home, codec_at_home)]
                rows.append(f"| {weights} | {' | '.join(places)} | {total / GB:.1f} GB | {' | '.join(fits)} |")
    return rows


def codec_bytes() -> int:
    """Of the published audio tokenizer, float32."""
    from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig

    with torch.device("meta"):
        return 4 * sum(
            value.numel() for value in HiggsAudioTokenizer(HiggsAudioTokenizerConfig()).state_dict().values()
        )


def cache_bytes() -> int:
    """Of a KV cache in bf16."""
    from higgs_audio import HiggsAudioConfig

    text = HiggsAudioConfig().text_config
    return POSITIONS * text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim * 2


if __name__ == "__main__":
    main()
