"""The engine: whoever joins, leaves or is set aside beside a request, it gets what the plain loop gives it alone."""

import math
import random
import threading
from collections import deque
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from engines import CONTEXT, GREEDY, alone, make_engine, make_request, many_requests
from oracle import BOS, K, fill, make_codes, make_config, make_prompt

from higgs_audio.engine import Engine, Request, RequestHandle
from higgs_audio.engine.decode_state import choose, first_lane
from higgs_audio.engine.guard import FRAMES, Guard
from higgs_audio.engine.kv_cache import KVCache, row_bytes
from higgs_audio.engine.prefix import PrefixCache, prefix_key
from higgs_audio.engine.runner import Runner
from higgs_audio.engine.sampler import Choice
from higgs_audio.engine.scheduler import Scheduler
from higgs_audio.errors import EngineError, HiggsAudioError, NumericsError, OptionError, PromptError, QueueFullError
from higgs_audio.generation.sampling import MOST, SamplingOptions, filter_logits, sample
from higgs_audio.model.model import HiggsAudioForConditionalGeneration


@pytest.fixture(autouse=True)
def growing(monkeypatch):
    """The cache begins small, so that it grows in the middle of steps too."""
    monkeypatch.setattr("higgs_audio.engine.kv_cache.FIRST_POSITIONS", 8)


@pytest.fixture(scope="module")
def model():
    return fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()


@pytest.fixture(scope="module")
def requests():
    return many_requests()


@pytest.fixture(scope="module")
def wanted(model, requests):
    return [alone(model, request) for request in requests]


@pytest.fixture
def without_native(monkeypatch):
    monkeypatch.setenv("HIGGS_AUDIO_NATIVE", "0")


# One request, and many.


@pytest.mark.parametrize("number", range(8))
def test_a_request_alone_is_what_the_plain_loop_gives(model, requests, wanted, number):
    answer = make_engine(model).submit(requests[number])
    assert (list(answer), answer.finish_reason) == wanted[number]


def test_requests_together_are_what_they_are_alone(model, requests, wanted):
    engine = make_engine(model, max_rows=16)
    answers = [engine.submit(request) for request in requests]
    assert [(list(answer), answer.finish_reason) for answer in answers] == wanted
    assert (engine.num_running, engine.num_waiting) == (0, 0)


def test_layers_as_they_are_and_fused_ones_agree(model, requests, wanted, without_native):
    engine = make_engine(model, fused=False)
    assert not engine._runner.fused
    assert make_engine(model)._runner.fused
    answers = [engine.submit(request) for request in requests]
    assert [(list(answer), answer.finish_reason) for answer in answers] == wanted


@pytest.mark.parametrize("num_steps", [2, 3, 32])
def test_columns_made_before_the_host_looks_are_the_same(model, requests, wanted, num_steps):
    """Some end in the middle of them, one at the end of its row of the cache."""
    context = max(request.num_positions(K) for request in requests)
    engine = make_engine(model, context=context, max_rows=16, num_steps=num_steps)
    answers = [engine.submit(request) for request in requests]
    assert [(list(answer), answer.finish_reason) for answer in answers] == wanted


def away(one):
    """Its tensors on the meta device."""
    tensors = {f.name: v for f in fields(one) if isinstance(v := getattr(one, f.name), torch.Tensor)}
    return replace(one, **{name: tensor.to("meta") for name, tensor in tensors.items()})


def test_a_step_never_waits_for_a_device(requests):
    """The meta device has shapes and no numbers: whoever asks it for one fails."""
    model = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    lanes = first_lane(requests[5], model.config, torch.device("cpu")).join(
        first_lane(requests[4], model.config, torch.device("cpu"))
    )
    choice = Choice(lanes, torch.tensor([0, 2]), torch.tensor([1, 2]), model.config)
    choice._read, choice._unread = choice._read.to("meta"), choice._unread.to("meta")
    lanes, choice._habits, model = away(lanes), away(choice._habits), model.to("meta")
    cache = KVCache(model.model.text_config, 3, CONTEXT, torch.float32, model.device)
    runner = Runner(model, cache)
    for number in range(3):
        logits = runner.step(lanes.column[[0, 0, 1]], [9 + number, 9 + number, 4 + number])
        lanes, _ = choice(lanes, logits)
    assert lanes.column.shape == (2, K)
    with pytest.raises(RuntimeError):
        lanes.column.tolist()


