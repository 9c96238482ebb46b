"""Tests of rejected requests, and of failures, cancellations and interrupts, which end one request only."""

import math
import threading
from dataclasses import replace

import pytest
import torch
from engines import CONTEXT, GREEDY, make_engine, make_request, run_alone
from hooks import after_calls, before_calls
from oracle import K, fill, make_codes, make_config, make_prompt

from higgs_audio.engine import Engine, Request, RequestHandle
from higgs_audio.engine.engine import CPU_MEMORY
from higgs_audio.engine.kv_cache import slot_bytes
from higgs_audio.errors import EngineError, HiggsAudioError, NumericsError, OptionError, PromptError, QueueFullError
from higgs_audio.generation.sampling import MAX_COUNT
from higgs_audio.model.model import HiggsAudioForConditionalGeneration

# Rejected requests.


def test_a_request_that_exceeds_the_cache_is_rejected(model, requests):
    engine = make_engine(model, context=30)
    with pytest.raises(OptionError, match="a prompt of 14 positions and 12 frames may need 35; this engine has 30"):
        engine.submit(make_request(range(20, 32)))
    with pytest.raises(OptionError, match="guidance needs 2 slots"):
        make_engine(model, max_slots=1).submit(requests[5])


def test_the_error_without_memory_for_a_slot_names_the_required_memory(model):
    slot = slot_bytes(model.model.text_config, CONTEXT, torch.float32)
    with pytest.raises(OptionError, match=rf"requires {math.ceil(slot / 0.75)}"):
        Engine(model, memory=slot, context=CONTEXT)
    assert Engine(model, memory=3 * math.ceil(slot / 0.75), context=CONTEXT).max_slots == 3


def test_the_default_memory_is_enough_for_one_guided_request(requests):
    """Memory is allocated on demand and most requests need little, so an engine on a nearly full GPU must not be an
    error. Here two slots are larger than the default memory, a share of which is for cached prefixes."""
    heads = {"num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 32}
    model = fill(HiggsAudioForConditionalGeneration(make_config(heads)))
    context = model.config.text_config.max_position_embeddings
    assert 2 * slot_bytes(model.config.text_config, context, torch.float32) >= CPU_MEMORY
    engine = Engine(model, context=context)
    assert engine.max_slots == 2
    handle = engine.submit(requests[5])
    assert (list(handle), handle.finish_reason) == run_alone(model, requests[5])


def test_inconsistent_prompts_are_rejected(model):
    engine, good = make_engine(model), make_request(range(20, 32), [make_codes(5, 1)])
    with pytest.raises(PromptError, match="must end in"):
        engine.submit(replace(good, input_ids=good.input_ids[:-1]))
    with pytest.raises(PromptError, match=r"14 placeholders, but columns have the shape \(13, 8\)"):
        engine.submit(replace(good, columns=good.columns[1:]))
    with pytest.raises(OptionError, match="guidance requires both"):
        replace(good, sampling=replace(GREEDY, text_guidance_scale=2.0))
    assert engine.num_waiting == 0


def test_a_full_queue_rejects_a_request_and_keeps_the_others(model, requests, expected):
    engine = make_engine(model, max_slots=1, max_waiting=2)
    handles = [engine.submit(requests[0]), engine.submit(requests[1])]
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        engine.submit(requests[2])
    assert [(list(handle), handle.finish_reason) for handle in handles] == expected[:2]
    assert list(engine.submit(requests[2])) == expected[2][0]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"input_ids": torch.tensor([999, 302])}, "token ids from 302 to 999"),
        ({"input_ids": torch.tensor([[20, 302]])}, r"input_ids is \(1, 2\)"),
        ({"input_ids": torch.tensor([20.0, 302.0])}, "must contain integers"),
        ({"negative_ids": torch.tensor([20])}, r"negative_ids is \(1,\)"),
        ({"negative_ids": torch.tensor([999, 302])}, "token ids from 302 to 999"),
        ({"negative_ids": torch.tensor([301, 302])}, "negative_ids must have its audio placeholders where"),
        ({"input_ids": torch.tensor([301, 302]), "columns": torch.full((1, K), 99)}, "allowed: 0 to 17"),
        ({"input_ids": torch.tensor([301, 302]), "columns": torch.zeros(1, K)}, "expected integers"),
        ({"prefix": 2}, "prefix=2"),
        ({"prefix": -1}, "prefix=-1"),
    ],
    ids=str,
)
def test_an_invalid_request_is_rejected_before_it_joins_a_batch(model, requests, expected, change, error):
    """Earlier, an id outside the vocabulary made the step of all requests fail."""
    engine = make_engine(model)
    good = engine.submit(requests[2])
    guided = {"sampling": replace(GREEDY, text_guidance_scale=2.0)} if "negative_ids" in change else {}
    fields = {"input_ids": torch.tensor([20, 302]), "columns": torch.zeros(0, K).long(), **guided, **change}
    with pytest.raises(HiggsAudioError, match=error):
        engine.submit(Request(**{"sampling": GREEDY, "max_frames": 3, **fields}))
    assert (list(good), good.finish_reason) == expected[2]


