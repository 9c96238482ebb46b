"""Tests of the parts of the engine: scheduler, KV cache, prefix cache, loop detection, sampling."""

import ast
import random
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from engines import GREEDY, make_engine, make_request
from oracle import BOS, K, make_config

from higgs_audio import errors
from higgs_audio.engine import scheduler as scheduler_module
from higgs_audio.engine.decode_state import DecodeState, initial_state, sample_ids
from higgs_audio.engine.kv_cache import KVCache, slot_bytes
from higgs_audio.engine.loop_detector import NUM_FRAMES, LoopDetector
from higgs_audio.engine.prefix_cache import PrefixCache, prefix_key
from higgs_audio.engine.scheduler import Scheduler
from higgs_audio.generation.sampling import SamplingOptions, filter_logits, sample
from higgs_audio.native.structs import SamplerStruct

CPU = torch.device("cpu")

# Scheduler.


def test_the_scheduler_needs_no_torch():
    """Neither does the only module of the package that it imports."""
    imported = set()
    for module in (scheduler_module, errors):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {*names, *([node.module] if isinstance(node, ast.ImportFrom) else [])}
    assert {name for name in imported if name.partition(".")[0] in ("torch", "higgs_audio")} == {"higgs_audio.errors"}


def test_requests_are_admitted_in_order_and_none_overtakes():
    scheduler = Scheduler(num_slots=3, max_waiting=9)
    first, wide, small = scheduler.add(2, 0), scheduler.add(2, 0), scheduler.add(1, 0)
    assert scheduler.schedule().admitted == (first,)
    assert (
        scheduler.schedule().admitted == ()
    )  # the small request would fit, but the wide request could then wait forever
    scheduler.remove(first)
    assert scheduler.schedule().admitted == (wide, small)


def test_the_latest_requests_of_lower_priority_are_preempted_and_resume_first():
    scheduler = Scheduler(num_slots=3, max_waiting=9)
    old, late, later = (scheduler.add(1, 1) for _ in range(3))
    scheduler.schedule()
    waiting, urgent = scheduler.add(1, 1), scheduler.add(2, 0)
    schedule = scheduler.schedule()
    assert (schedule.preempted, schedule.admitted) == ((later, late), (urgent,))
    assert scheduler.running == [old, urgent]
    scheduler.remove(urgent)
    assert scheduler.schedule().admitted == (late, later)
    assert scheduler.waiting == [waiting]
    assert scheduler.schedule().preempted == ()  # requests of equal priority do not preempt one another


# Caches.


def test_the_cache_grows_and_keeps_its_contents():
    config = make_config().text_config
    cache = KVCache(config, 4, 600, torch.float32, CPU)
    cache.reserve(1, 10)
    keys = torch.randn(2, 10, 16)
    cache.write(1, 0, 0, keys, keys + 1)
    cache.reserve(3, 600)
    assert torch.equal(cache.layers(1, 10)[1][0, 0], keys)
    saved = cache.save(0, 10)
    cache.load(2, saved)
    assert torch.equal(cache.layers(3, 10)[1][1, 2], keys + 1)
    assert cache.num_bytes == 4 * slot_bytes(config, 600, torch.float32)
    cache.release()
    assert cache.num_bytes == 0


def test_the_least_recently_used_prefix_is_evicted_first():
    cache = KVCache(make_config().text_config, 1, 64, torch.float32, CPU)
    cache.reserve(1, 64)
    saved = cache.save(0, 10)
    prefixes = PrefixCache(2 * saved.num_bytes)
    keys = [prefix_key(torch.tensor([number]), torch.zeros(0, K)) for number in range(3)]
    prefixes.put(keys[0], saved)
    prefixes.put(keys[1], saved)
    prefixes.get(keys[0])
    prefixes.put(keys[2], saved)
    assert [prefixes.get(key) is not None for key in keys] == [True, False, True]
    prefixes.put(keys[1], cache.save(0, 64))  # larger than the whole cache
    assert prefixes.get(keys[1]) is None


# Loop detection.