@pytest.mark.parametrize("schedule", range(200))
def test_random_schedules_change_nothing(model, requests, wanted, schedule):
    """Joins at any step, cancellations, priorities that set others aside, prompts read in small pieces."""
    chance = random.Random(schedule)
    rows = chance.choice([2, 3, 5])
    engine = make_engine(
        model, max_rows=rows, piece=chance.choice([1, 3, 10, 64]), num_steps=chance.choice([1, 1, 2, 5])
    )
    running, cancelled, patience = [], set(), chance.choice([0, 0.5, 1])
    for _ in range(chance.randint(4, 9)):
        number = chance.randrange(len(requests))
        prefix = chance.choice([0, 1, len(requests[number].input_ids) - 1])
        request = replace(
            requests[number],
            priority=chance.choice([0, 0, 1]),
            prefix=prefix,
            is_offline=chance.random() < patience,
        )
        running.append((number, engine.submit(request)))
        for _ in range(chance.choice([0, 1, 2, 7])):
            engine.step()
        if chance.random() < 0.2:
            victim = chance.randrange(len(running))
            running[victim][1].cancel()
            cancelled.add(victim)
    for place, (number, answer) in enumerate(running):
        columns, reason = list(answer), answer.finish_reason
        if place in cancelled and reason == "cancelled":
            assert columns == wanted[number][0][: len(columns)]
        else:
            assert (columns, reason) == wanted[number]
    assert (engine.num_running, engine.num_waiting, engine._runs) == (0, 0, {})


def test_threads_that_wait_for_their_own_answers_get_them(model, requests, wanted):
    engine = make_engine(model, max_rows=4)
    found = {}

    def speak(number):
        answer = engine.submit(requests[number])
        found[number] = (list(answer), answer.finish_reason)

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[number] for number in range(len(requests))] == wanted


def test_who_stops_reading_does_not_hold_the_others_up(model, requests, wanted):
    engine = make_engine(model)
    left = engine.submit(requests[2])
    next(left)
    other = engine.submit(requests[4])
    assert (list(other), other.finish_reason) == wanted[4]
    assert (list(left), left.finish_reason) == (wanted[2][0][1:], wanted[2][1])


def test_memory_is_what_it_was_after_a_thousand_requests(model):
    engine = make_engine(model, max_rows=4, memory=4 * 10**6)
    sizes = []
    for number in range(1000):
        request = make_request([20 + number % 50], [make_codes(2, number % 40)], seed=number, max_frames=2, prefix=9)
        assert list(engine.submit(request))
        sizes.append(engine.num_bytes)
    assert max(sizes[100:]) == max(sizes[900:])
    assert (engine.num_running, engine.num_waiting, engine._runs, engine._reading, engine._rows.speaking) == (
        0,
        0,
        {},
        [],
        [],
    )


def test_two_voices_of_one_length_never_mix(model):
    """The prefixes have the same token ids; only the codes of the reference differ."""
    voices = [make_request(range(40, 49), [make_codes(5, voice)], seed=7) for voice in (1, 2)]
    wanted = [alone(model, request) for request in voices]
    assert wanted[0] != wanted[1]
    engine = make_engine(model)
    for _ in range(20):
        answers = [engine.submit(replace(request, prefix=18)) for request in voices]
        assert [(list(answer), answer.finish_reason) for answer in answers] == wanted
    assert len(engine._prefixes._saved) == 2


def test_a_prefix_is_read_once(model, monkeypatch):
    request = replace(make_request(range(40, 49), [make_codes(5, 1)], seed=7), prefix=18)
    engine, read = make_engine(model), []
    real = Runner.read
    monkeypatch.setattr(Runner, "read", lambda runner, pieces: spy(partial(real, runner), read)(pieces))
    first, again = list(engine.submit(request)), list(engine.submit(request))
    assert first == again
    length = len(request.input_ids)
    assert read == [(0, 18), (18, length), (18, length)]
    engine.forget()
    assert list(engine.submit(request)) == first
    assert read[3:] == [(0, 18), (18, length)]


@pytest.mark.parametrize("piece", [4, 64])
def test_a_prefix_that_several_have_is_read_by_one_of_them(model, requests, piece):
    """Both rows of one that is guided have it too."""
    guided, hidden = requests[6], requests[6].negative_ids.tolist()
    prefix = hidden.index(71)
    same = [replace(guided, seed=seed, prefix=prefix) for seed in range(3)]
    other = make_request(range(70, 75), [make_codes(4, 5)], [71] * 5, sampling=guided.sampling, prefix=prefix)
    for is_offline in (False, True):
        engine, read = make_engine(model, piece=piece), []
        engine._runner.read = spy(engine._runner.read, read)
        answers = [engine.submit(replace(request, is_offline=is_offline)) for request in (*same, other)]
        assert [(list(one), one.finish_reason) for one in answers] == [alone(model, one) for one in (*same, other)]
        num_read = sum(stop - start for start, stop in read if stop <= prefix)
        # Who waits for its columns begins with what is left of a piece: then a part is read twice.
        assert num_read == 2 * prefix or (not is_offline and num_read < 4 * prefix)


def spy(read, calls):
    def spied(pieces):
        calls.extend((piece.start, piece.stop) for piece in pieces)
        return read(pieces)

    return spied


def test_what_is_known_of_a_hidden_text_is_not_read_again(model, requests):
    """Padding of any length is the beginning of a longer one; behind another prompt it is something else."""
    engine, read = make_engine(model), []
    engine._runner.read = spy(engine._runner.read, read)
    long = make_request(range(71, 91), hidden=[70] * 20, sampling=requests[5].sampling)
    short = make_request(range(30, 37), hidden=[70] * 7, sampling=long.sampling)
    first, other = long.negative_ids.tolist().index(70), requests[6]
    for request, found in ((long, 0), (short, first + 7), (long, first + 20), (other, 0), (short, first + 7)):
        read.clear()
        assert list(engine.submit(request)) == alone(model, request)[0]
        assert [start for start, _ in read] == [0, found]


