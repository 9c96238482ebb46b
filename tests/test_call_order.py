"""Tests of the order of calls, from a text to samples and from chat messages to token ids.

Two properties are checked on recorded calls:

- **Downward only.** On the call stack, a function is called by a function of its own folder or of a folder of a higher
  level, according to the table in docs/architecture.md. Generators do not count: a caller passes a generator down as a
  value, and its body runs where the value is read. The only callback that is passed down is `progress`, of the command
  line.
- **Once.** Each stage, a function that converts one form of the text to the next, runs once for each input: a text, an
  utterance, or a chunk of audio. Checks are not stages, because they return their argument: a text is checked before
  the model is loaded, and a prompt before the first utterance is generated.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from levels import levels, top
from safetensors.numpy import save_file
from tracing import Calls, record_calls

from higgs_audio.audio.files import write
from higgs_audio.cli.main import main
from higgs_audio.codec.stream import push_many
from higgs_audio.delay import FrameAligner
from higgs_audio.engine import Engine, RequestHandle
from higgs_audio.engine.decode_state import initial_state
from higgs_audio.prompt.conversation import read_conversation
from higgs_audio.prompt.encoder import PromptEncoder
from higgs_audio.prompt.frontend import to_phonemes
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.template import render
from higgs_audio.speech.request import RequestBuilder
from higgs_audio.speech.result import SpeechBuilder
from higgs_audio.speech.tts import HiggsAudio
from higgs_audio.text.normalization import normalize
from higgs_audio.text.utterances import read_utterances

ONE = "The sun rises in the east."
THREE = "Hello, all.\n\nGood night.\n\nBye now."  # utterances
CHECKS = ("check", "read")  # prefixes of the names of functions that validate
PROGRESS = ("speech.tts", "cli.speak.<lambda>")  # the callback of `higgs-audio speak`
COMMANDS = {  # {} is the number of the run
    "speak": ("speak", THREE, "-o", "{}.wav", "--seed", "1"),
    "a stream": ("speak", THREE, "--stream", "--low-latency", "--seed", "1"),
    "a cloned voice": ("speak", ONE, "-o", "{}.wav", "--voice", "me.wav", "--transcript", "Noise."),
    "batch": ("batch", "texts.jsonl", "-o", "sounds{}"),
    "encode": ("encode", "me.wav", "-o", "{}.safetensors"),
    "decode": ("decode", "codes.safetensors", "-o", "{}.wav"),
}


@pytest.fixture
def trace(tiny_checkpoint, tmp_path, monkeypatch, capfdbinary):
    """Returns a function that records the calls of a command on the tiny checkpoint."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("me.wav", np.random.default_rng(0).normal(0, 0.1, 24000).clip(-1, 1), 24000)
    save_file({"codes": np.zeros((8, 5), np.int16)}, "codes.safetensors")
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in (ONE, THREE)))

    def run(number, arguments):
        options = ("--model", str(tiny_checkpoint), "--device", "cpu")
        with pytest.raises(SystemExit) as exit:
            main([*(argument.replace("{}", str(number)) for argument in arguments), *options])
        assert not exit.value.code, capfdbinary.readouterr().err

    def trace(*arguments):
        run(0, arguments)  # imports what the command needs; importing runs code too
        with record_calls() as calls:
            run(1, arguments)
        return calls

    return trace


def upward_calls(calls: Calls) -> set[tuple[str, str]]:
    """Returns (caller, function) of each call of another folder of the same or of a higher level, without
    generators."""
    level = levels()
    return {
        (call.caller, call.name)
        for call in calls
        if call.caller and top(call.caller) != top(call.module) and not call.is_generator
        if level[top(call.caller)] <= level[top(call.module)]
    }


# From a text to samples.


@pytest.mark.parametrize("command", COMMANDS)
def test_no_folder_calls_a_folder_of_a_higher_level(trace, command):
    assert upward_calls(trace(*COMMANDS[command])) <= {PROGRESS}


def test_an_upward_call_is_detected(trace):
    """The callback of the command line is such a call."""
    assert upward_calls(trace(*COMMANDS["speak"])) == {PROGRESS}


