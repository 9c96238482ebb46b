"""The step in C against the step in torch: equal numbers, equal columns, and what happens where it cannot be."""

import ctypes
import random
import shutil
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import torch
from engines import alone, make_engine, make_request, many_requests
from oracle import AUDIO_OUT, AUDIO_OUT_BOS, BOS, K, fill, make_codes, make_config

from higgs_audio import NANO
from higgs_audio.engine import Request
from higgs_audio.engine import native_layers as trunk
from higgs_audio.engine.cache_views import PrefillChunk
from higgs_audio.engine.decode_state import Lanes, first_lane
from higgs_audio.engine.kv_cache import KVCache, Shared
from higgs_audio.engine.runner import Runner
from higgs_audio.engine.sampler import Choice, NativeChoice, choice_for
from higgs_audio.generation.sampling import SamplingOptions
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.native import library, threads

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is here")


@pytest.fixture
def odd():
    """A model with a head of 8 * 19 outputs, which no panel divides."""
    config = make_config()
    config.audio_codebook_size, config.audio_stream_bos_id, config.audio_stream_eos_id = 17, 17, 18
    return fill(HiggsAudioForConditionalGeneration(config), seed=0).eval()


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_sound_in_prompts_and_a_head_that_panels_do_not_divide(odd, monkeypatch, rows):
    """Text and sound in turns, in pieces that begin and end in either."""
    ours, theirs = runners(odd, monkeypatch)
    generator, ids = torch.Generator().manual_seed(0), torch.tensor([20, 21, AUDIO_OUT, AUDIO_OUT, 22, 23, AUDIO_OUT])
    for row in range(rows):
        columns = torch.randint(17, (3, K), generator=generator)
        for runner in (ours, theirs):
            runner.read([PrefillChunk(row, ids[:3], columns[:1], 0)])
            runner.read([PrefillChunk(row, ids[3:], columns[1:], 3)])
    columns = torch.randint(17, (rows, K), generator=generator)
    made, wanted = (runner.step(columns, [7] * rows) for runner in (ours, theirs))
    assert made.shape == (rows, K, 19)
    assert float((made - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


def runners(model, monkeypatch, max_positions=128):
    """One that steps in C, one that steps in torch."""
    made = []
    for switch in ("1", "0"):
        monkeypatch.setenv("HIGGS_AUDIO_NATIVE", switch)
        cache = KVCache(model.model.text_config, 24, max_positions, torch.float32, model.device)
        made.append(Runner(model, cache))
    assert made[0]._native is not None
    assert made[1]._native is None
    return made


@pytest.fixture(params=["float32", "bfloat16", "grouped heads", "one feed-forward"])
def model(request):
    text = {"num_key_value_heads": 1} if request.param == "grouped heads" else {}
    config = make_config()
    for name, value in text.items():
        setattr(config.text_config, name, value)
    if request.param == "one feed-forward":
        config.audio_dual_ffn_layers = []
    made = fill(HiggsAudioForConditionalGeneration(config), seed=0).eval()
    return made.to(torch.bfloat16).float() if request.param == "bfloat16" else made


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 17])
def test_a_step_in_c_is_the_step_in_torch(model, monkeypatch, rows):
    ours, theirs = runners(model, monkeypatch)
    assert ours._native._is_half == bool((model.audio_lm_head.weight == model.audio_lm_head.weight.bfloat16()).all())
    generator = torch.Generator().manual_seed(rows)
    lengths = [9 + (5 * row) % 7 for row in range(rows)]
    for row, length in enumerate(lengths):
        ids = torch.randint(20, 90, (1, length), generator=generator)
        for runner in (ours, theirs):
            runner.read([PrefillChunk(row, ids[0], torch.zeros(0, K).long(), 0)])
    for step in range(4):
        columns = torch.randint(BOS, (rows, K), generator=generator)
        positions = [length + step for length in lengths]
        made, wanted = (runner.step(columns, positions) for runner in (ours, theirs))
        assert float((made - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@needs_compiler
def test_a_row_has_the_same_numbers_to_the_bit_whoever_is_beside_it(model, monkeypatch):
    ours, _ = runners(model, monkeypatch)
    for row in range(11):
        ours.read([PrefillChunk(row, torch.tensor([30 + row, 40, 50]), torch.zeros(0, K).long(), 0)])
    columns = torch.arange(11)[:, None].expand(-1, K).contiguous()
    together = ours.step(columns, [3] * 11)
    for count in (1, 2, 3, 6, 10):
        assert torch.equal(ours.step(columns[:count], [3] * count), together[:count])


def any_lane(number, config):
    """A lane of some options, in the middle or near one of the ends of its segment."""
    chance, generator = random.Random(number), torch.Generator().manual_seed(number)
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
    unread = ids if options.text_guidance_scale != 1 else None
    least, most = chance.choice([0, 4]), chance.choice([4, 5, 40])
    lane = first_lane(Request(ids, torch.zeros(0, K).long(), options, number, least, most, unread), config, ids.device)
    made, end = torch.tensor([chance.randint(1, K + 5)]), torch.tensor([chance.choice([0, 0, 7])])
    return replace(lane, recent=torch.randint(-1, BOS, lane.recent.shape, generator=generator), made=made, end=end)


@needs_compiler
@pytest.mark.parametrize("seed", range(60))
def test_a_choice_in_c_is_the_choice_in_torch(seed):
    """Of all options side by side, from logits among which many are equal, impossible, or no numbers."""
    config, generator, count = make_config(), torch.Generator().manual_seed(seed), 1 + seed % 7
    first = reduce(Lanes.join, [any_lane(7 * seed + number, config) for number in range(count)])
    rows = [1 + int(scale != 1) for scale in first.scale]
    read = torch.tensor([0, *rows]).cumsum(0)[:-1]
    ours, theirs = (kind(first, read, read + torch.tensor(rows) - 1, config) for kind in (choice_for, Choice))
    assert isinstance(ours, NativeChoice)
    mine = yours = first
    for step in range(6):
        logits = 4 * torch.randn(sum(rows), K, config.codebook_rows, generator=generator)
        logits = logits.round() if step % 2 else logits
        impossible = torch.rand(logits.shape, generator=generator) < 0.2
        impossible[torch.tensor(rows).repeat_interleave(torch.tensor(rows)) == 2] = False  # guided, they are no numbers
        logits[impossible] = float("-inf")
        if step == 5:
            logits[seed % len(logits), 3, 2] = (float("nan"), float("inf"))[seed % 2]
        (mine, made), (yours, wanted) = ours(mine, logits), theirs(yours, logits)
        finite = wanted[:, -1] == 1
        assert (int((~finite).sum()), made[:, -1].tolist()) == (step == 5, wanted[:, -1].tolist())
        assert torch.equal(made[finite], wanted[finite])
        watched = finite & (first.window > 0)
        assert torch.equal(mine.recent[watched], yours.recent[watched])


@needs_compiler
def test_what_rows_share_is_read_where_they_share_it_and_is_the_same_to_the_bit(model, monkeypatch):
    """Two rows share the first five positions, one of them seven, one nothing."""
    ours, _ = runners(model, monkeypatch)
    ids, columns = torch.tensor([30, 31, 32, 33, 34, 35, 36]), torch.arange(4)[:, None].expand(-1, K).contiguous()
    for row in range(4):
        mine = torch.cat([ids, torch.tensor([40 + row])]) if row else torch.arange(50, 58)
        ours.read([PrefillChunk(row, mine, torch.zeros(0, K).long(), 0)])
    wanted = ours.step(columns, [8] * 4)
    saved = ours.cache.save(1, 7)
    shared = Shared([None, (saved, 5), (saved, 5), (saved, 7)])
    for row, count in ((1, 5), (2, 5), (3, 7)):
        ours.cache.wipe(row, count)
    assert torch.equal(ours.step(columns, [8] * 4, shared), wanted)
    assert not torch.equal(ours.step(columns, [8] * 4), wanted)


@needs_compiler
def test_requests_of_one_voice_read_it_in_one_place(model):
    """What was saved of the prefix and of the hidden text, and not their own copies."""
    voice, guided = [make_codes(9, 3)], SamplingOptions(temperature=0.8, text_guidance_scale=2.0)
    requests = [
        make_request(range(71, 80), voice, hidden=[70] * 9, sampling=guided, seed=seed, max_frames=12, prefix=14)
        for seed in (0, 2, 3)  # a draw of 1 lies on an edge, to a millionth
    ]
    engine = make_engine(model)
    list(engine.submit(requests[0]))
    answers = [engine.submit(request) for request in requests]
    while len(engine._rows.speaking) < 3:
        engine.step()
    hidden = requests[0].negative_ids.tolist().index(70) + 9
    for run in engine._rows.speaking:
        assert [count for _, count in run.shared] == [14, hidden]
        for row, count in zip(run.rows, (14, hidden), strict=True):
            engine._cache.wipe(row, count)
    assert [list(answer) for answer in answers] == [alone(model, request)[0] for request in requests]


@needs_compiler
def test_requests_of_both_kinds_of_steps_are_the_plain_loop_s(model, monkeypatch):
    for switch in ("1", "0"):
        monkeypatch.setenv("HIGGS_AUDIO_NATIVE", switch)
        engine = make_engine(model)
        assert (engine._runner._native is not None) == (switch == "1")
        requests = many_requests()
        answers = [engine.submit(request) for request in requests]
        assert [(list(answer), answer.finish_reason) for answer in answers] == [alone(model, one) for one in requests]


@needs_compiler
def test_nano_is_read_as_bfloat16_without_losing_a_bit(monkeypatch):
    nano = HiggsAudioForConditionalGeneration.from_pretrained(NANO, dtype=torch.float32).eval()
    ours, theirs = runners(nano, monkeypatch)
    assert ours._native._is_half
    columns = torch.randint(1024, (2, 8), generator=torch.Generator().manual_seed(0))
    made, wanted = (runner.step(columns, [0, 0]) for runner in (ours, theirs))
    assert float((made - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@needs_compiler
def test_weights_that_are_written_to_are_read_anew(model):
    engine, request = make_engine(model), many_requests()[0]
    before = list(engine.submit(request))
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(-3)
    answer = engine.submit(request)
    assert (list(answer), answer.finish_reason) == alone(model, request)
    assert list(engine.submit(replace(request, seed=1))) != before


@needs_compiler
def test_weights_written_to_behind_torch_s_back_are_read_anew_when_told(model):
    engine, request = make_engine(model), many_requests()[4]
    before = list(engine.submit(request))
    model.model.layers[0].self_attn.v_proj.weight.data.mul_(-3)
    engine.forget()
    answer = engine.submit(request)
    assert (list(answer), answer.finish_reason) == alone(model, request)
    assert alone(model, request)[0] != before


@needs_compiler
def test_a_part_that_is_replaced_or_hooked_is_seen(model):
    request = many_requests()[4]
    before = alone(model, request)
    assert list(make_engine(model).submit(request)) == before[0]
    engine = make_engine(model)
    list(engine.submit(request))
    hook = model.audio_lm_head.register_forward_hook(lambda module, given, made: -made)
    answer = engine.submit(request)
    assert (list(answer), answer.finish_reason) == alone(model, request) != before
    hook.remove()
    for layer in model.model.layers:
        (layer.audio_mlp or layer.mlp).act = torch.nn.GELU()
    answer = engine.submit(request)
    assert (list(answer), answer.finish_reason) == alone(model, request) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.double(),
        lambda model: setattr(model.model.layers[0].self_attn.q_proj, "bias", torch.nn.Parameter(torch.zeros(64))),
        lambda model: model.model.norm.register_forward_hook(lambda module, given, made: made),
        lambda model: setattr(model.model.layers[0].audio_mlp or model.model.layers[0].mlp, "act", torch.nn.GELU()),
    ],
    ids=["float64", "a bias", "a hook", "another activation"],
)
def test_a_model_that_c_does_not_know_is_left_to_torch(change):
    model = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    assert trunk.fits(model)
    change(model)
    assert not trunk.fits(model)


def test_without_a_compiler_or_with_one_that_fails_torch_takes_the_steps(monkeypatch, tmp_path):
    library._loaded.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    model = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    request = many_requests()[0]
    with pytest.warns(UserWarning, match=r"C files cannot be compiled"):
        engine = make_engine(model)
    assert engine._runner._native is None
    answer = engine.submit(request)
    assert (list(answer), answer.finish_reason) == alone(model, request)
    assert not list(tmp_path.rglob("*.so"))
    library._loaded.cache_clear()
    monkeypatch.delenv("CC")
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    assert library.native_library() is None
    library._loaded.cache_clear()


@needs_compiler
def test_without_a_home_folder_torch_takes_the_steps(monkeypatch):
    """As in a container whose user is in no list."""
    library._loaded.cache_clear()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(library.Path, "home", lambda: Path("~nobody-here").expanduser())
    with pytest.warns(UserWarning, match="home directory"):
        assert library.native_library() is None
    library._loaded.cache_clear()


@needs_compiler
def test_it_is_compiled_once(monkeypatch, tmp_path):
    library._loaded.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert isinstance(library.native_library(), ctypes.CDLL)
    (made,) = tmp_path.rglob("*.so")
    when = made.stat().st_mtime_ns
    library._loaded.cache_clear()
    assert library.native_library() is not None
    assert made.stat().st_mtime_ns == when
    library._loaded.cache_clear()


@needs_compiler
def test_a_compiler_without_openmp_makes_a_step_of_one_thread(monkeypatch, tmp_path):
    library._loaded.cache_clear()
    compiler = tmp_path / "compiler"
    real = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(compiler))
    model = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    engine, request = make_engine(model), many_requests()[4]
    assert engine._runner._native is not None
    answer = engine.submit(request)
    assert (list(answer), answer.finish_reason) == alone(model, request)
    library._loaded.cache_clear()


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "6400000 100000\n"}, 6),
        ({"cpu.max": "nonsense\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
    ids=str,
)
def test_no_more_threads_than_a_container_may_use(monkeypatch, tmp_path, files, wanted):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 6)
    threads.cores_allowed.cache_clear()
    assert threads.num_threads() == wanted
    threads.cores_allowed.cache_clear()