def test_a_hidden_text_too_long_to_be_kept_is_not_shared(model):
    """A shorter one is known, and C must not read on behind it."""
    sampling = SamplingOptions(temperature=0.8, text_guidance_scale=2.0)
    row = row_bytes(model.model.text_config, CONTEXT, torch.float32)
    engine = make_engine(model, memory=4 * row, max_rows=2)
    engine._prefixes.max_bytes = row_bytes(model.model.text_config, 40, torch.float32)
    for count in (12, 90, 12, 90):
        request = make_request([71] * count, hidden=[70] * count, sampling=sampling, seed=count)
        assert list(engine.submit(request)) == alone(model, request)[0]
    assert 0 < engine._prefixes.num_bytes <= engine._prefixes.max_bytes


def test_what_is_shared_is_held_as_long_as_it_is_kept(model):
    """Rows have their own copies: what the cache of prefixes throws away is not kept by them."""
    engine = make_engine(model)
    engine._prefixes.max_bytes = row_bytes(model.model.text_config, 12, torch.float32)
    requests = [make_request([71 + number] * 12, prefix=10, seed=number, min_frames=11) for number in range(4)]
    list(engine.submit(requests[0]))  # known to the next, until the others' are kept
    answers = [engine.submit(request) for request in requests]
    while len(engine._rows.speaking) < 4:
        engine.step()
    engine.step()
    held = [part is not None and part[0]() is not None for run in engine._rows.speaking for part in run.shared]
    assert sum(held) <= 1
    assert [list(answer) for answer in answers] == [alone(model, request)[0] for request in requests]


def test_a_stream_that_the_collector_finds_while_others_leave_ends_alone(model, requests, wanted, monkeypatch):
    engine = make_engine(model)
    staying, leaving, left = (engine.submit(requests[number]) for number in (2, 3, 4))
    engine.step()
    engine.step()
    leave, calls = engine._rows.leave, []

    def collecting(run):
        if not calls:
            calls.append(left.cancel())  # as the collector may, in this thread
        return leave(run)

    monkeypatch.setattr(engine._rows, "leave", collecting)
    leaving.cancel()
    assert (leaving.finish_reason, left.finish_reason) == ("cancelled", "cancelled")
    assert (list(staying), engine.num_running) == (wanted[2][0], 0)


def test_a_shorter_hidden_text_does_not_replace_a_longer_one(model, requests):
    engine, sampling = make_engine(model), requests[5].sampling
    long, short = (
        make_request(range(71, 71 + count), hidden=[70] * count, sampling=sampling, is_offline=True)
        for count in (20, 7)
    )
    for answer in [engine.submit(long), engine.submit(short)]:  # read at once: neither is known
        list(answer)
    read = []
    engine._runner.read = spy(engine._runner.read, read)
    assert list(engine.submit(long)) == alone(model, long)[0]
    assert sorted(start for start, _ in read) == [0, long.negative_ids.tolist().index(70) + 20]


@pytest.mark.usefixtures("without_native")
def test_a_hidden_text_is_read_whole_where_numbers_depend_on_pieces(model, requests):
    engine, read = make_engine(model), []
    engine._runner.read = spy(engine._runner.read, read)
    for _ in range(2):
        list(engine.submit(requests[5]))
    assert [start for start, _ in read] == [0, 0] * 2


def test_prompts_are_read_together(model, requests, wanted, monkeypatch):
    engine, sizes = make_engine(model, piece=100), []
    speaking, read = engine.submit(requests[2]), engine._runner.read
    next(speaking)
    monkeypatch.setattr(engine._runner, "read", lambda pieces: sizes.append(len(pieces)) or read(pieces))
    answers = [engine.submit(requests[number]) for number in (0, 1, 6)]
    assert [list(answer) for answer in answers] == [wanted[number][0] for number in (0, 1, 6)]
    assert sizes == [4]  # the last is guided
    assert list(speaking) == wanted[2][0][1:]


def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_who_speaks(model, requests):
    engine, read = make_engine(model, piece=4), []
    engine._runner.read = spy(engine._runner.read, read)
    speaking = engine.submit(replace(requests[2], min_frames=20))
    next(speaking)
    reading = engine.submit(requests[0])
    read.clear()
    made = len(speaking._columns)
    while not reading._columns:
        engine.step()
    assert read == [(0, 4), (4, 8), (8, 12), (12, 14)]
    assert len(speaking._columns) == made + 4


@pytest.mark.parametrize("who", ["nobody", "speaking", "reading", "behind"])
def test_prompts_are_read_at_once_where_nobody_waits_for_a_column(model, requests, who):
    engine, read = make_engine(model, piece=4), []
    engine._runner.read = spy(engine._runner.read, read)
    names = ["speaking", "reading", "behind"]
    for name, request in zip(names, (requests[2], requests[0], requests[3]), strict=True):
        answer = engine.submit(replace(request, is_offline=name != who))
        if name == "speaking":
            next(answer)
    read.clear()
    engine.step()
    whole = [(0, len(requests[0].input_ids)), (0, len(requests[3].input_ids))]
    assert read == (whole if who == "nobody" else [(0, 4)])


