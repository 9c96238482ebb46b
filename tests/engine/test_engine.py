"""Tests that the result of a request does not depend on requests that join, end or are preempted: it equals the plain
loop's.
"""

import random
import threading
from dataclasses import fields, replace

import pytest
import torch
from engines import CONTEXT, make_engine, make_request, run_alone
from hooks import before_calls
from oracle import K, make_codes

from higgs_audio.engine import RequestHandle
from higgs_audio.engine.decode_state import initial_state
from higgs_audio.engine.kv_cache import KVCache, slot_bytes
from higgs_audio.engine.model_runner import ModelRunner
from higgs_audio.engine.sampler import Sampler
from higgs_audio.errors import EngineError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration


@pytest.mark.parametrize("number", range(8))
def test_a_request_alone_equals_the_plain_loop(model, requests, expected, number):
    handle = make_engine(model).submit(requests[number])
    assert (list(handle), handle.finish_reason) == expected[number]


def test_requests_together_equal_each_alone(model, requests, expected):
    engine = make_engine(model, max_slots=16)
    handles = [engine.submit(request) for request in requests]
    assert [(list(handle), handle.finish_reason) for handle in handles] == expected
    assert (engine.num_running, engine.num_waiting) == (0, 0)


def test_plain_and_fused_layers_agree(model, requests, expected, without_native):
    engine = make_engine(model, fused=False)
    assert not engine.runner.fused
    assert make_engine(model).runner.fused
    handles = [engine.submit(request) for request in requests]
    assert [(list(handle), handle.finish_reason) for handle in handles] == expected


@pytest.mark.parametrize("num_steps", [2, 3, 32])
def test_several_steps_between_reads_change_nothing(model, requests, expected, num_steps):
    """Some requests end between two reads, one of them at the end of its slot."""
    context = max(request.num_positions(K) for request in requests)
    engine = make_engine(model, context=context, max_slots=16, num_steps=num_steps)
    handles = [engine.submit(request) for request in requests]
    assert [(list(handle), handle.finish_reason) for handle in handles] == expected


def to_meta(value):
    """Returns a dataclass with its tensors on the meta device."""
    tensors = {field.name: getattr(value, field.name) for field in fields(value)}
    return replace(value, **{name: t.to("meta") for name, t in tensors.items() if isinstance(t, torch.Tensor)})


def test_a_step_never_waits_for_the_device(own_model, requests):
    """The meta device has shapes but no data: reading a number from it raises."""
    states = [initial_state(requests[number], own_model.config, torch.device("cpu")) for number in (5, 4)]
    state = states[0].concat(states[1])
    sampler = Sampler(state, torch.tensor([0, 2]), torch.tensor([1, 2]), own_model.config)
    sampler.conditional_rows, sampler.negative_rows = torch.tensor([[0, 2], [1, 2]]).to("meta")
    state, sampler.metadata, model = to_meta(state), to_meta(sampler.metadata), own_model.to("meta")
    cache = KVCache(model.model.text_config, 3, CONTEXT, torch.float32, model.device)
    runner = ModelRunner(model, cache)
    for number in range(3):
        logits = runner.decode(state.column[[0, 0, 1]], [9 + number, 9 + number, 4 + number])
        state, _ = sampler(state, logits)
    assert state.column.shape == (2, K)
    with pytest.raises(RuntimeError):
        state.column.tolist()


@pytest.mark.parametrize("seed", range(200))
def test_random_schedules_change_nothing(model, requests, expected, seed):
    """Requests join at any step, are cancelled and preempted, and are prefilled in small chunks."""
    chance = random.Random(seed)
    slots = chance.choice([2, 3, 5])
    engine = make_engine(
        model, max_slots=slots, prefill_chunk=chance.choice([1, 3, 10, 64]), num_steps=chance.choice([1, 1, 2, 5])
    )
    running, cancelled, offline_share = [], set(), chance.choice([0, 0.5, 1])
    for _ in range(chance.randint(4, 9)):
        number = chance.randrange(len(requests))
        prefix = chance.choice([0, 1, len(requests[number].input_ids) - 1])
        request = replace(
            requests[number],
            priority=chance.choice([0, 0, 1]),
            prefix=prefix,
            is_offline=chance.random() < offline_share,
        )
        running.append((number, engine.submit(request)))
        for _ in range(chance.choice([0, 1, 2, 7])):
            engine.step()
        if chance.random() < 0.2:
            victim = chance.randrange(len(running))
            running[victim][1].cancel()
            cancelled.add(victim)
    for index, (number, handle) in enumerate(running):
        columns, reason = list(handle), handle.finish_reason
        if index in cancelled and reason == "cancelled":
            assert columns == expected[number][0][: len(columns)]
        else:
            assert (columns, reason) == expected[number]
    assert (engine.num_running, engine.num_waiting, engine.num_requests) == (0, 0, 0)