def test_a_model_in_a_loop_is_stopped_within_a_second(own_model):
    with torch.no_grad():
        own_model.audio_lm_head.weight.zero_()  # all codes are equally likely: greedy sampling selects the first
    request = make_request(range(20, 32), sampling=GREEDY, max_frames=150, detect_loops=True)
    handle = make_engine(own_model).submit(request)
    columns = list(handle)
    assert handle.finish_reason == "repetition"
    assert len(columns) <= 25 + K
    silent = make_engine(own_model, silent={0}).submit(request)
    list(silent)
    assert silent.finish_reason == "silence"
    unguarded = make_engine(own_model).submit(make_request(range(20, 32), sampling=GREEDY, max_frames=150))
    list(unguarded)
    assert unguarded.finish_reason == "length"


@pytest.mark.parametrize("period", [1, 2, 3, 4, 6, 8])
def test_loops_are_detected_and_varied_codes_are_not(period):
    chance = random.Random(period)
    loop = [[chance.randrange(1024) for _ in range(K)] for _ in range(period)]
    detector, varied = LoopDetector((), 1024), LoopDetector((), 1024)
    reasons = [detector.push(loop[index % period]) for index in range(NUM_FRAMES + 1)]
    assert reasons == [None] * NUM_FRAMES + ["repetition"]
    assert all(varied.push([chance.randrange(1024) for _ in range(K)]) is None for _ in range(500))


def test_a_pause_is_not_endless_silence():
    detector = LoopDetector({3}, BOS + 10**6)
    for frame in range(300):
        is_quiet = frame % NUM_FRAMES < NUM_FRAMES - 2
        assert detector.push([3 if is_quiet else 5, frame, *[0] * (K - 2)]) is None


def test_loops_of_a_single_codebook_are_detected():
    detector = LoopDetector((), 1024)
    assert [detector.push([5]) for _ in range(NUM_FRAMES)] == [None] * (NUM_FRAMES - 1) + ["repetition"]


# Sampling.


def test_every_sampling_option_reaches_torch_and_c():
    options = {field.name for field in fields(SamplingOptions)}
    assert options <= {field.name for field in fields(DecodeState)}
    assert options <= {field[0] for field in SamplerStruct._fields_}


def concat(states):
    """Concatenates the states of several requests."""
    first, *others = states
    for other in others:
        first = first.concat(other)
    return first


def test_sequences_with_different_options_are_sampled_as_each_alone():
    config = make_config(audio_codebook_size=1024)
    options = [
        SamplingOptions(temperature=0.3, top_k=30, top_p=0.95),
        SamplingOptions(temperature=1.7, top_k=None, top_p=None),
        SamplingOptions(top_k=None, top_p=0.5),
        SamplingOptions(top_k=5, top_p=None),
        SamplingOptions(do_sample=False),
    ]
    requests = [make_request([20], sampling=option, seed=seed) for seed, option in enumerate(options)]
    state = concat([initial_state(request, config, CPU) for request in requests])
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = 3 * torch.randn(len(options), K, 1026, generator=generator)
        noise = torch.rand(len(options), K, generator=generator, dtype=torch.float64)
        ids = sample_ids(logits, state, noise, 1026)
        for index, option in enumerate(options):
            assert torch.equal(ids[index], sample(logits[index], option, noise[index]))
    kept = filter_logits(logits[0], options[0]).isfinite().sum(-1)
    assert int(kept.max()) <= 30


def test_equally_likely_ids_are_sampled_as_alone(model):
    """In bfloat16, every tenth row of logits has equal values at the boundary of its top k."""
    greedy = SamplingOptions(do_sample=False, top_k=None)
    few = SamplingOptions(temperature=1.0, top_k=5, top_p=None)
    nucleus = SamplingOptions(temperature=1.0, top_k=5, top_p=0.8)
    all_ids = SamplingOptions(temperature=1.0, top_k=None, top_p=None)
    options, config, generator = (greedy, few, nucleus, all_ids), model.config, torch.Generator().manual_seed(0)
    states = [initial_state(make_request([20], sampling=one), config, CPU) for one in options]
    for _ in range(200):
        logits = (2 * torch.randn(4, K, BOS + 2, generator=generator)).round() / 2
        noise = torch.rand(4, K, generator=generator, dtype=torch.float64)
        together = sample_ids(logits, concat(states), noise, BOS + 2)
        for row, one in enumerate(options):
            max_top_k = BOS + 2 if one.top_k is None else one.top_k
            if one.do_sample:
                own = sample_ids(logits[row : row + 1], states[row], noise[row : row + 1], max_top_k)[0]
                assert torch.equal(own, together[row])
            assert torch.equal(sample(logits[row], one, noise[row]), together[row])