# What cannot be done.


def test_a_request_that_the_cache_cannot_hold_is_refused(model):
    engine = make_engine(model, context=30)
    with pytest.raises(OptionError, match="a prompt of 14 positions and 12 frames need 35; this engine has 30"):
        engine.submit(make_request(range(20, 32)))
    with pytest.raises(OptionError, match="guidance needs 2 rows"):
        make_engine(model, max_rows=1).submit(many_requests()[5])


def test_an_engine_without_memory_for_a_row_says_how_much_it_needs(model):
    least = row_bytes(model.model.text_config, CONTEXT, torch.float32)
    with pytest.raises(OptionError, match=rf"needs {math.ceil(least / 0.75)}"):
        Engine(model, memory=least, context=CONTEXT)
    assert Engine(model, memory=3 * math.ceil(least / 0.75), context=CONTEXT).max_rows == 3


def test_where_nobody_says_how_much_memory_there_is_one_request_has_room(model, requests, wanted, monkeypatch):
    """It is taken as it is needed, and most need little; a GPU that is nearly full spoke before there was an engine."""
    monkeypatch.setattr("higgs_audio.engine.engine.free_memory", lambda device: 10)
    engine = Engine(model)
    assert engine.max_rows == 2
    answer = engine.submit(requests[5])
    assert (list(answer), answer.finish_reason) == wanted[5]


def test_prompts_that_do_not_fit_are_refused(model):
    engine, good = make_engine(model), make_request(range(20, 32), [make_codes(5, 1)])
    with pytest.raises(PromptError, match="must end in"):
        engine.submit(replace(good, input_ids=good.input_ids[:-1]))
    with pytest.raises(PromptError, match=r"14 placeholders and columns \(13, 8\)"):
        engine.submit(replace(good, columns=good.columns[1:]))
    with pytest.raises(OptionError, match="guidance needs both"):
        replace(good, sampling=replace(GREEDY, text_guidance_scale=2.0))
    assert engine.num_waiting == 0


def test_a_full_queue_refuses_and_forgets_nothing(model, requests, wanted):
    engine = make_engine(model, max_rows=1, max_waiting=2)
    answers = [engine.submit(requests[0]), engine.submit(requests[1])]
    with pytest.raises(QueueFullError, match="2 requests wait"):
        engine.submit(requests[2])
    assert [(list(answer), answer.finish_reason) for answer in answers] == wanted[:2]
    assert list(engine.submit(requests[2])) == wanted[2][0]


def test_logits_that_are_no_numbers_end_their_request_alone(model, requests, wanted):
    engine = make_engine(model)
    step, broken = engine._runner.step, engine.submit(requests[2])
    healthy = engine.submit(requests[4])

    def spoiled(*args):
        logits = step(*args).clone()
        lane = next((n for n, run in enumerate(engine._rows.speaking) if run.answer is broken), None)
        if lane is not None and len(engine._rows.speaking) == 2:
            logits[engine._rows.speaking[lane].rows[0], 3, 5] = float("nan")
        return logits

    engine._runner.step = spoiled
    assert (list(healthy), healthy.finish_reason) == wanted[4]
    with pytest.raises(NumericsError, match="NaN or infinity"):
        list(broken)