def test_threads_get_their_own_results(model, requests, expected):
    engine = make_engine(model, max_slots=4)
    found = {}

    def generate(number):
        handle = engine.submit(requests[number])
        found[number] = (list(handle), handle.finish_reason)

    threads = [threading.Thread(target=generate, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[number] for number in range(len(requests))] == expected


def test_an_unread_handle_does_not_block_the_others(model, requests, expected):
    engine = make_engine(model)
    unread = engine.submit(requests[2])
    next(unread)
    other = engine.submit(requests[4])
    assert (list(other), other.finish_reason) == expected[4]
    assert (list(unread), unread.finish_reason) == (expected[2][0][1:], expected[2][1])


def test_a_thousand_requests_leak_no_memory(model):
    engine = make_engine(model, max_slots=4, memory=4 * 10**6)
    sizes = []
    for number in range(1000):
        request = make_request([20 + number % 50], [make_codes(2, number % 40)], seed=number, max_frames=2, prefix=9)
        assert list(engine.submit(request))
        sizes.append(engine.num_bytes)
    assert max(sizes[100:]) == max(sizes[900:])
    assert (engine.num_running, engine.num_waiting, engine.num_requests) == (0, 0, 0)
    assert (engine.slots.decoding, engine.slots.prefilling) == ([], [])


def test_memory_is_freed_at_the_end_and_that_of_a_preempted_request_is_counted(model, requests):
    """A preempted request is saved with the positions that it has, and no other is saved."""

    def num_saved_bytes():
        return engine.num_bytes - engine.cache.num_bytes - engine.prefixes.num_bytes

    engine = make_engine(model, max_slots=1)
    list(engine.submit(requests[0]))
    preempted = engine.submit(replace(requests[2], priority=1))
    engine.step()
    engine.step()
    assert num_saved_bytes() == 0
    before, num_columns = engine.num_bytes, 0
    urgent = engine.submit(requests[0])
    engine.step()
    while preempted.poll() is not None:
        num_columns += 1
    num_positions = len(requests[2].input_ids) + num_columns - 1
    assert num_saved_bytes() == slot_bytes(model.model.text_config, num_positions, torch.float32)
    assert engine.num_bytes > before
    list(urgent)


def test_num_bytes_can_be_read_while_a_request_runs(model):
    engine, errors, done = make_engine(model), [], threading.Event()

    def read():
        while not done.is_set():
            try:
                assert engine.num_bytes >= 0
            except RuntimeError as error:
                errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(150):
        request = make_request([20 + number % 40], [make_codes(2, number)], seed=number, max_frames=1, prefix=9)
        list(engine.submit(request))
    done.set()
    thread.join()
    assert not errors


@pytest.mark.usefixtures("without_native")
def test_the_model_can_be_saved_and_trained_after_its_matrices_were_joined(own_model, requests, tmp_path):
    before = {name: value.clone() for name, value in own_model.state_dict().items()}
    engine = make_engine(own_model)
    first = list(engine.submit(requests[1]))
    own_model.save_pretrained(tmp_path)
    again = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
    with torch.no_grad():
        for weight in own_model.parameters():
            weight.mul_(1.5)
    assert list(engine.submit(requests[1])) == run_alone(own_model, requests[1])[0] != first
    own_model.load_state_dict(before)
    assert list(engine.submit(requests[1])) == first
    own_model.double()
    assert list(engine.submit(requests[3])) == run_alone(own_model, requests[3])[0]
    assert engine.runner.fused


def test_an_adapter_around_a_matrix_is_used(own_model, requests):
    """Earlier, the joined matrices were those of the model without the adapter."""
    engine = make_engine(own_model)
    list(engine.submit(requests[0]))

    class Tripled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight, self.bias, self.out_features = inner, inner.weight, inner.bias, inner.out_features

        def forward(self, x):
            return 3 * self.inner(x)

    own_model.model.layers[0].self_attn.v_proj = Tripled(own_model.model.layers[0].self_attn.v_proj)
    handle = engine.submit(requests[0])
    assert (list(handle), handle.finish_reason) == run_alone(own_model, requests[0])


def test_token_ids_of_any_integer_type_are_accepted(model, requests, expected):
    small = replace(requests[6], input_ids=requests[6].input_ids.int(), negative_ids=requests[6].negative_ids.short())
    assert list(make_engine(model).submit(small)) == expected[6][0]


def test_a_last_column_that_arrives_between_two_checks_is_not_lost():
    """Earlier, iteration found no column, then found that the request was done, and stopped."""

    class LateHandle(RequestHandle):
        is_late = True

        @property
        def is_done(self):
            if self.is_late:
                self.is_late = False
                self.push((1,), "stop")
            return super().is_done

    assert list(LateHandle(lambda: None, lambda: None)) == [(1,)]


def test_many_threads_with_everything_at_once(own_model, requests, expected):
    """Cancellations, priorities, prefill in chunks and failing steps: no thread hangs or gets the columns of
    another."""
    engine = make_engine(own_model, max_slots=4, prefill_chunk=5)
    counter, wrong = [], []

    def failing_sometimes(*_):
        counter.append(1)
        if len(counter) % 97 == 0:
            raise RuntimeError("every 97th pass")

    def generate(seed):
        chance = random.Random(seed)
        for _ in range(12):
            number = chance.randrange(len(requests))
            handle = engine.submit(replace(requests[number], priority=chance.choice([0, 0, 1])))
            columns, stop = [], chance.choice([None, None, None, 2])
            try:
                for column in handle:
                    columns.append(column)
                    if len(columns) == stop:
                        handle.cancel()
            except EngineError:
                pass
            is_whole = handle.finish_reason in ("stop", "length")
            if columns != expected[number][0][: len(columns)] or (
                is_whole and len(columns) != len(expected[number][0])
            ):
                wrong.append((seed, number))

    threads = [threading.Thread(target=generate, args=(seed,), daemon=True) for seed in range(6)]
    with before_calls(own_model.model.embed_audio_tokens, failing_sometimes):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert not wrong
    assert len(counter) > 97
    assert (engine.num_running, engine.num_waiting, engine.num_requests) == (0, 0, 0)
