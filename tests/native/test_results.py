"""Tests that layers and sampler in C have the results of those in torch, and that torch runs models that C does not
support.
"""

import random
import shutil
from dataclasses import replace
from functools import reduce

import pytest
import torch
from engines import make_engine, make_request, many_requests, run_alone
from oracle import AUDIO_OUT, AUDIO_OUT_BOS, BOS, K, fill, make_codes, make_config

from higgs_audio import NANO
from higgs_audio.engine import Request
from higgs_audio.engine.cache_views import PrefillChunk
from higgs_audio.engine.decode_state import DecodeState, initial_state
from higgs_audio.engine.kv_cache import KVCache, SharedPrefixes
from higgs_audio.engine.model_runner import ModelRunner
from higgs_audio.engine.native_layers import is_supported
from higgs_audio.engine.sampler import NativeSampler, Sampler, make_sampler
from higgs_audio.generation.sampling import SamplingOptions
from higgs_audio.model.model import HiggsAudioForConditionalGeneration

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is here")
NO_COLUMNS = torch.zeros(0, K).long()


@pytest.fixture(params=["float32", "bfloat16", "grouped heads", "one feed-forward"])
def model(request):
    config = make_config()
    if request.param == "grouped heads":
        config.text_config.num_key_value_heads = 1
    if request.param == "one feed-forward":
        config.audio_dual_ffn_layers = []
    filled = fill(HiggsAudioForConditionalGeneration(config), seed=0).eval()
    return filled.to(torch.bfloat16).float() if request.param == "bfloat16" else filled


@pytest.fixture
def odd_model():
    """Returns a model with a head of 8 * 19 outputs, which is not a multiple of any panel."""
    config = make_config()
    config.audio_codebook_size, config.audio_stream_bos_id, config.audio_stream_eos_id = 17, 17, 18
    return fill(HiggsAudioForConditionalGeneration(config), seed=0).eval()


def make_runners(model, monkeypatch, max_positions=128):
    """Returns a runner in C and a runner in torch."""
    runners = []
    for switch in ("1", "0"):
        monkeypatch.setenv("HIGGS_AUDIO_NATIVE", switch)
        cache = KVCache(model.model.text_config, 24, max_positions, torch.float32, model.device)
        runners.append(ModelRunner(model, cache))
    assert runners[0].native is not None
    assert runners[1].native is None
    return runners


def assert_close(logits, expected):
    assert float((logits - expected).abs().max()) < 1e-5 * float(expected.abs().max())


# Layers.


@needs_compiler
@pytest.mark.parametrize("num_slots", [1, 2, 3, 8])
def test_prompts_with_audio_and_a_head_that_panels_do_not_divide(odd_model, monkeypatch, num_slots):
    """Text and audio alternate, in chunks that begin and end in text or audio."""
    runners = make_runners(odd_model, monkeypatch)
    generator, ids = torch.Generator().manual_seed(0), torch.tensor([20, 21, AUDIO_OUT, AUDIO_OUT, 22, 23, AUDIO_OUT])
    for slot in range(num_slots):
        columns = torch.randint(17, (3, K), generator=generator)
        for runner in runners:
            runner.prefill([PrefillChunk(slot, ids[:3], columns[:1], 0)])
            runner.prefill([PrefillChunk(slot, ids[3:], columns[1:], 3)])
    columns = torch.randint(17, (num_slots, K), generator=generator)
    logits, expected = (runner.decode(columns, [7] * num_slots) for runner in runners)
    assert logits.shape == (num_slots, K, 19)
    assert_close(logits, expected)


@needs_compiler
@pytest.mark.parametrize("num_slots", [1, 2, 3, 4, 5, 7, 8, 9, 17])
def test_decode_steps_in_c_and_in_torch_agree(model, monkeypatch, num_slots):
    runners = make_runners(model, monkeypatch)
    head = model.audio_lm_head.weight
    assert runners[0].native.is_bfloat16 == bool((head == head.bfloat16()).all())
    generator = torch.Generator().manual_seed(num_slots)
    lengths = [9 + (5 * slot) % 7 for slot in range(num_slots)]
    for slot, length in enumerate(lengths):
        ids = torch.randint(20, 90, (1, length), generator=generator)
        for runner in runners:
            runner.prefill([PrefillChunk(slot, ids[0], NO_COLUMNS, 0)])
    for step in range(4):
        columns = torch.randint(BOS, (num_slots, K), generator=generator)
        positions = [length + step for length in lengths]
        assert_close(*(runner.decode(columns, positions) for runner in runners))


