"""Tests of prefill in chunks and batches, and of the prefix cache."""

from dataclasses import dataclass, replace

import pytest
import torch
from engines import CONTEXT, make_engine, make_request, run_alone
from hooks import before_calls
from oracle import make_codes

from higgs_audio.engine.kv_cache import slot_bytes
from higgs_audio.generation.sampling import SamplingOptions

GUIDED = SamplingOptions(temperature=0.8, text_guidance_scale=2.0)


@dataclass
class Batch:
    """Prompts that are prefilled together: the number of their positions, and how many of these are columns."""

    num_positions: int
    num_columns: int = 0


@pytest.fixture
def prefilled(model):
    """The batches that are prefilled, seen at the embeddings.

    In C they get the text of all prompts `[N]`, then the columns; in torch all positions `[B, T]`, padded.
    """
    batches, is_open = [], False

    def add_text(ids):
        nonlocal is_open
        is_open = ids.ndim == 1
        batches.append(Batch(ids.numel()))

    def add_columns(columns):
        nonlocal is_open
        if is_open:  # otherwise it is a decode step
            batches[-1] = Batch(batches[-1].num_positions + len(columns), len(columns))
        is_open = False

    with before_calls(model.model.embed_tokens, add_text), before_calls(model.model.embed_audio_tokens, add_columns):
        yield batches


def sizes(batches):
    """The number of positions of each batch."""
    return [batch.num_positions for batch in batches]


def hidden_start(request):
    """Returns the position where the hidden text of a guided request begins."""
    return int((request.input_ids != request.negative_ids).nonzero()[0])


def test_two_voices_of_one_length_never_mix(model):
    """The prefixes have the same token ids; only the codes of the reference differ."""
    voices = [make_request(range(40, 49), [make_codes(5, voice)], seed=7) for voice in (1, 2)]
    expected = [run_alone(model, request) for request in voices]
    assert expected[0] != expected[1]
    engine = make_engine(model)
    for _ in range(20):
        handles = [engine.submit(replace(request, prefix=18)) for request in voices]
        assert [(list(handle), handle.finish_reason) for handle in handles] == expected
    assert len(engine.prefixes) == 2


def test_a_prefix_is_prefilled_once(model, prefilled):
    request = replace(make_request(range(40, 49), [make_codes(5, 1)], seed=7), prefix=18)
    engine = make_engine(model)
    first, again = list(engine.submit(request)), list(engine.submit(request))
    assert first == again
    length = len(request.input_ids)
    assert sizes(prefilled) == [18, length - 18, length - 18]
    engine.reset_caches()
    assert list(engine.submit(request)) == first
    assert sizes(prefilled)[3:] == [18, length - 18]


@pytest.mark.parametrize("chunk", [4, 64])
@pytest.mark.parametrize("is_offline", [False, True])
def test_a_prefix_of_several_requests_is_prefilled_by_one_of_them(model, requests, prefilled, chunk, is_offline):
    """Both slots of a guided request have the prefix as well."""
    guided, hidden = requests[6], requests[6].negative_ids.tolist()
    prefix = hidden.index(71)
    same = [replace(guided, seed=seed, prefix=prefix) for seed in range(3)]
    other = make_request(range(70, 75), [make_codes(4, 5)], [71] * 5, sampling=guided.sampling, prefix=prefix)
    engine = make_engine(model, prefill_chunk=chunk)
    handles = [engine.submit(replace(request, is_offline=is_offline)) for request in (*same, other)]
    results = [(list(one), one.finish_reason) for one in handles]
    num_columns, expected = sum(batch.num_columns for batch in prefilled), 2 * len(guided.columns)
    assert results == [run_alone(model, one) for one in (*same, other)]
    # all columns are in the prefix; two requests have another reference, and each has two slots
    # a request that is not offline begins with the rest of a chunk: then a part is prefilled twice
    assert num_columns == expected or (not is_offline and num_columns < 2 * expected)


def test_the_cached_part_of_a_hidden_text_is_not_prefilled_again(model, requests, prefilled):
    """A hidden text begins with every shorter one, unless the prompt before it differs."""
    engine = make_engine(model)
    long = make_request(range(71, 91), hidden=[70] * 20, sampling=requests[5].sampling)
    short = make_request(range(30, 37), hidden=[70] * 7, sampling=long.sampling)
    first, other = hidden_start(short), requests[6]
    for request, cached in ((long, 0), (short, first + 7), (long, first + 20), (other, 0), (short, first + 7)):
        prefilled.clear()
        columns = list(engine.submit(request))
        assert sizes(prefilled) == [2 * len(request.input_ids) - cached]
        assert columns == run_alone(model, request)[0]


