"""Tests of sampling: filters against those of transformers, draws, redraws, and the ranges of options.

The samplers of the engine, in torch and in C, follow `SamplingOptions` too: the last tests compare them with the plain
loop, option by option.
"""

import shutil
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from engines import make_engine, make_request, run_alone
from oracle import fill, make_config
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from higgs_audio import HiggsAudio, HiggsAudioForConditionalGeneration
from higgs_audio.engine import Request
from higgs_audio.engine.decode_state import DecodeState
from higgs_audio.errors import HiggsAudioError, OptionError
from higgs_audio.generation.sampling import (
    SAMPLING_NAMES,
    SamplingOptions,
    check_finite,
    draw,
    filter_logits,
    read_sampling,
    repetition_aware,
    sample,
    uniforms,
)
from higgs_audio.native.structs import SamplerStruct

INF = float("inf")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make_logits(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=seeded(seed))


def make_noise(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 20, 1026])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.8, 1.0])
def test_filters_equal_those_of_transformers(temperature, top_k, top_p):
    logits = make_logits(8, 1026)
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(None, expected)
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(filter_logits(logits, options), expected)


def test_top_p_keeps_the_id_that_reaches_p_and_nothing_after_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = filter_logits(logits, SamplingOptions(top_k=None, top_p=0.6)) > -INF
    assert kept.tolist() == [True, True, False, False]


def test_the_most_likely_id_survives_every_filter():
    logits = make_logits(4, 100)
    kept = filter_logits(logits, SamplingOptions(top_k=1, top_p=1e-9)) > -INF
    assert torch.equal(kept.long().argmax(-1), logits.argmax(-1))
    assert kept.sum(-1).tolist() == [1] * 4


def test_masked_ids_are_never_drawn():
    logits = make_logits(1000, 20)
    logits[:, 5:] = -INF
    assert int(sample(logits, SamplingOptions(top_k=50, temperature=5.0), make_noise(1000)).max()) < 5


def test_greedy_takes_the_most_likely_id_whatever_the_noise():
    logits = make_logits(8, 1026)
    assert torch.equal(sample(logits, SamplingOptions(do_sample=False), make_noise(8)), logits.argmax(-1))


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().expand(20000, 3)
    counts = torch.bincount(draw(logits, make_noise(20000)), minlength=3) / 20000
    torch.testing.assert_close(counts, torch.tensor([0.7, 0.2, 0.1]), atol=0.02, rtol=0)


def test_the_smallest_and_the_largest_noise_draw_ids_that_are_not_masked():
    logits = torch.tensor([-INF, 0.0, -INF, 1.0, -INF])
    maximum = 1 - 2**-52
    assert draw(logits.expand(2, 5), torch.tensor([0.0, maximum], dtype=torch.float64)).tolist() == [1, 3]


def test_a_single_row_gives_a_single_id():
    assert sample(make_logits(320), SamplingOptions(), make_noise()).shape == ()


# Random numbers


def test_random_numbers_are_uniform_and_uncorrelated_over_seeds_steps_and_indices():
    many = torch.arange(4000)
    for seeds, steps in ((many, 0 * many), (0 * many, many), (2**63 - 1 - many, many)):
        noise = uniforms(seeds, steps, 16)  # [4000, 16]
        assert float(noise.min()) >= 0
        assert float(noise.max()) < 1
        counts = torch.histc(noise.float(), 20, 0, 1) / noise.numel()
        torch.testing.assert_close(counts, torch.full((20,), 0.05), atol=0.004, rtol=0)
        beside = torch.cat([noise[:-1], noise[1:]], dim=1)  # each row and the next
        related = torch.corrcoef(beside.T).fill_diagonal_(0)
        assert float(related.abs().max()) < 0.09  # of 4,000 pairs: five standard deviations are 0.08


def test_random_numbers_of_a_row_depend_on_its_own_seed_and_step_alone():
    together = uniforms(torch.tensor([5, 6]), torch.tensor([8, 9]), 16)
    assert torch.equal(uniforms(torch.tensor([6]), torch.tensor([9]), 16), together[1:])
    assert torch.equal(uniforms(torch.tensor([6]), torch.tensor([9]), 8), together[1:, :8])
    assert not torch.equal(uniforms(torch.tensor([9]), torch.tensor([6]), 16), together[1:])