@needs_compiler
def test_logits_of_a_slot_are_equal_to_the_bit_whatever_else_is_in_the_batch(model, monkeypatch):
    runner, _ = make_runners(model, monkeypatch)
    for slot in range(11):
        runner.prefill([PrefillChunk(slot, torch.tensor([30 + slot, 40, 50]), NO_COLUMNS, 0)])
    columns = torch.arange(11)[:, None].expand(-1, K).contiguous()
    together = runner.decode(columns, [3] * 11)
    for count in (1, 2, 3, 6, 10):
        assert torch.equal(runner.decode(columns[:count], [3] * count), together[:count])


@needs_compiler
def test_a_shared_prefix_is_read_from_one_copy_with_the_same_result_to_the_bit(model, monkeypatch):
    """Two slots share the first five positions, one slot shares seven, one slot none."""
    runner, _ = make_runners(model, monkeypatch)
    ids, columns = torch.tensor([30, 31, 32, 33, 34, 35, 36]), torch.arange(4)[:, None].expand(-1, K).contiguous()
    for slot in range(4):
        own_ids = torch.cat([ids, torch.tensor([40 + slot])]) if slot else torch.arange(50, 58)
        runner.prefill([PrefillChunk(slot, own_ids, NO_COLUMNS, 0)])
    expected = runner.decode(columns, [8] * 4)
    saved = runner.cache.save(1, 7)
    shared = SharedPrefixes([None, (saved, 5), (saved, 5), (saved, 7)])
    for slot, count in ((1, 5), (2, 5), (3, 7)):
        runner.cache.zero(slot, count)
    assert torch.equal(runner.decode(columns, [8] * 4, shared), expected)
    assert not torch.equal(runner.decode(columns, [8] * 4), expected)


@needs_compiler
def test_nano_is_packed_as_bfloat16_and_loses_no_bit(monkeypatch):
    nano = HiggsAudioForConditionalGeneration.from_pretrained(NANO, dtype=torch.float32).eval()
    runners = make_runners(nano, monkeypatch)
    assert runners[0].native.is_bfloat16
    columns = torch.randint(1024, (2, 8), generator=torch.Generator().manual_seed(0))
    assert_close(*(runner.decode(columns, [0, 0]) for runner in runners))


# Sampler.