@pytest.mark.parametrize("priority", ["high", [1], 1.5, True, 2**80], ids=str)
def test_a_priority_must_be_an_integer(requests, priority):
    with pytest.raises(OptionError, match="priority="):
        replace(requests[0], priority=priority)


@pytest.mark.parametrize(
    "changes",
    [{"ras_win_len": MAX_COUNT}, {"ras_win_len": 3, "ras_win_max_num_repeat": MAX_COUNT}, {"eos_codebooks": MAX_COUNT}],
    ids=str,
)
def test_the_largest_options_work_and_do_not_change_other_requests(model, requests, expected, changes):
    engine = make_engine(model)
    decoding = engine.submit(requests[2])
    next(decoding)
    request = replace(requests[4], sampling=replace(requests[4].sampling, **changes))
    handle = engine.submit(request)
    columns = list(handle)
    assert (columns, handle.finish_reason) == run_alone(model, request)
    assert (list(decoding), decoding.finish_reason) == (expected[2][0][1:], expected[2][1])


# Failures.


# A hook of the audio head sees every decode step, and no prefill; C does not run a head that has one.


def test_logits_with_nan_end_their_request_alone(model, requests, expected):
    def with_nan(logits):  # [R, K * (V + 2)]
        own = next((sequence for sequence in engine.slots.decoding if sequence.handle is broken), None)
        if own is not None and len(engine.slots.decoding) == 2:
            logits = logits.clone()
            logits[own.slots[0], 60] = float("nan")
        return logits

    with after_calls(model.audio_lm_head, with_nan):
        engine = make_engine(model)
        broken, healthy = engine.submit(requests[2]), engine.submit(requests[4])
        assert (list(healthy), healthy.finish_reason) == expected[4]
        with pytest.raises(NumericsError, match="NaN or infinity"):
            list(broken)


def test_nan_in_the_logits_of_the_negative_prompt_is_reported(model, requests):
    def with_nan(logits):
        logits = logits.clone()
        logits[1, 0] = float("nan")
        return logits

    with after_calls(model.audio_lm_head, with_nan), pytest.raises(NumericsError, match="NaN or infinity"):
        list(make_engine(model).submit(requests[5]))


@pytest.fixture
def nan_model(own_model):
    """A model whose token 50 has an embedding of NaN."""
    with torch.no_grad():
        own_model.model.embed_tokens.weight[50] = float("nan")
    return own_model