def test_a_text_passes_every_stage_once(trace):
    calls = trace(*COMMANDS["speak"])
    per_text = (HiggsAudio.generate, RequestBuilder.read_request, read_utterances, SpeechBuilder.speech, write)
    per_utterance = (normalize, HiggsAudioProcessor.check_conversation, RequestBuilder.build, to_phonemes, render)
    per_utterance += (PromptEncoder.encode, Engine.submit, initial_state)
    assert {stage.__qualname__: calls.count_of(stage) for stage in per_text} == {s.__qualname__: 1 for s in per_text}
    assert {stage.__qualname__: calls.count_of(stage) for stage in per_utterance} == {
        stage.__qualname__: 3 for stage in per_utterance
    }
    assert calls.count_of(read_conversation) == 2 * 3  # to check a prompt, and to render it
    assert calls.count_of(FrameAligner.push) == calls.count_of(RequestHandle.push)  # once for each column
    assert calls.count_of(push_many) <= calls.count_of(
        SpeechBuilder.add
    )  # one call may decode chunks of several utterances


def test_every_chunk_of_an_utterance_is_decoded_once(trace):
    calls = trace("speak", ONE, "-o", "{}.wav", "--seed", "1")
    assert calls.count_of(push_many) == calls.count_of(SpeechBuilder.add) > 1


def test_the_stages_of_an_utterance_follow_one_another(trace):
    """Each stage begins after the previous stage: text, prompt, engine, audio tokenizer, file."""
    calls = trace("speak", ONE, "-o", "{}.wav", "--seed", "1")
    stages = (read_utterances, normalize, HiggsAudioProcessor.check_conversation, render, PromptEncoder.encode)
    stages += (Engine.submit, initial_state, FrameAligner.push, push_many, SpeechBuilder.speech, write)
    first = [calls.indices_of(stage)[0] for stage in stages]
    assert first == sorted(first)
    assert max(calls.indices_in("text.utterances", "text.normalization")) < first[stages.index(render)]
    assert (
        max(calls.indices_in("prompt.conversation", "prompt.template", "prompt.encoder"))
        < calls.indices_of(initial_state)[0]
    )
    assert max(calls.indices_of(push_many)) < calls.indices_of(write)[0]


# From chat messages to token ids.


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return HiggsAudioProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def conversations():
    """Two conversations, with all kinds of content."""
    first, second = ({"type": "audio", "codes": np.zeros((8, 3), int)} for _ in range(2))
    recording = {"type": "audio", "audio": np.zeros(4800, np.float32), "sampling_rate": 24000}
    scene = {"role": "scene", "content": ["A quiet room.", "SPEAKER0:", first]}
    return [
        [
            {"role": "system", "content": "Generate audio following instruction."},
            scene,
            {"role": "user", "content": "[SPEAKER0] Hello there.\n[SPEAKER1] <SE>[Laughter]</SE> Good night."},
            {"role": "assistant", "content": ["", second]},
            {"role": "user", "content": [{"type": "text", "text": "Listen."}, recording]},
        ],
        [{"role": "user", "content": "Bye."}],
    ]


@pytest.fixture(scope="module")
def rendered(processor, conversations):
    """The calls of `apply_chat_template`."""
    processor.apply_chat_template(conversations)  # imports what is imported on first use
    with record_calls() as calls:
        processor.apply_chat_template(conversations, add_generation_prompt=True)
    return calls


def test_a_message_is_not_validated_twice(rendered, conversations):
    """No function of `prompt/` that reads or checks its argument gets the same message, item or codes twice."""
    checks = [c for c in rendered if top(c.module) == "prompt" and c.code.co_name.lstrip("_").startswith(CHECKS)]
    objects = [call for call in checks if not isinstance(call.argument, str | int | type(None))]
    seen = Counter((call.name, id(call.argument)) for call in objects)
    assert {name: count for (name, _), count in seen.items() if count > 1} == {}
    times = Counter(id(call.argument) for call in objects)
    assert [times[id(message)] for conversation in conversations for message in conversation] == [1] * 6
    assert rendered.count_of(read_conversation) == rendered.count_of(render) == len(conversations)


def test_all_messages_are_rendered_before_the_first_is_encoded(rendered, conversations):
    """All conversations are read and rendered once before the first is encoded, and all calls lead downward."""
    assert upward_calls(rendered) == set()
    assert rendered.count_of(PromptEncoder.encode) == len(conversations)
    assert rendered.count_of(PromptEncoder.collate) == 1
    messages = rendered.indices_in("prompt.conversation", "prompt.template", "prompt.frontend")
    assert max(messages) < min(rendered.indices_of(PromptEncoder.encode))
    assert max(rendered.indices_of(PromptEncoder.encode)) < rendered.indices_of(PromptEncoder.collate)[0]