@pytest.mark.parametrize("place", ["_rows.leave", "_rows.join", "_settle", "_hand_out"])
def test_an_error_in_the_books_leaves_an_engine_that_works(model, requests, wanted, monkeypatch, place):
    """Half a change of the books is no state to go on from; the error behind it was told by another one."""
    engine = make_engine(model, max_rows=3)
    answers = [engine.submit(request) for request in requests[:6]]
    owner, place = (engine._rows, place[6:]) if place.startswith("_rows") else (engine, place)
    whole, calls = getattr(owner, place), []

    def broken(*args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("half way")
        return whole(*args)

    monkeypatch.setattr(owner, place, broken)
    told = 0
    for number, answer in enumerate(answers):
        try:
            columns = list(answer)
        except EngineError as error:
            told += "half way" in str(error)
        else:
            assert (columns, answer.finish_reason) == wanted[number]
    assert told >= 1
    again = [engine.submit(request) for request in requests]
    assert [(list(answer), answer.finish_reason) for answer in again] == wanted


def test_a_step_that_fails_is_told_to_everybody_and_the_engine_goes_on(model, requests, wanted):
    engine = make_engine(model)
    step, answers = engine._runner.step, [engine.submit(request) for request in requests[:3]]

    def failing(*_):
        raise RuntimeError("out of memory")

    engine._runner.step = failing
    for answer in answers:
        with pytest.raises(EngineError, match="out of memory"):
            list(answer)
    engine._runner.step = step
    assert list(engine.submit(requests[1])) == wanted[1][0]


# The guard.


def test_a_model_that_repeats_itself_is_stopped_within_a_second(model):
    stuck = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    with torch.no_grad():
        stuck.audio_lm_head.weight.zero_()  # every code as likely as any other: greedy, always the first
    request = make_request(range(20, 32), sampling=GREEDY, max_frames=150, guarded=True)
    answer = make_engine(stuck).submit(request)
    columns = list(answer)
    assert answer.finish_reason == "repetition"
    assert len(columns) <= 25 + K
    silent = make_engine(stuck, silent={0}).submit(request)
    list(silent)
    assert silent.finish_reason == "silence"
    free = make_engine(stuck).submit(replace(request, guarded=False))
    list(free)
    assert free.finish_reason == "length"


@pytest.mark.parametrize("period", [1, 2, 3, 4, 6, 8])
def test_loops_are_told_and_speech_is_not(period):
    chance = random.Random(period)
    loop = [[chance.randrange(1024) for _ in range(K)] for _ in range(period)]
    guard, lively = Guard((), 1024), Guard((), 1024)
    reasons = [guard.push(loop[made % period]) for made in range(FRAMES + 1)]
    assert reasons == [None] * FRAMES + ["repetition"]
    assert all(lively.push([chance.randrange(1024) for _ in range(K)]) is None for _ in range(500))


def test_a_pause_is_not_silence_without_end():
    guard = Guard({3}, BOS + 10**6)
    for frame in range(300):
        quiet = frame % FRAMES < FRAMES - 2
        assert guard.push([3 if quiet else 5, frame, *[0] * (K - 2)]) is None


# Parts.


def test_lanes_with_different_options_are_chosen_as_each_alone():
    config = make_config(audio_codebook_size=1024)
    options = [
        SamplingOptions(temperature=0.3, top_k=30, top_p=0.95),
        SamplingOptions(temperature=1.7, top_k=None, top_p=None),
        SamplingOptions(top_k=None, top_p=0.5),
        SamplingOptions(top_k=5, top_p=None),
        SamplingOptions(do_sample=False),
    ]
    requests = [make_request([20], sampling=option, seed=seed) for seed, option in enumerate(options)]
    lanes = first_lane(requests[0], config, torch.device("cpu"))
    for request in requests[1:]:
        lanes = lanes.join(first_lane(request, config, torch.device("cpu")))
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = 3 * torch.randn(len(options), K, 1026, generator=generator)
        noise = torch.rand(len(options), K, generator=generator, dtype=torch.float64)
        ids = choose(logits, lanes, noise, 1026)
        for lane, option in enumerate(options):
            assert torch.equal(ids[lane], sample(logits[lane], option, noise[lane]))
    kept = filter_logits(logits[0], options[0]).isfinite().sum(-1)
    assert int(kept.max()) <= 30


def test_the_scheduler_admits_in_order_and_nobody_overtakes():
    scheduler = Scheduler(num_rows=3, max_waiting=9)
    first, wide, small = scheduler.add(2, 0), scheduler.add(2, 0), scheduler.add(1, 0)
    assert scheduler.plan().admitted == (first,)
    assert scheduler.plan().admitted == ()  # the small one would fit, and the wide one would wait for ever
    scheduler.remove(first)
    assert scheduler.plan().admitted == (wide, small)


def test_the_scheduler_sets_aside_the_last_come_of_a_lower_priority_and_takes_them_back_first():
    scheduler = Scheduler(num_rows=3, max_waiting=9)
    old, late, later = (scheduler.add(1, 1) for _ in range(3))
    scheduler.plan()
    waiting, urgent = scheduler.add(1, 1), scheduler.add(2, 0)
    plan = scheduler.plan()
    assert (plan.set_aside, plan.admitted) == ((later, late), (urgent,))
    assert scheduler.running == [old, urgent]
    scheduler.remove(urgent)
    assert scheduler.plan().admitted == (late, later)
    assert scheduler.waiting == [waiting]
    assert scheduler.plan().set_aside == ()  # equals do not set one another aside


def test_the_cache_grows_and_keeps_what_it_has():
    config = make_config().text_config
    cache = KVCache(config, 4, 600, torch.float32, torch.device("cpu"))
    cache.reserve(1, 10)
    keys = torch.randn(2, 10, 16)
    cache.write_span(1, 0, 0, keys, keys + 1)
    cache.reserve(3, 600)
    assert torch.equal(cache.layers(1, 10)[1][0, 0], keys)
    saved = cache.save(0, 10)
    cache.load(2, saved)
    assert torch.equal(cache.layers(3, 10)[1][1, 2], keys + 1)
    assert cache.num_bytes == 4 * row_bytes(config, 600, torch.float32)
    cache.release()
    assert cache.num_bytes == 0


def test_prefixes_go_the_least_recently_used_first():
    config = make_config().text_config
    cache = KVCache(config, 1, 64, torch.float32, torch.device("cpu"))
    cache.reserve(1, 64)
    saved = cache.save(0, 10)
    prefixes = PrefixCache(2 * saved.num_bytes)
    keys = [prefix_key(torch.tensor([number]), torch.zeros(0, K)) for number in range(3)]
    prefixes.put(keys[0], saved)
    prefixes.put(keys[1], saved)
    prefixes.get(keys[0])
    prefixes.put(keys[2], saved)
    assert [prefixes.get(key) is not None for key in keys] == [True, False, True]
    prefixes.put(keys[1], cache.save(0, 64))  # larger than everything together may be
    assert prefixes.get(keys[1]) is None


@pytest.mark.usefixtures("without_native")
def test_the_model_can_still_be_saved_and_trained_after_an_engine_has_joined_its_matrices(model, requests, tmp_path):
    own = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    engine = make_engine(own)
    first = list(engine.submit(requests[1]))
    own.save_pretrained(tmp_path)
    again = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
    with torch.no_grad():
        for weight in own.parameters():
            weight.mul_(1.5)
    assert list(engine.submit(requests[1])) == alone(own, requests[1])[0] != first
    own.load_state_dict(before)
    assert list(engine.submit(requests[1])) == first
    own.double()
    assert list(engine.submit(requests[3])) == alone(own, requests[3])[0]
    assert engine._runner.fused


# What one request does to others.


def test_a_last_column_that_comes_between_two_looks_is_not_lost():
    """The reader had seen no column, then saw that the answer was done, and left."""
    answer = RequestHandle(lambda: None, lambda: None)

    class Late(deque):
        looks = 0

        def __len__(self):
            self.looks += 1
            if self.looks == 1:
                answer.push((1,), "stop")
                return 0
            return super().__len__()

    answer._columns = Late()
    assert list(answer) == [(1,)]


def test_ids_of_any_whole_numbers_are_read(model, requests, wanted):
    small = replace(requests[6], input_ids=requests[6].input_ids.int(), negative_ids=requests[6].negative_ids.short())
    assert list(make_engine(model).submit(small)) == wanted[6][0]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"input_ids": torch.tensor([999, 302])}, "token ids from 302 to 999"),
        ({"input_ids": torch.tensor([[20, 302]])}, r"input_ids is \(1, 2\)"),
        ({"input_ids": torch.tensor([20.0, 302.0])}, "must hold integers"),
        ({"negative_ids": torch.tensor([20])}, r"negative_ids is \(1,\)"),
        ({"negative_ids": torch.tensor([999, 302])}, "token ids from 302 to 999"),
        ({"negative_ids": torch.tensor([301, 302])}, "negative_ids must have its placeholders of sound where"),
        ({"input_ids": torch.tensor([301, 302]), "columns": torch.full((1, K), 99)}, "allowed are 0 to 17"),
        ({"input_ids": torch.tensor([301, 302]), "columns": torch.zeros(1, K)}, "expected integers"),
        ({"prefix": 2}, "prefix=2"),
        ({"prefix": -1}, "prefix=-1"),
    ],
    ids=str,
)
def test_a_bad_request_is_refused_before_it_meets_the_others(model, requests, wanted, change, error):
    """An id that no table has made the step of everybody fail."""
    engine = make_engine(model)
    good = engine.submit(requests[2])
    guided = {"sampling": replace(GREEDY, text_guidance_scale=2.0)} if "negative_ids" in change else {}
    fields = {"input_ids": torch.tensor([20, 302]), "columns": torch.zeros(0, K).long(), **guided, **change}
    with pytest.raises(HiggsAudioError, match=error):
        engine.submit(Request(**{"sampling": GREEDY, "max_frames": 3, **fields}))
    assert (list(good), good.finish_reason) == wanted[2]


