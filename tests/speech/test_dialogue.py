"""Tests of dialogues: several speakers in one stream, each in its own voice."""

import numpy as np
import pytest

from higgs_audio.errors import OptionError, PromptError, TextError, VoiceError
from higgs_audio.prompt.prompt import Voice
from higgs_audio.speech.dialogue import cast_script, read_script
from higgs_audio.speech.tts import HiggsAudio

SCRIPT = "[SPEAKER0] Good morning to you. [SPEAKER1] How are you today? [SPEAKER0] I am very well."
CAST = {"SPEAKER0": Voice(name="a", profile="Ava"), "SPEAKER1": Voice(name="j", profile="Joe")}


def test_each_line_is_spoken_in_the_voice_of_its_speaker(tts):
    request = tts.dialogue_request(SCRIPT, CAST, {})
    assert [voice.name for voice in request.voices] == ["a", "j", "a"]
    assert request.speakers == ("SPEAKER0", "SPEAKER1", "SPEAKER0")


def test_a_line_of_a_dialogue_is_what_its_speaker_says_alone(tts):
    """Neither the other speakers nor their texts change it."""
    spoken = tts.dialogue(SCRIPT, CAST, seed=5, pauses={"turn": 0})
    lines = [("Good morning to you.", "SPEAKER0"), ("How are you today?", "SPEAKER1"), ("I am very well.", "SPEAKER0")]
    alone = [tts.generate(text, CAST[who], seed=5 + number) for number, (text, who) in enumerate(lines)]
    assert np.array_equal(spoken.waveform.samples, np.concatenate([speech.waveform.samples for speech in alone]))


def test_the_stream_of_a_dialogue_adds_up_to_the_whole(tts):
    whole = tts.dialogue(SCRIPT, CAST, seed=1).waveform.samples
    chunks = [chunk.samples for chunk in tts.stream_dialogue(SCRIPT, CAST, seed=1)]
    assert len(chunks) > 3 and np.array_equal(np.concatenate(chunks), whole)


def test_between_speakers_is_the_pause_of_a_turn(tts):
    request = tts.dialogue_request([("a", "One. \n\nTwo."), ("b", "Three.")], None, {"pauses": {"turn": 1.5}})
    assert request.pauses[-1] == 1.5 and request.pauses[:-1] == (0.8,)
    assert tts.request("One.\n\nTwo.", None, {}).pauses == (0.8,)


def test_a_speaker_without_voice_keeps_that_of_the_first_line(tts, monkeypatch):
    """The first line of each speaker is a previous turn of the speaker's later lines, and of no other speaker's."""
    unnamed = HiggsAudio(tts.model, tts.processor)
    built, build = [], unnamed._builder.build
    monkeypatch.setattr(unnamed._builder, "build", lambda *args: built.append(args[2]) or build(*args))
    unnamed.dialogue(SCRIPT, seed=3)
    assert [[turn.text for turn in previous] for previous in built] == [[], [], ["Good morning to you."]]


def test_speakers_without_a_cast_have_the_named_voices_in_order(tts):
    request = tts.dialogue_request(SCRIPT, None, {})
    assert [voice.name for voice in request.voices] == [tts.voices[0], tts.voices[1], tts.voices[0]]


@pytest.mark.parametrize(
    ("script", "speakers", "pairs"),
    [
        ("Hello. [speaker 1] Hi.", (), [("SPEAKER0", "Hello."), ("SPEAKER1", "Hi.")]),
        (
            "Ann: Hello: you.\nBen: Hi.\nAnn:Bye.",
            ("Ben", "Ann"),
            [("Ann", "Hello: you."), ("Ben", "Hi."), ("Ann", "Bye.")],
        ),
        ("Ann Lee: Yes.\nAnn: No.", ("Ann", "Ann Lee"), [("Ann Lee", "Yes."), ("Ann", "No.")]),
        ("(x: Yes.\nB+: No.", ("(x", "B+"), [("(x", "Yes."), ("B+", "No.")]),
        ([["Ann", "Yes."], ("Ben", "Ann: no.")], ("Ann",), [("Ann", "Yes."), ("Ben", "Ann: no.")]),
        ("Ann said: yes.", ("Ann",), [("SPEAKER0", "Ann said: yes.")]),
    ],
)
def test_a_script_has_tags_or_names_or_pairs(script, speakers, pairs):
    assert read_script(script, speakers) == pairs


@pytest.mark.parametrize(
    ("script", "cast", "error", "message"),
    [
        (SCRIPT, {"SPEAKER0": CAST["SPEAKER0"]}, VoiceError, "'SPEAKER1' has no voice"),
        (SCRIPT, CAST | {"SPEAKER2": CAST["SPEAKER0"]}, VoiceError, "who says nothing"),
        (SCRIPT, CAST | {"SPEAKER1": "avaa"}, VoiceError, "did you mean"),
        (SCRIPT, CAST | {"SPEAKER1": 7}, PromptError, "mapping of speakers"),
        (SCRIPT, "ava", PromptError, "mapping of speakers"),
        (SCRIPT, [("SPEAKER0", "ava")], PromptError, "mapping of speakers"),
        ([(f"s{number}", "Hi.") for number in range(50)], None, VoiceError, "50 speakers"),
        ("Well. Ann: Hi.\nAnn: Bye.", {"Ann": "ava"}, PromptError, "begins with"),
        ("[SPEAKER0] [SPEAKER1] Hi.", None, TextError, "give the text"),
        ("", None, TextError, "give some text"),
        ([], None, PromptError, "give a text"),
        ([("a", 1)], None, PromptError, "pairs of speaker"),
        ([("a", "Hi."), "b"], None, PromptError, "pairs of speaker"),
        ([("a", "Hi."), ("b", "...")], None, TextError, "letter or digit"),
        ([("a", "Hi."), ("b", "<|eot_id|>")], None, TextError, "special token"),
        (None, None, PromptError, "the script is None"),
        (7, None, PromptError, "the script is 7"),
    ],
)
def test_a_script_that_cannot_be_spoken_is_refused_before_any_work(tts, script, cast, error, message):
    with pytest.raises(error, match=message):
        tts.stream_dialogue(script, cast)


def test_options_of_a_dialogue_are_those_of_a_text(tts):
    with pytest.raises(OptionError, match="temprature"):
        tts.dialogue(SCRIPT, CAST, temprature=1)
    assert tts.dialogue(SCRIPT, CAST, max_seconds=0.4).seconds <= 0.4 + 1e-6
    seconds = []
    tts.dialogue(SCRIPT, CAST, seed=1, progress=seconds.append)
    assert seconds == sorted(seconds) and seconds[-1] > 0


def test_a_cast_finds_voices_by_name():
    cast = {"a": "x", "b": Voice(name="y")}
    lines = cast_script([("a", "Hi."), ("b", "Yes.")], cast, (), lambda name: Voice(name=name))
    assert [(line.text, line.voice.name, line.speaker) for line in lines] == [("Hi.", "x", "a"), ("Yes.", "y", "b")]


def test_a_failed_dialogue_leaves_nothing_behind(tts):
    stream = tts.stream_dialogue(SCRIPT, CAST, seed=1)
    next(stream)
    stream.close()
    assert tts.engine.num_requests == 0