@pytest.mark.usefixtures("without_native")
def test_nan_does_not_stay_in_slots_that_other_requests_get(nan_model, requests):
    """Attention multiplies masked values by 0, and 0 times NaN is NaN."""
    engine = make_engine(nan_model)
    for request in (make_request([50] * 30, sampling=GREEDY), replace(make_request([50] * 30), prefix=0)):
        with pytest.raises(NumericsError, match="NaN or infinity"):
            list(engine.submit(request))
    leaving = engine.submit(make_request([50] * 30, sampling=GREEDY))
    engine.step()
    leaving.cancel()
    long = replace(requests[0], input_ids=torch.tensor(make_prompt(range(20, 46))[0]), max_frames=30, min_frames=29)
    short = replace(long, input_ids=torch.tensor(make_prompt(range(20, 23))[0]))
    for handle in [engine.submit(short), engine.submit(long)]:
        assert list(handle)


@pytest.mark.usefixtures("without_native")
def test_nan_does_not_stay_in_slots_that_were_moved(nan_model):
    """Two requests end in one step: the slot of the second is moved to the free slot of the first."""
    engine = make_engine(nan_model)
    handles = [engine.submit(make_request([50] * 30, sampling=GREEDY, is_offline=True)) for _ in range(3)]
    for handle in handles:
        with pytest.raises(NumericsError, match="NaN or infinity"):
            list(handle)
    assert bool(engine.cache.state.isfinite().all())


