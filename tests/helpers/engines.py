"""Requests for the engine, and the results of the plain loop for them."""

from dataclasses import replace

import torch
from oracle import AUDIO_EOS, BOS, K, collate, make_codes, make_prompt

from higgs_audio.engine import Engine, Request
from higgs_audio.generation.loop import generate
from higgs_audio.generation.sampling import SamplingOptions

GREEDY = SamplingOptions(do_sample=False, top_k=None, ras_win_len=None)
CONTEXT = 256


def make_request(text, codes=(), hidden=None, **fields):
    """Returns a request for a prompt; `hidden` is the text of its negative prompt, of the same length."""
    ids, columns = make_prompt(text, codes)
    if hidden is not None:
        fields["negative_ids"] = torch.tensor(make_prompt(hidden, codes)[0])
    return Request(torch.tensor(ids), columns, **{"max_frames": 12, **fields})


def run_alone(model, request):
    """Returns columns and finish reason of the plain loop, which runs the request alone."""
    options = {name: getattr(request.sampling, name) for name in SamplingOptions.__dataclass_fields__}
    options["top_k"] = None if options["top_k"] is None else min(options["top_k"], BOS + 2)
    if request.negative_ids is not None:
        options["negative_prompt_ids"] = request.negative_ids[None]
    output = generate(
        model,
        **collate([(request.input_ids.tolist(), request.columns)]),
        **options,
        seed=request.seed,
        min_frames=request.min_frames,
        max_frames=request.max_frames,
        max_new_tokens=request.max_frames + K + 2,
        eos_token_id=AUDIO_EOS,
    )
    return [tuple(column) for column in output[1][0].T.tolist()], output.finish_reasons[0]


def many_requests():
    """Returns requests with no, one and two references; greedy, sampled, guided, repetition-aware, short and long."""
    sampled = SamplingOptions(temperature=0.8, top_k=7, top_p=0.9, ras_win_len=None)
    aware = SamplingOptions(temperature=1.3, top_k=None, top_p=None, ras_win_len=3, ras_win_max_num_repeat=1)
    guided = replace(sampled, text_guidance_scale=2.0)
    one = replace(aware, ras_win_len=9, eos_codebooks=1)
    long = {"min_frames": 10, "max_frames": 20}
    return [
        make_request(range(20, 32), sampling=GREEDY),
        make_request(range(20, 25), sampling=sampled, seed=1),
        make_request(range(40, 49), [make_codes(5, 1)], sampling=aware, seed=2, **long),
        make_request(range(40, 49), [make_codes(5, 2)], sampling=aware, seed=2, **long),
        make_request(range(60, 65), [make_codes(9, 2), make_codes(1, 3)], sampling=one, seed=3, **long),
        make_request(range(70, 90), hidden=[70] * 20, sampling=guided, seed=4, **long),
        make_request(range(70, 75), [make_codes(4, 4)], [71] * 5, sampling=guided, seed=2**63 - 1),
        make_request([33], sampling=replace(aware, do_sample=False), seed=5, max_frames=3),
    ]


def make_engine(model, **options):
    """An engine whose KV cache starts small, so that it grows between and during steps."""
    return Engine(model, **{"context": CONTEXT, "max_slots": 8, "initial_positions": 8, **options})