@pytest.mark.parametrize("piece", [4, 64])
def test_a_prompt_that_cannot_be_read_ends_its_request_alone(model, requests, wanted, monkeypatch, piece):
    """In pieces of its own, and in one batch with the prompt of another."""
    engine = make_engine(model, piece=piece)
    speaking, read = engine.submit(requests[2]), engine._runner.read
    next(speaking)
    broken, waiting = engine.submit(requests[0]), engine.submit(requests[4])

    def failing(pieces):
        if any(31 in piece.ids for piece in pieces):
            raise RuntimeError("out of memory")
        return read(pieces)

    monkeypatch.setattr(engine._runner, "read", failing)
    with pytest.raises(EngineError, match="out of memory"):
        list(broken)
    assert isinstance(broken.error.__cause__, RuntimeError)
    assert list(speaking) == wanted[2][0][1:]
    assert list(waiting) == wanted[4][0]


def test_a_step_that_fails_leaves_those_who_wait_or_are_set_aside(model, requests, wanted, monkeypatch):
    engine = make_engine(model, max_rows=1)
    aside = engine.submit(replace(requests[2], priority=1))
    for _ in range(6):
        engine.step()
    urgent, waiting = engine.submit(requests[0]), engine.submit(replace(requests[4], priority=2))
    step, calls = engine._runner.step, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return step(*args)

    monkeypatch.setattr(engine._runner, "step", failing)
    with pytest.raises(EngineError, match="out of memory"):
        list(urgent)
    assert list(aside) == wanted[2][0]
    assert list(waiting) == wanted[4][0]