def test_repeated_ids_are_redrawn_and_others_are_kept():
    ids = torch.tensor([[5, 5, 5]])
    window = torch.tensor([[[5, 5, 1], [5, 1, 1], [5, 5, 5]]])
    logits = torch.full((1, 3, 10), -INF)
    logits[..., 8] = 0
    drawn = repetition_aware(ids, logits, window, SamplingOptions(ras_win_max_num_repeat=2), make_noise(1, 3))
    assert drawn.tolist() == [[8, 5, 8]]
    assert ids.tolist() == [[5, 5, 5]]


def test_the_redraw_ignores_temperature_top_k_and_top_p():
    options = SamplingOptions(temperature=0.01, top_k=1, top_p=0.01, ras_win_max_num_repeat=1)
    logits = torch.zeros(400, 1, 10)
    ids, window = torch.zeros(400, 1, dtype=torch.long), torch.zeros(400, 1, 7, dtype=torch.long)
    drawn = repetition_aware(ids, logits, window, options, make_noise(400, 1))
    assert drawn.unique().tolist() == list(range(10))


def test_cells_of_minus_one_do_not_count():
    window = torch.full((1, 1, 7), -1)
    drawn = repetition_aware(torch.tensor([[9]]), torch.zeros(1, 1, 10), window, SamplingOptions(), make_noise(1, 1))
    assert drawn.tolist() == [[9]]


def test_without_a_window_nothing_is_redrawn():
    window = torch.full((1, 1, 7), 9)
    options = SamplingOptions(ras_win_len=None)
    ids = torch.tensor([[9]])
    assert repetition_aware(ids, torch.zeros(1, 1, 10), window, options, make_noise(1, 1)).tolist() == [[9]]


def test_a_row_of_a_batch_redraws_what_it_would_redraw_alone():
    ids, logits = torch.zeros(3, 8, dtype=torch.long), make_logits(3, 8, 50)
    window = torch.zeros(3, 8, 7, dtype=torch.long)
    window[1] = 4  # no id of the middle row is repeated
    options, noise = SamplingOptions(), make_noise(3, 8)
    together = repetition_aware(ids, logits, window, options, noise)
    for row in range(3):
        alone = repetition_aware(ids[[row]], logits[[row]], window[[row]], options, noise[[row]])
        assert torch.equal(together[row], alone[0])
    assert together[1].tolist() == [0] * 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"do_sample": 1},
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": INF},
        {"temperature": float("nan")},
        {"temperature": None},
        {"temperature": -1.0, "do_sample": False},
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_k": True},
        {"top_k": 1027},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"ras_win_len": 0},
        {"ras_win_max_num_repeat": 0},
        {"eos_codebooks": 0},
        {"eos_codebooks": 1.5},
        {"text_guidance_scale": 0.9},
        {"ras_win_max_num_repeat": None},
    ],
)
def test_an_option_outside_its_range_is_rejected_by_name(wrong):
    with pytest.raises(OptionError, match=f"{next(iter(wrong))}=.*allowed"):
        SamplingOptions(**wrong).validate(1026)


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"temperature": 0, "do_sample": False},
        {"temperature": 2},
        {"top_k": None, "top_p": None, "ras_win_len": None},
        {"top_k": 1026, "top_p": 1},
    ],
)
def test_an_option_on_the_edge_of_its_range_is_accepted(right):
    assert SamplingOptions(**right).validate(1026) == SamplingOptions(**right)


def test_a_call_overrides_the_checkpoint_which_overrides_the_defaults():
    checkpoint = SimpleNamespace(temperature=0.5, top_k=10, top_p=None, do_sample=None)
    options = read_sampling({"top_k": None, "seed": 3}, checkpoint, 1026)
    assert options == SamplingOptions(temperature=0.5, top_k=None)


def test_greedy_decoding_disables_repetition_awareness_unless_the_call_sets_it():
    checkpoint = SimpleNamespace(ras_win_len=7)
    assert read_sampling({"do_sample": False}, checkpoint, 1026).ras_win_len is None
    assert read_sampling({"do_sample": False, "ras_win_len": 5}, checkpoint, 1026).ras_win_len == 5


