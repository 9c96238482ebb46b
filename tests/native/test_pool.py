"""Tests of the thread pool of the C code: results do not depend on the number of threads, and nothing hangs."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import make_engine, many_requests, run_alone
from oracle import K, fill, make_config

from higgs_audio import NANO, HiggsAudio
from higgs_audio.engine.cache_views import PrefillChunk
from higgs_audio.engine.kv_cache import KVCache
from higgs_audio.engine.model_runner import ModelRunner
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.native import NativeLinear, library, native_library, num_threads, one_torch_thread

COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler is here")
STRESS = Path(__file__).parent / "pool_stress.c"


@pytest.fixture
def threads():
    """Returns a function that sets the number of torch's threads, which is restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def compile_stress(folder, *flags):
    """Compiles the stress test so that callers never work alone; returns its path, or None if the compiler fails."""
    output = folder / "stress"
    sources = [str(STRESS), str(library.FOLDER / "pool.c")]
    command = [COMPILER, "-g", "-O1", "-pthread", "-DALONE_FACTOR=0", *flags, f"-I{library.FOLDER}", "-o", str(output)]
    done = subprocess.run([*command, *sources], capture_output=True, text=True)
    return output if done.returncode == 0 else None


@pytest.mark.parametrize(
    "arguments",
    [
        ("1", "2", "2000", "0", "0"),
        ("1", "5", "40", "1", "0"),
        ("6", "3", "20", "1", "0"),
        ("24", "4", "100", "0", "0"),
    ],
    ids=["quick pieces", "stalled pieces", "six callers of stalled pieces", "more callers than jobs"],
)
def test_every_piece_runs_once_and_after_the_stage_before_it(tmp_path, arguments):
    stress = compile_stress(tmp_path)
    done = subprocess.run([stress, *arguments], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_children_that_are_forked_while_the_pool_works_have_a_pool_of_their_own(tmp_path):
    stress = compile_stress(tmp_path)
    done = subprocess.run([stress, "3", "3", "30", "1", "20"], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_thread_sanitizer_finds_no_race(tmp_path):
    stress = compile_stress(tmp_path, "-fsanitize=thread")
    if stress is None or subprocess.run([stress, "1", "1", "1", "0", "0"]).returncode:
        pytest.skip("ThreadSanitizer does not run here")
    for arguments in (("1", "2", "500", "0", "0"), ("4", "3", "10", "1", "0"), ("20", "4", "20", "0", "0")):
        done = subprocess.run([stress, *arguments], timeout=120, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("num_rows", [1, 2, 3, 30, 200])
def test_logits_are_equal_to_the_bit_with_any_number_of_threads(threads, num_rows):
    model = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        cache = KVCache(model.model.text_config, 8, 256, torch.float32, model.device)
        runner = ModelRunner(model, cache)
        assert runner.native is not None
        for slot in range(min(num_rows, 4)):
            ids = 20 + (torch.arange(num_rows) + slot) % 60
            runner.prefill([PrefillChunk(slot, ids, torch.zeros(0, K).long(), 0)])
        columns = torch.arange(min(num_rows, 4))[:, None].expand(-1, K).contiguous()
        results.append(runner.decode(columns, [num_rows] * len(columns)))
    assert all(torch.equal(result, results[0]) for result in results)


@torch.no_grad()
@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 13, 100])
def test_a_linear_map_equals_that_of_torch_and_its_rows_do_not_depend_on_other_rows(threads, num_rows, is_half):
    generator = torch.Generator().manual_seed(num_rows)
    linear = torch.nn.Linear(41, 149)
    rows = torch.randn(num_rows, 41, generator=generator)
    for weight in linear.parameters():
        weight.copy_(weight.bfloat16() if is_half else weight)
    native = NativeLinear(native_library(), linear.weight, linear.bias)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(native(rows))
    torch.testing.assert_close(results[0], linear(rows), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(native(rows[-1:]), results[0][-1:])
    torch.testing.assert_close(NativeLinear(native_library(), linear.weight, None)(rows), rows @ linear.weight.T)


def test_speech_is_equal_to_the_bit_with_any_number_of_threads(threads):
    tts = HiggsAudio.from_pretrained(NANO)
    samples = []
    for count in (1, 2, 3, 5):
        threads(count)
        samples.append(tts.generate("Two roads diverged in a wood.", seed=1).waveform.samples)
        assert torch.get_num_threads() == count
    assert all(np.array_equal(other, samples[0]) for other in samples)


def test_several_engines_work_at_the_same_time(threads):
    threads(3)
    models = [fill(HiggsAudioForConditionalGeneration(make_config()), seed=seed).eval() for seed in range(6)]
    requests = many_requests()

    def speak(model):
        threads(3)
        engine = make_engine(model)
        handles = [engine.submit(request) for request in requests]
        return [(list(handle), handle.finish_reason) for handle in handles]

    with ThreadPoolExecutor(len(models)) as pool:
        spoken = list(pool.map(speak, models))
    assert spoken == [[run_alone(model, request) for request in requests] for model in models]


INTERRUPTED = """
import os, signal, threading, torch
from higgs_audio import HiggsAudio

torch.set_num_threads(3)
tts = HiggsAudio.from_pretrained("nano")
text = "Two roads diverged in a wood. " * 3
before = tts.generate(text, seed=1)
for delay in (0.02, 0.05, 0.1):
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        while True:
            tts.generate(text, seed=1)
    except KeyboardInterrupt:
        pass
assert (tts.generate(text, seed=1).codes == before.codes).all()
print("done")
"""


def test_after_an_interrupt_the_next_call_works():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], timeout=120, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr


FORKED = """
import os, torch
from higgs_audio import HiggsAudio

torch.set_num_threads(2)
tts = HiggsAudio.from_pretrained("nano")
before = tts.generate("Two roads diverged.", seed=1).codes
for _ in range(3):
    child = os.fork()
    if not child:
        os._exit(not (tts.generate("Two roads diverged.", seed=1).codes == before).all())
    assert os.waitpid(child, 0)[1] == 0
print("done")
"""


def test_a_forked_child_of_a_process_that_has_spoken_speaks():
    """torch's own threads would hang in it, hence `one_torch_thread`."""
    done = subprocess.run([sys.executable, "-c", FORKED], timeout=120, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr


def test_torch_uses_one_thread_around_c_code_and_then_as_many_as_before(threads):
    threads(3)
    with ThreadPoolExecutor(1) as other:
        with one_torch_thread():
            assert (torch.get_num_threads(), num_threads()) == (1, 3)
            assert other.submit(torch.get_num_threads).result() == 3  # also in a thread that starts now
            with one_torch_thread():
                assert (torch.get_num_threads(), num_threads()) == (1, 3)
            assert (torch.get_num_threads(), num_threads()) == (1, 3)
        with pytest.raises(KeyError), one_torch_thread():
            raise KeyError
    with one_torch_thread(enabled=False):
        assert torch.get_num_threads() == 3
    assert (torch.get_num_threads(), num_threads()) == (3, 3)