def test_who_is_cancelled_in_the_last_step_of_another_is_gone_after_it(model, requests):
    """The other had nothing more to wait for, so nobody came to see to it."""
    engine = make_engine(model)
    left, short = engine.submit(requests[2]), engine.submit(requests[7])
    hand_out = engine._hand_out

    def cancelling(run, made, position):
        hand_out(run, made, position)
        *_, is_last, _ = made
        if run.answer is short and is_last:
            left.cancel()

    engine._hand_out = cancelling
    list(short)
    assert (engine.num_running, left.finish_reason) == (0, "cancelled")


@pytest.mark.usefixtures("without_native")
def test_numbers_that_are_none_do_not_stay_in_rows_that_others_get(requests, wanted):
    """What is masked is multiplied by 0, and 0 times NaN is NaN."""
    spoiled = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    with torch.no_grad():
        spoiled.model.embed_tokens.weight[50] = float("nan")
    engine = make_engine(spoiled)
    for request in (make_request([50] * 30, sampling=GREEDY), replace(make_request([50] * 30), prefix=0)):
        with pytest.raises(NumericsError, match="NaN or infinity"):
            list(engine.submit(request))
    leaving = engine.submit(make_request([50] * 30, sampling=GREEDY))
    engine.step()
    leaving.cancel()
    long = replace(requests[0], input_ids=torch.tensor(make_prompt(range(20, 46))[0]), max_frames=30, min_frames=29)
    short = replace(long, input_ids=torch.tensor(make_prompt(range(20, 23))[0]))
    for answer in [engine.submit(short), engine.submit(long)]:
        assert list(answer)


@pytest.mark.usefixtures("without_native")
def test_numbers_that_are_none_do_not_stay_where_rows_were_moved_from(requests):
    """Two leave in one step: the second is moved into the hole that the first has left."""
    spoiled = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    with torch.no_grad():
        spoiled.model.embed_tokens.weight[50] = float("nan")
    engine = make_engine(spoiled)
    answers = [engine.submit(make_request([50] * 30, sampling=GREEDY, is_offline=True)) for _ in range(3)]
    for answer in answers:
        with pytest.raises(NumericsError, match="NaN or infinity"):
            list(answer)
    assert bool(engine._cache.state.isfinite().all())


def test_an_unread_prompt_without_numbers_is_told(model, requests):
    engine = make_engine(model)
    answer, step = engine.submit(requests[5]), engine._runner.step

    def spoiled(*args):
        logits = step(*args).clone()
        logits[1, 0, 0] = float("nan")
        return logits

    engine._runner.step = spoiled
    with pytest.raises(NumericsError, match="NaN or infinity"):
        list(answer)


@pytest.mark.parametrize(
    "changes",
    [{"ras_win_len": MOST}, {"ras_win_len": 3, "ras_win_max_num_repeat": MOST}, {"eos_codebooks": MOST}],
    ids=str,
)
def test_options_beyond_all_measure_are_what_they_mean_and_disturb_nobody(model, requests, wanted, changes):
    engine = make_engine(model)
    speaking = engine.submit(requests[2])
    next(speaking)
    request = replace(requests[4], sampling=replace(requests[4].sampling, **changes))
    answer = engine.submit(request)
    columns = list(answer)
    assert (columns, answer.finish_reason) == alone(model, request)
    assert (list(speaking), speaking.finish_reason) == (wanted[2][0][1:], wanted[2][1])


@pytest.mark.parametrize("priority", ["high", [1], 1.5, True, 2**80], ids=str)
def test_a_priority_is_a_number(requests, priority):
    with pytest.raises(OptionError, match="priority="):
        replace(requests[0], priority=priority)


def test_equally_likely_ids_fall_as_they_fall_alone(model):
    """In bfloat16 every tenth row has some at the edge of its top k."""
    cold = SamplingOptions(do_sample=False, top_k=None)
    few = SamplingOptions(temperature=1.0, top_k=5, top_p=None)
    nucleus = SamplingOptions(temperature=1.0, top_k=5, top_p=0.8)
    whole = SamplingOptions(temperature=1.0, top_k=None, top_p=None)
    options, config, generator = (cold, few, nucleus, whole), model.config, torch.Generator().manual_seed(0)
    for _ in range(200):
        logits = (2 * torch.randn(4, K, BOS + 2, generator=generator)).round() / 2
        noise = torch.rand(4, K, generator=generator, dtype=torch.float64)
        lanes = [first_lane(make_request([20], sampling=one), config, torch.device("cpu")) for one in options]
        together = choose(logits, lanes[0].join(lanes[1]).join(lanes[2]).join(lanes[3]), noise, BOS + 2)
        for row, one in enumerate(options):
            most = BOS + 2 if one.top_k is None else one.top_k
            if one.do_sample:
                own = choose(logits[row : row + 1], lanes[row], noise[row : row + 1], most)[0]
                assert torch.equal(own, together[row])
            assert torch.equal(sample(logits[row], one, noise[row]), together[row])