def test_a_hidden_text_too_long_for_the_cache_is_not_shared(model):
    """A shorter one is cached, and C must not read past its end."""
    slot = slot_bytes(model.model.text_config, CONTEXT, torch.float32)
    engine = make_engine(model, memory=4 * slot, max_slots=2)
    engine.prefixes.max_bytes = slot_bytes(model.model.text_config, 40, torch.float32)
    for count in (12, 90, 12, 90):
        request = make_request([71] * count, hidden=[70] * count, sampling=GUIDED, seed=count)
        assert list(engine.submit(request)) == run_alone(model, request)[0]
    assert 0 < engine.prefixes.num_bytes <= engine.prefixes.max_bytes


def test_slots_do_not_keep_evicted_prefixes_alive(model):
    """Slots have their own copies."""
    engine = make_engine(model)
    engine.prefixes.max_bytes = slot_bytes(model.model.text_config, 12, torch.float32)
    requests = [make_request([71 + number] * 12, prefix=10, seed=number, min_frames=11) for number in range(4)]
    list(engine.submit(requests[0]))  # cached for the next request, until the other prefixes evict it
    handles = [engine.submit(request) for request in requests]
    while len(engine.slots.decoding) < 4:
        engine.step()
    engine.step()
    parts = [part for sequence in engine.slots.decoding for part in sequence.shared]
    assert sum(part is not None and part[0]() is not None for part in parts) <= 1
    assert [list(handle) for handle in handles] == [run_alone(model, request)[0] for request in requests]


def test_a_shorter_hidden_text_does_not_replace_a_longer_one(model, requests, prefilled):
    engine, sampling = make_engine(model), requests[5].sampling
    long, short = (
        make_request(range(71, 71 + count), hidden=[70] * count, sampling=sampling, is_offline=True)
        for count in (20, 7)
    )
    for handle in [engine.submit(long), engine.submit(short)]:  # prefilled together: neither is cached
        list(handle)
    prefilled.clear()
    columns = list(engine.submit(long))
    assert sizes(prefilled) == [2 * len(long.input_ids) - (hidden_start(long) + 20)]
    assert columns == run_alone(model, long)[0]


@pytest.mark.usefixtures("without_native")
def test_a_hidden_text_is_prefilled_whole_where_results_depend_on_the_batch(model, requests, prefilled):
    engine = make_engine(model)
    for _ in range(2):
        list(engine.submit(requests[5]))
    assert sizes(prefilled) == [2 * len(requests[5].input_ids)] * 2


def test_several_prompts_are_prefilled_in_one_batch(model, requests, expected, prefilled):
    engine = make_engine(model, prefill_chunk=100)
    decoding = engine.submit(requests[2])
    next(decoding)
    prefilled.clear()
    handles = [engine.submit(requests[number]) for number in (0, 1, 6)]
    assert [list(handle) for handle in handles] == [expected[number][0] for number in (0, 1, 6)]
    assert sizes(prefilled) == [sum(len(requests[number].input_ids) for number in (0, 1, 6, 6))]  # the last is guided
    assert list(decoding) == expected[2][0][1:]


def test_a_long_prompt_is_prefilled_in_chunks_between_decode_steps(model, requests, prefilled):
    engine = make_engine(model, prefill_chunk=4)
    decoding = engine.submit(replace(requests[2], min_frames=20))
    next(decoding)
    prefilling = engine.submit(requests[0])
    prefilled.clear()
    while decoding.poll() is not None:
        pass
    while prefilling.poll() is None:
        engine.step()
    assert sizes(prefilled) == [4, 4, 4, 2]
    num_columns = 0
    while decoding.poll() is not None:
        num_columns += 1
    assert num_columns == 4


@pytest.mark.parametrize("online", [None, "decoding", "prefilling", "waiting"])
def test_prompts_are_prefilled_whole_where_all_requests_are_offline(model, requests, prefilled, online):
    engine = make_engine(model, prefill_chunk=4)
    names = ["decoding", "prefilling", "waiting"]
    for name, request in zip(names, (requests[2], requests[0], requests[3]), strict=True):
        handle = engine.submit(replace(request, is_offline=name != online))
        if name == "decoding":
            next(handle)
    prefilled.clear()
    engine.step()
    whole = len(requests[0].input_ids) + len(requests[3].input_ids)  # in one batch
    assert sizes(prefilled) == ([whole] if online is None else [4])