def random_state(seed, config):
    """Returns the state of one sequence with random options, in the middle of its segment or near the start or end."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    options = SamplingOptions(
        temperature=chance.choice([0.3, 1.0, 1.7]),
        top_k=chance.choice([None, 1, 3, 50]),
        top_p=chance.choice([None, 0.2, 0.95]),
        ras_win_len=chance.choice([None, 1, 7]),
        ras_win_max_num_repeat=chance.choice([1, 2]),
        text_guidance_scale=chance.choice([1.0, 2.5]),
        eos_codebooks=chance.choice([1, None]),
        do_sample=chance.random() < 0.8,
    )
    ids = torch.tensor([AUDIO_OUT_BOS])
    negative_ids = ids if options.text_guidance_scale != 1 else None
    min_frames, max_frames = chance.choice([0, 4]), chance.choice([4, 5, 40])
    request = Request(ids, NO_COLUMNS, options, seed, min_frames, max_frames, negative_ids)
    state = initial_state(request, config, ids.device)
    num_columns, end = torch.tensor([chance.randint(1, K + 5)]), torch.tensor([chance.choice([0, 0, 7])])
    recent = torch.randint(-1, BOS, state.recent.shape, generator=generator)
    return replace(state, recent=recent, num_columns=num_columns, end=end)


@needs_compiler
@pytest.mark.parametrize("seed", range(60))
def test_samplers_in_c_and_in_torch_agree(seed):
    """With all options in one batch, and logits that are often equal, -inf, NaN or infinity."""
    config, generator, count = make_config(), torch.Generator().manual_seed(seed), 1 + seed % 7
    first = reduce(DecodeState.concat, [random_state(7 * seed + number, config) for number in range(count)])
    rows = torch.tensor([1 + int(scale != 1) for scale in first.text_guidance_scale])
    conditional = rows.cumsum(0) - rows
    native, plain = (kind(first, conditional, conditional + rows - 1, config) for kind in (make_sampler, Sampler))
    assert isinstance(native, NativeSampler)
    native_state = plain_state = first
    for step in range(6):
        logits = 4 * torch.randn(int(rows.sum()), K, config.codebook_rows, generator=generator)
        logits = logits.round() if step % 2 else logits
        is_excluded = torch.rand(logits.shape, generator=generator) < 0.2
        is_excluded[rows.repeat_interleave(rows) == 2] = False  # guidance would turn -inf into NaN
        logits[is_excluded] = float("-inf")
        if step == 5:
            logits[seed % len(logits), 3, 2] = (float("nan"), float("inf"))[seed % 2]
        native_state, columns = native(native_state, logits)
        plain_state, expected = plain(plain_state, logits)
        finite = expected[:, -1] == 1
        assert (int((~finite).sum()), columns[:, -1].tolist()) == (step == 5, expected[:, -1].tolist())
        assert torch.equal(columns[finite], expected[finite])
        has_window = finite & (first.ras_win_len > 0)
        assert torch.equal(native_state.recent[has_window], plain_state.recent[has_window])


# The engine in C.


@needs_compiler
def test_requests_with_one_voice_share_the_memory_of_its_prefix(model):
    """They read the cached copies of the prefix and of the hidden text, not the slots of the requests."""
    voice, guided = [make_codes(9, 3)], SamplingOptions(temperature=0.8, text_guidance_scale=2.0)
    requests = [
        make_request(range(71, 80), voice, hidden=[70] * 9, sampling=guided, seed=seed, max_frames=12, prefix=14)
        for seed in (0, 2, 3)  # a draw of seed 1 is within a millionth of a boundary
    ]
    engine = make_engine(model)
    list(engine.submit(requests[0]))
    handles = [engine.submit(request) for request in requests]
    while len(engine.slots.decoding) < 3:
        engine.step()
    hidden_stop = requests[0].negative_ids.tolist().index(70) + 9
    for sequence in engine.slots.decoding:
        assert [count for _, count in sequence.shared] == [14, hidden_stop]
        for slot, count in zip(sequence.slots, (14, hidden_stop), strict=True):
            engine.cache.zero(slot, count)
    assert [list(handle) for handle in handles] == [run_alone(model, request)[0] for request in requests]


@needs_compiler
def test_engines_in_c_and_in_torch_equal_the_plain_loop(model, monkeypatch):
    for switch in ("1", "0"):
        monkeypatch.setenv("HIGGS_AUDIO_NATIVE", switch)
        engine = make_engine(model)
        assert (engine.runner.native is not None) == (switch == "1")
        requests = many_requests()
        handles = [engine.submit(request) for request in requests]
        assert [(list(handle), handle.finish_reason) for handle in handles] == [
            run_alone(model, one) for one in requests
        ]


@needs_compiler
def test_changed_weights_are_packed_again(model):
    engine, request = make_engine(model), many_requests()[0]
    before = list(engine.submit(request))
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(-3)
    handle = engine.submit(request)
    assert (list(handle), handle.finish_reason) == run_alone(model, request)
    assert list(engine.submit(replace(request, seed=1))) != before


@needs_compiler
def test_weights_changed_through_data_are_packed_again_after_reset_caches(model):
    engine, request = make_engine(model), many_requests()[4]
    before = list(engine.submit(request))
    model.model.layers[0].self_attn.v_proj.weight.data.mul_(-3)
    engine.reset_caches()
    handle = engine.submit(request)
    assert (list(handle), handle.finish_reason) == run_alone(model, request)
    assert run_alone(model, request)[0] != before


@needs_compiler
def test_replaced_and_hooked_modules_are_used(model):
    request = many_requests()[4]
    before = run_alone(model, request)
    assert list(make_engine(model).submit(request)) == before[0]
    engine = make_engine(model)
    list(engine.submit(request))
    hook = model.audio_lm_head.register_forward_hook(lambda module, inputs, output: -output)
    handle = engine.submit(request)
    assert (list(handle), handle.finish_reason) == run_alone(model, request) != before
    hook.remove()
    for layer in model.model.layers:
        (layer.audio_mlp or layer.mlp).act = torch.nn.GELU()
    handle = engine.submit(request)
    assert (list(handle), handle.finish_reason) == run_alone(model, request) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.double(),
        lambda model: setattr(model.model.layers[0].self_attn.q_proj, "bias", torch.nn.Parameter(torch.zeros(64))),
        lambda model: model.model.norm.register_forward_hook(lambda module, inputs, output: output),
        lambda model: setattr(model.model.layers[0].audio_mlp or model.model.layers[0].mlp, "act", torch.nn.GELU()),
    ],
    ids=["float64", "a bias", "a hook", "another activation"],
)
def test_unsupported_models_run_in_torch(change):
    model = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    assert is_supported(model)
    change(model)
    assert not is_supported(model)