def test_whoever_ends_gives_back_memory_and_who_is_set_aside_is_counted(model, requests, monkeypatch):
    engine = make_engine(model, max_rows=1)
    saved, save = [], engine._cache.save
    monkeypatch.setattr(engine._cache, "save", lambda *args: saved.append(1) or save(*args))
    list(engine.submit(requests[0]))
    assert not saved
    engine.submit(replace(requests[2], priority=1))
    engine.step()
    engine.step()
    before = engine.num_bytes
    urgent = engine.submit(requests[0])
    engine.step()
    assert len(saved) == 1
    assert engine.num_bytes > before
    list(urgent)


def test_an_interrupt_reaches_whom_it_interrupts_and_the_others_go_on(model, requests, wanted):
    """The one who waited had nobody to wake it."""
    engine = make_engine(model)
    step, first, second = engine._runner.step, engine.submit(requests[2]), engine.submit(requests[4])
    entered, found = threading.Event(), {}

    def slow(*args):
        entered.set()
        threading.Event().wait(0.2)
        raise KeyboardInterrupt

    def drive():
        try:
            list(first)
        except KeyboardInterrupt:
            found["driver"] = "interrupted"

    def wait():
        try:
            list(second)
        except EngineError as error:
            found["waiter"] = error

    engine._runner.step = slow
    threads = [threading.Thread(target=drive), threading.Thread(target=wait)]
    threads[0].start()
    entered.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert (found["driver"], "KeyboardInterrupt" in str(found["waiter"])) == ("interrupted", True)
    engine._runner.step = step
    assert list(engine.submit(requests[4])) == wanted[4][0]


def test_an_interrupt_before_anybody_is_read_costs_nobody_anything(model, requests, wanted, monkeypatch):
    engine = make_engine(model)
    answer, settle = engine.submit(requests[2]), engine._settle
    monkeypatch.setattr(engine, "_settle", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.setattr(engine, "_settle", settle)
    assert list(answer) == wanted[2][0]


def test_a_step_taken_by_hand_is_not_disturbed_by_a_cancellation(model, requests, wanted):
    engine = make_engine(model)
    left, other = engine.submit(requests[2]), engine.submit(requests[4])
    engine.step()
    step = engine._runner.step

    def cancelling(*args):
        thread = threading.Thread(target=left.cancel)
        thread.start()
        thread.join()
        return step(*args)

    engine._runner.step = cancelling
    engine.step()
    engine._runner.step = step
    assert (left.finish_reason, engine.num_running) == ("cancelled", 1)
    assert list(other) == wanted[4][0]


def test_many_threads_with_everything_at_once(model, requests, wanted):
    """Cancellations, priorities, prompts in pieces, steps that fail: nobody hangs, nobody gets what is another's."""
    engine = make_engine(model, max_rows=4, piece=5)
    step, counter, wrong = engine._runner.step, [], []

    def sometimes(*args):
        counter.append(1)
        if len(counter) % 97 == 0:
            raise RuntimeError("once in a while")
        return step(*args)

    engine._runner.step = sometimes

    def speak(seed):
        chance = random.Random(seed)
        for _ in range(12):
            number = chance.randrange(len(requests))
            answer = engine.submit(replace(requests[number], priority=chance.choice([0, 0, 1])))
            columns, stop = [], chance.choice([None, None, None, 2])
            try:
                for column in answer:
                    columns.append(column)
                    if len(columns) == stop:
                        answer.cancel()
            except EngineError:
                pass
            whole = answer.finish_reason in ("stop", "length")
            if columns != wanted[number][0][: len(columns)] or (whole and len(columns) != len(wanted[number][0])):
                wrong.append((seed, number))

    threads = [threading.Thread(target=speak, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong
    assert (engine.num_running, engine.num_waiting, engine._runs) == (0, 0, {})


def test_an_adapter_put_around_a_matrix_is_used(requests):
    """The joined matrices were those of the model without it."""
    own = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    engine = make_engine(own)
    list(engine.submit(requests[0]))

    class Louder(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight, self.bias, self.out_features = inner, inner.weight, inner.bias, inner.out_features

        def forward(self, x):
            return 3 * self.inner(x)

    own.model.layers[0].self_attn.v_proj = Louder(own.model.layers[0].self_attn.v_proj)
    answer = engine.submit(requests[0])
    assert (list(answer), answer.finish_reason) == alone(own, requests[0])


def test_sizes_can_be_asked_for_while_somebody_speaks(model, requests):
    engine, errors, done = make_engine(model), [], threading.Event()

    def look():
        while not done.is_set():
            try:
                assert engine.num_bytes >= 0
            except RuntimeError as error:
                errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(150):
        request = make_request([20 + number % 40], [make_codes(2, number)], seed=number, max_frames=1, prefix=9)
        list(engine.submit(request))
    done.set()
    thread.join()
    assert not errors


def test_one_codebook_is_watched_too():
    guard = Guard((), 1024)
    assert [guard.push([5]) for _ in range(FRAMES)] == [None] * (FRAMES - 1) + ["repetition"]