@pytest.mark.parametrize("place", ["slots.free", "slots.start_decoding", "scheduler.schedule", "push"])
def test_an_error_between_steps_leaves_an_engine_that_works(model, requests, expected, monkeypatch, place):
    """A change that fails halfway leaves an invalid state; earlier, a second error replaced the first. Code between two
    passes of the model cannot be reached from outside, so a method of the engine is replaced."""
    engine = make_engine(model, max_slots=3)
    handles = [engine.submit(request) for request in requests[:6]]
    part, _, name = place.rpartition(".")
    owner = getattr(engine, part) if part else RequestHandle
    whole, calls = getattr(owner, name), []

    def broken(*args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("half way")
        return whole(*args)

    monkeypatch.setattr(owner, name, broken)
    num_failed = 0
    for number, handle in enumerate(handles):
        try:
            columns = list(handle)
        except EngineError as error:
            num_failed += "half way" in str(error)
        else:
            assert (columns, handle.finish_reason) == expected[number]
    assert num_failed >= 1
    again = [engine.submit(request) for request in requests]
    assert [(list(handle), handle.finish_reason) for handle in again] == expected


def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(model, requests, expected):
    def failing(*_):
        raise RuntimeError("out of memory")

    with before_calls(model.audio_lm_head, failing):
        engine = make_engine(model)
        handles = [engine.submit(request) for request in requests[:3]]
        for handle in handles:
            with pytest.raises(EngineError, match="out of memory"):
                list(handle)
    assert list(engine.submit(requests[1])) == expected[1][0]


def test_a_failed_step_spares_waiting_and_preempted_requests(model, requests, expected):
    steps, broken = [], []

    def failing(*_):
        steps.append(1)
        if len(steps) in broken:
            raise RuntimeError("out of memory")

    with before_calls(model.audio_lm_head, failing):
        engine = make_engine(model, max_slots=1)
        preempted = engine.submit(replace(requests[2], priority=1))
        for _ in range(6):
            engine.step()
        urgent, waiting = engine.submit(requests[0]), engine.submit(replace(requests[4], priority=2))
        broken.append(len(steps) + 3)
        with pytest.raises(EngineError, match="out of memory"):
            list(urgent)
        assert list(preempted) == expected[2][0]
        assert list(waiting) == expected[4][0]


@pytest.mark.parametrize("chunk", [4, 64])
def test_a_failed_prefill_ends_its_request_alone(model, requests, expected, chunk):
    """In separate chunks, and in one batch with the prompt of another request."""

    def failing(ids):
        if 31 in ids:
            raise RuntimeError("out of memory")

    engine = make_engine(model, prefill_chunk=chunk)
    decoding = engine.submit(requests[2])
    next(decoding)
    broken, waiting = engine.submit(requests[0]), engine.submit(requests[4])
    with before_calls(model.model.embed_tokens, failing):
        with pytest.raises(EngineError, match="out of memory"):
            list(broken)
        assert isinstance(broken.error.__cause__, RuntimeError)
        assert list(decoding) == expected[2][0][1:]
        assert list(waiting) == expected[4][0]


# Cancellations and interrupts.


def test_a_request_cancelled_in_the_last_step_of_another_is_removed(model, requests, expected):
    """Earlier, the request stayed: the other request needed no further step, and only a step removed cancelled
    requests."""
    engine, columns = make_engine(model), []
    left, short = engine.submit(requests[2]), engine.submit(requests[7])

    def cancelling(*_):
        if len(columns) == len(expected[7][0]) - 1:
            left.cancel()

    with before_calls(model.model.embed_audio_tokens, cancelling):
        for column in short:
            assert left.is_done == (len(columns) == len(expected[7][0]) - 1)
            columns.append(column)
    assert columns == expected[7][0]
    assert (engine.num_running, left.finish_reason) == (0, "cancelled")


def test_a_request_cancelled_by_the_garbage_collector_while_others_leave_ends_alone(
    model, requests, expected, monkeypatch
):
    """The garbage collector cannot be started while slots are freed, so a method of the engine is replaced."""
    engine = make_engine(model)
    staying, leaving, left = (engine.submit(requests[number]) for number in (2, 3, 4))
    engine.step()
    engine.step()
    free, calls = engine.slots.free, []

    def collecting(sequence):
        if not calls:
            calls.append(left.cancel())  # as the garbage collector may do, in this thread
        return free(sequence)

    monkeypatch.setattr(engine.slots, "free", collecting)
    leaving.cancel()
    assert (leaving.finish_reason, left.finish_reason) == ("cancelled", "cancelled")
    assert (list(staying), engine.num_running) == (expected[2][0], 0)


def test_an_interrupt_is_raised_in_its_thread_and_the_engine_goes_on(model, requests, expected):
    """Earlier, the other thread waited forever."""
    engine = make_engine(model)
    first, second = engine.submit(requests[2]), engine.submit(requests[4])
    entered, found = threading.Event(), {}

    def interrupted(*args):
        entered.set()
        threading.Event().wait(0.2)
        raise KeyboardInterrupt

    def run_steps():
        try:
            list(first)
        except KeyboardInterrupt:
            found["stepping"] = "interrupted"

    def wait():
        try:
            list(second)
        except EngineError as error:
            found["waiting"] = error

    with before_calls(model.model.embed_audio_tokens, interrupted):
        threads = [threading.Thread(target=run_steps), threading.Thread(target=wait)]
        threads[0].start()
        entered.wait(10)
        threads[1].start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert (found["stepping"], "KeyboardInterrupt" in str(found["waiting"])) == ("interrupted", True)
    assert list(engine.submit(requests[4])) == expected[4][0]


def test_an_interrupt_before_the_first_prefill_ends_no_request(model, requests, expected, monkeypatch):
    """A signal cannot be timed to arrive there, so a method of the engine is replaced."""
    engine = make_engine(model)
    handle = engine.submit(requests[2])

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.scheduler, "schedule", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert list(handle) == expected[2][0]


def test_a_cancellation_from_another_thread_does_not_disturb_a_step(model, requests, expected):
    engine = make_engine(model)
    left, other = engine.submit(requests[2]), engine.submit(requests[4])
    engine.step()

    def cancelling(*_):
        thread = threading.Thread(target=left.cancel)
        thread.start()
        thread.join()

    with before_calls(model.model.embed_audio_tokens, cancelling):
        engine.step()
    assert (left.finish_reason, engine.num_running) == ("cancelled", 1)
    assert list(other) == expected[4][0]