def test_only_a_top_k_of_the_call_can_be_too_large():
    assert read_sampling({}, None, 18).top_k == 50
    with pytest.raises(OptionError, match="from 1 to 18"):
        read_sampling({"top_k": 50}, None, 18)


@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_logits_with_nan_or_infinity_are_a_numerics_error(bad):
    logits = make_logits(8, 20)
    logits[3, 4] = bad
    with pytest.raises(HiggsAudioError, match="row 2: the model returned"):
        check_finite(logits, "row 2")


def test_logits_masked_with_minus_infinity_are_allowed():
    logits = make_logits(8, 20)
    logits[:, 3] = -INF
    assert check_finite(logits, "") is logits


# The samplers of the engine, in torch and in C.

BASE = SamplingOptions(temperature=1.5, top_k=None, top_p=None, ras_win_len=None)
WATCHED = replace(BASE, ras_win_len=7, ras_win_max_num_repeat=2)
# For each option, two settings that differ only in this option.
CONTRASTS = {
    "do_sample": (BASE, replace(BASE, do_sample=False)),
    "temperature": (BASE, replace(BASE, temperature=0.4)),
    "top_k": (BASE, replace(BASE, top_k=2)),
    "top_p": (BASE, replace(BASE, top_p=0.3)),
    "ras_win_len": (replace(WATCHED, ras_win_len=2), replace(WATCHED, ras_win_len=9)),
    "ras_win_max_num_repeat": (WATCHED, replace(WATCHED, ras_win_max_num_repeat=1)),
    "text_guidance_scale": (BASE, replace(BASE, text_guidance_scale=3.0)),
    "eos_codebooks": (BASE, replace(BASE, eos_codebooks=1)),
}
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is here")
SAMPLERS = [pytest.param("0", id="torch"), pytest.param("1", id="C", marks=needs_compiler)]


@pytest.fixture(scope="module")
def model():
    return fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()


def segment_request(options, seed):
    """Returns a request for a segment of up to 30 frames after a prompt; with guidance, the negative prompt has another
    text."""
    hidden = [71] * 12 if options.text_guidance_scale != 1 else None
    return make_request(range(20, 32), hidden=hidden, sampling=options, seed=seed, min_frames=12, max_frames=30)


def test_there_are_two_settings_for_every_option():
    assert set(CONTRASTS) == set(SAMPLING_NAMES)
    for name, (one, other) in CONTRASTS.items():
        assert [n for n in SAMPLING_NAMES if getattr(one, n) != getattr(other, n)] == [name]


@pytest.mark.parametrize("option", CONTRASTS)
def test_every_option_changes_what_is_sampled(model, option):
    one, other = (
        [run_alone(model, segment_request(options, seed))[0] for seed in range(4)] for options in CONTRASTS[option]
    )
    assert one != other


@pytest.mark.parametrize("native", SAMPLERS)
@pytest.mark.parametrize("option", CONTRASTS)
def test_samplers_of_the_engine_follow_every_option_as_the_plain_loop_does(model, monkeypatch, option, native):
    """Both settings run together with all seeds, so that options differ between the sequences of a batch."""
    monkeypatch.setenv("HIGGS_AUDIO_NATIVE", native)
    requests = [segment_request(options, seed) for options in CONTRASTS[option] for seed in range(4)]
    engine = make_engine(model)
    handles = [engine.submit(request) for request in requests]
    assert [(list(handle), handle.finish_reason) for handle in handles] == [run_alone(model, one) for one in requests]


def test_the_c_structure_has_a_field_for_every_option():
    assert set(SAMPLING_NAMES) <= {name for name, *_ in SamplerStruct._fields_}


def test_the_state_of_running_sequences_has_a_field_for_every_option():
    assert set(SAMPLING_NAMES) <= {field.name for field in fields(DecodeState)}


def test_requests_for_speech_accept_every_option_and_have_no_other_defaults(tiny_checkpoint):
    tts = HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu")
    for name in SAMPLING_NAMES:
        with pytest.raises(OptionError, match=f"{name}="):
            tts.generate("Hello.", **{name: "wrong"})
    assert Request(torch.tensor([0]), torch.zeros(0, 8)).sampling == SamplingOptions()
