"""Tests of prompts: the conversations of the published examples, rendered byte for byte; invalid prompts."""

import dataclasses

import numpy as np
import pytest

from higgs_audio.errors import CodesError, PromptError, TextError, VoiceError
from higgs_audio.prompt.conversation import read_conversation
from higgs_audio.prompt.prompt import (
    MULTI_SPEAKER,
    SINGLE_SPEAKER,
    Prompt,
    Turn,
    Voice,
    compose,
    parse_script,
    to_messages,
)
from higgs_audio.prompt.template import join, render

ROOM = "Audio is recorded from a quiet room."
BRITISH = "He speaks with a clear British accent and a conversational, inquisitive tone."
AMERICAN = "Male, American accent, modern speaking rate, moderate-pitch, friendly tone, and very clear audio."

# The worked examples, in the parts that repeat.
BEGIN = "<|begin_of_text|>"
SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n"
USER = "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
END = "<|eot_id|>"
SPOKEN = f"{ASSISTANT}<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>{END}"
SCENE = "\n\n<|scene_desc_start|>\n"
SCENE_END = "\n<|scene_desc_end|>"
HEARD = "<|audio_bos|><|AUDIO|><|audio_eos|>"
GENERATE = "Generate audio following instruction."
CONVERT = (
    "You are an AI assistant designed to convert text into speech.\nIf the user's message includes a [SPEAKER*] tag, "
    "do not read out the tag and generate speech for the following text, using the specified voice.\nIf no speaker tag "
    "is present, select a suitable voice on your own."
)


def codes(num_frames=3, seed=0):
    return np.random.default_rng(seed).integers(0, 1024, (8, num_frames))


def rendered(prompt):
    """Returns the rendered prompt, up to the header of the answer."""
    return join(render(read_conversation(to_messages(prompt)), add_generation_prompt=True))


def clone(text, **fields):
    return Voice(transcript=text, codes=codes(), **fields)


# The published conversations.

HELLO = (Turn("Hello."),)
REFERENCE = Turn("Some words.", codes=codes())
TWO = (Turn("A", "SPEAKER0"), Turn("B", "SPEAKER1"))
TWO_REFERENCES = (Turn("One.", "SPEAKER0", codes()), Turn("Two.", "SPEAKER1", codes()))
PROFILES = {"SPEAKER0": AMERICAN, "SPEAKER1": codes()}

EXAMPLES = {
    "plain": (Prompt(HELLO), f"{SYSTEM}{GENERATE}{END}{USER}Hello.{END}"),
    "scene": (Prompt(HELLO, ROOM), f"{SYSTEM}{GENERATE}{SCENE}{ROOM}{SCENE_END}{END}{USER}Hello.{END}"),
    "clone": (
        Prompt((REFERENCE, *HELLO), ROOM),
        f"{SYSTEM}{GENERATE}{SCENE}{ROOM}{SCENE_END}{END}{USER}Some words.{END}{SPOKEN}{USER}Hello.{END}",
    ),
    "clone without scene has no system turn": (
        Prompt((REFERENCE, *HELLO)),
        f"{USER}Some words.{END}{SPOKEN}{USER}Hello.{END}",
    ),
    "clone of one named speaker has no tag": (
        Prompt((Turn("Some words.", "SPEAKER0", codes()), Turn("Hello.", "SPEAKER0"))),
        f"{USER}Some words.{END}{SPOKEN}{USER}Hello.{END}",
    ),
    "reference in the scene": (
        Prompt(HELLO, ROOM, {"SPEAKER0": codes()}),
        f"{SYSTEM}{GENERATE}{SCENE}{ROOM}\n\nSPEAKER0: {HEARD}{SCENE_END}{END}{USER}Hello.{END}",
    ),
    "two references in the scene": (
        Prompt(TWO, ROOM, {"SPEAKER0": codes(), "SPEAKER1": codes()}),
        f"{SYSTEM}{GENERATE}{SCENE}{ROOM}\n\nSPEAKER0: {HEARD}\nSPEAKER1: {HEARD}{SCENE_END}{END}"
        f"{USER}[SPEAKER0] A\n[SPEAKER1] B{END}",
    ),
    "profile": (
        Prompt(HELLO, ROOM, {"SPEAKER0": BRITISH}),
        f"{SYSTEM}{GENERATE}{SCENE}{ROOM}\n\nSPEAKER0: {BRITISH}{SCENE_END}{END}{USER}Hello.{END}",
    ),
    "profile without scene": (
        Prompt(HELLO, profiles={"SPEAKER0": "feminine"}),
        f"{SYSTEM}{GENERATE}{SCENE}SPEAKER0: feminine{SCENE_END}{END}{USER}Hello.{END}",
    ),
    "profile and reference": (
        Prompt(TWO, ROOM, PROFILES),
        f"{SYSTEM}{GENERATE}{SCENE}{ROOM}\n\nSPEAKER0: {AMERICAN}\nSPEAKER1: {HEARD}{SCENE_END}{END}"
        f"{USER}[SPEAKER0] A\n[SPEAKER1] B{END}",
    ),
    "several speakers": (
        Prompt(TWO, ROOM),
        f"{SYSTEM}{CONVERT}{SCENE}{ROOM}\n\nSPEAKER0: feminine\nSPEAKER1: masculine{SCENE_END}{END}"
        f"{USER}[SPEAKER0] A\n[SPEAKER1] B{END}",
    ),
    "several speakers without scene": (
        Prompt(TWO),
        f"{SYSTEM}{CONVERT}{SCENE}SPEAKER0: feminine\nSPEAKER1: masculine{SCENE_END}{END}"
        f"{USER}[SPEAKER0] A\n[SPEAKER1] B{END}",
    ),
    "several speakers with profiles": (
        Prompt(TWO, profiles={"SPEAKER1": "Ava", "SPEAKER0": "Joe"}),
        f"{SYSTEM}{CONVERT}{SCENE}SPEAKER0: Joe\nSPEAKER1: Ava{SCENE_END}{END}{USER}[SPEAKER0] A\n[SPEAKER1] B{END}",
    ),
    "clone of several speakers": (
        Prompt((*TWO_REFERENCES, Turn("A", "SPEAKER0"))),
        f"{USER}[SPEAKER0] One.{END}{SPOKEN}{USER}[SPEAKER1] Two.{END}{SPOKEN}{USER}[SPEAKER0] A{END}",
    ),
    "clone of several speakers with a scene": (
        Prompt((*TWO_REFERENCES, Turn("A", "SPEAKER0")), ROOM),
        f"{SYSTEM}{GENERATE}{SCENE}{ROOM}{SCENE_END}{END}"
        f"{USER}[SPEAKER0] One.{END}{SPOKEN}{USER}[SPEAKER1] Two.{END}{SPOKEN}{USER}[SPEAKER0] A{END}",
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_published_conversation_is_rendered_byte_for_byte(name):
    prompt, expected = EXAMPLES[name]
    assert rendered(prompt) == BEGIN + expected + ASSISTANT


@pytest.mark.parametrize("name", [name for name, (prompt, _) in EXAMPLES.items() if prompt.turns[-2:] != TWO])
def test_a_training_example_begins_with_its_prompt_for_inference(name):
    prompt, expected = EXAMPLES[name]
    *others, last = prompt.turns
    answered = dataclasses.replace(prompt, turns=(*others, dataclasses.replace(last, codes=codes())))
    assert join(render(read_conversation(to_messages(answered)))) == BEGIN + expected + SPOKEN


def test_messages_carry_codes_as_audio_items_and_plain_texts_as_strings():
    reference, *_ = (prompt := EXAMPLES["clone"][0]).turns
    messages = to_messages(prompt)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert isinstance(messages[0]["content"], str)
    assert messages[2]["content"] == [{"type": "audio", "codes": reference.codes}]
    system = to_messages(EXAMPLES["profile and reference"][0])[0]["content"]
    assert [item["type"] for item in system] == ["text", "audio", "text"]


def test_a_system_text_is_unchanged_and_followed_by_the_scene():
    prompt = Prompt((*TWO_REFERENCES, *TWO), ROOM, system="Convert text to speech with the same voice.")
    assert rendered(prompt).startswith(
        f"{BEGIN}{SYSTEM}Convert text to speech with the same voice.{SCENE}{ROOM}{SCENE_END}{END}{USER}[SPEAKER0] One."
    )
    assert rendered(Prompt(TWO, system="Speak.")).startswith(f"{BEGIN}{SYSTEM}Speak.{END}{USER}[SPEAKER0] A\n")


def test_an_empty_system_text_means_no_system_turn():
    assert rendered(Prompt(HELLO, system="")) == f"{BEGIN}{USER}Hello.{END}{ASSISTANT}"
    with pytest.raises(PromptError, match="system turn"):
        Prompt(HELLO, ROOM, system="")
    with pytest.raises(PromptError, match="system turn"):
        Prompt(HELLO, profiles={"SPEAKER0": "feminine"}, system="")


def test_speakers_are_ordered_by_their_number():
    turns = tuple(Turn("x", f"SPEAKER{number}") for number in (10, 2, 0))
    assert Prompt(turns, profiles={"SPEAKER7": "Ava"}).speakers == ("SPEAKER0", "SPEAKER2", "SPEAKER7", "SPEAKER10")
    assert "SPEAKER0: feminine\nSPEAKER2: masculine\nSPEAKER10: feminine\n" in rendered(Prompt(turns))


# Composing.


@pytest.mark.parametrize(
    ("turns", "voices", "scene", "name"),
    [
        (HELLO, None, None, "plain"),
        (HELLO, Voice(), ROOM, "scene"),
        (HELLO, clone("Some words."), ROOM, "clone"),
        (HELLO, clone("Some words."), None, "clone without scene has no system turn"),
        (HELLO, Voice(profile=BRITISH), ROOM, "profile"),
        (TWO, {"SPEAKER1": clone("Two."), "SPEAKER0": Voice(profile=AMERICAN)}, ROOM, "profile and reference"),
        (TWO, {}, ROOM, "several speakers"),
        (
            TWO,
            {"SPEAKER0": Voice(profile="Joe"), "SPEAKER1": Voice(profile="Ava")},
            None,
            "several speakers with profiles",
        ),
        (TWO[:1], {"SPEAKER1": clone("Two."), "SPEAKER0": clone("One.")}, None, "clone of several speakers"),
    ],
)
def test_voices_and_turns_compose_to_the_published_conversations(turns, voices, scene, name):
    assert rendered(compose(turns, voices, scene=scene)) == BEGIN + EXAMPLES[name][1] + ASSISTANT


@pytest.mark.parametrize("voices", [None, {"SPEAKER1": clone("Two.")}, {"SPEAKER0": Voice(profile="Ava")}])
@pytest.mark.parametrize("scene", [None, ROOM])
def test_continuing_a_dialogue_does_not_change_earlier_turns(voices, scene):
    script = parse_script("[SPEAKER0] One. [SPEAKER1] Two. [SPEAKER0] Three.")
    answers = [dataclasses.replace(turn, codes=codes(seed=place)) for place, turn in enumerate(script)]
    first = rendered(compose(script, voices, scene=scene)).split("[SPEAKER0] One.")[0]
    before = ""
    for place in range(len(script)):
        now = rendered(compose(script[place:], voices, scene=scene, previous=answers[:place]))
        assert now.startswith(first + before)
        before += f"[{script[place].speaker}] {script[place].text}{END}{SPOKEN}{USER}"


def test_the_next_utterance_of_a_long_text_keeps_the_system_turn():
    piece = Turn("Hello.", codes=codes())
    assert rendered(compose([Turn("World.")], previous=[piece])) == (
        f"{BEGIN}{SYSTEM}{GENERATE}{END}{USER}Hello.{END}{SPOKEN}{USER}World.{END}{ASSISTANT}"
    )


def test_the_system_texts_are_those_of_the_original_examples():
    assert (SINGLE_SPEAKER, MULTI_SPEAKER) == (GENERATE, CONVERT)


# Scripts.


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("[SPEAKER0] hello\n[SPEAKER1] hi", [("SPEAKER0", "hello"), ("SPEAKER1", "hi")]),
        ("[SPEAKER0]hello[SPEAKER0] again", [("SPEAKER0", "hello"), ("SPEAKER0", "again")]),
        (
            "Once.\n[speaker 12] one\n\n  two  \n[Speaker01] x",
            [(None, "Once."), ("SPEAKER12", "one\ntwo"), ("SPEAKER1", "x")],
        ),
        ("  no tags [here]\r\nat all ", [(None, "no tags [here]\nat all")]),
    ],
)
def test_a_script_is_read_turn_by_turn(script, expected):
    turns = parse_script(script)
    assert [(turn.speaker, turn.text) for turn in turns] == expected
    assert all(turn.codes is None for turn in turns)


@pytest.mark.parametrize("script", ["", " \n", "[SPEAKER0]", "[SPEAKER0] \n[SPEAKER1] hi"])
def test_a_script_with_an_empty_turn_is_rejected(script):
    with pytest.raises(TextError, match="give"):
        parse_script(script)


def test_a_script_rendered_and_read_again_is_the_same():
    script = "[SPEAKER0] One.\n[SPEAKER1] Two.\nThree.\n[SPEAKER0] Four."
    assert to_messages(Prompt(parse_script(script)))[-1]["content"] == script


# Voices, codes and invalid prompts.


def test_the_key_of_a_voice_is_that_of_its_content():
    voice = clone("Hello.")
    assert voice.key == clone("Hello.", name="ava").key
    others = [
        clone("Hello"),
        Voice(transcript="Hello.", codes=codes(seed=1)),
        Voice(transcript="Hello.", codes=codes().reshape(4, 6)),
        Voice(profile="Hello."),
        Voice(),
    ]
    assert len({voice.key, *(other.key for other in others)}) == 6


def test_voices_turns_and_prompts_are_frozen_and_can_be_dictionary_keys():
    for item in (clone("Hello."), REFERENCE, EXAMPLES["clone"][0]):
        assert {item: 1}[item] == 1
        with pytest.raises(dataclasses.FrozenInstanceError):
            item.name = "x"


@pytest.mark.parametrize("type_", [np.uint8, np.uint16, np.int16, np.int32, np.int64])
def test_codes_of_any_integer_type_are_copied_as_int64(type_):
    given = np.ones((8, 3), dtype=type_)
    voice, turn = Voice(transcript="Hello.", codes=given), Turn("Hello.", codes=given.T[:3].tolist())
    given[:] = 0
    assert voice.codes.dtype == turn.codes.dtype == np.int64
    assert voice.codes.all()
    assert voice.codes.flags.writeable


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 0), int),
        np.zeros((0, 3), int),
        np.zeros(8, int),
        np.zeros((1, 8, 3), int),
        np.zeros((8, 3)),
        -codes() - 1,
    ],
)
def test_codes_of_another_shape_type_or_range_are_rejected(wrong):
    for make in (
        lambda: Voice(transcript="Hello.", codes=wrong),
        lambda: Turn("Hello.", codes=wrong),
        lambda: Prompt(HELLO, profiles={"SPEAKER0": wrong}),
    ):
        with pytest.raises(CodesError, match=r"has (the code|codes of) "):
            make()


def test_codes_of_different_audio_tokenizers_cannot_be_mixed():
    with pytest.raises(CodesError, match=r"\[4, 8\]"):
        Prompt((Turn("A", codes=codes()[:4]), Turn("B", codes=codes())))
    with pytest.raises(CodesError, match=r"\[4, 8\]"):
        Prompt((REFERENCE, *HELLO), profiles={"SPEAKER0": codes()[:4]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codes": codes()}, "transcript"),
        ({"codes": codes(), "transcript": " "}, "transcript"),
        ({"transcript": "Hello."}, "without codes"),
        ({"transcript": "Hello.", "codes": codes(), "profile": "feminine"}, "one of them"),
        ({"profile": ""}, "one line"),
        ({"profile": "one\ntwo"}, "one line"),
        ({"profile": "<|eot_id|>"}, r"<\|eot_id\|>"),
    ],
)
def test_an_incomplete_voice_is_rejected_by_name(fields, message):
    with pytest.raises(VoiceError, match=message) as caught:
        Voice(name="ava", **fields)
    assert "'ava'" in str(caught.value)


@pytest.mark.parametrize("speaker", ["", "speaker0", "SPEAKER", "SPEAKER01", "SPEAKER-1", "Ava", "[SPEAKER0]", 0])
def test_a_speaker_of_another_form_is_rejected(speaker):
    with pytest.raises(PromptError, match="SPEAKER0, SPEAKER1"):
        Turn("Hello.", speaker)
    with pytest.raises(PromptError, match="SPEAKER0, SPEAKER1"):
        Prompt(HELLO, profiles={speaker: "feminine"})
    with pytest.raises(PromptError, match="SPEAKER0, SPEAKER1"):
        compose(HELLO, {speaker: Voice()})


@pytest.mark.parametrize("text", ["", " \n", None, 5])
def test_a_turn_without_text_is_rejected(text):
    with pytest.raises(TextError, match="give the text to speak"):
        Turn(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"turns": ()}, "no turns"),
        ({"turns": (*HELLO, REFERENCE)}, "turn 0 has no codes"),
        ({"scene": "quiet<|scene_desc_end|>"}, r"<\|scene_desc_end\|>"),
        ({"profiles": {"SPEAKER0": "calm<|eot_id|>"}}, r"<\|eot_id\|>"),
        ({"profiles": {"SPEAKER0": None}}, "None"),
        ({"profiles": {"SPEAKER0": "one\ntwo"}}, "one line"),
    ],
)
def test_a_prompt_that_cannot_be_rendered_is_rejected(fields, message):
    with pytest.raises(PromptError, match=message):
        Prompt(**{"turns": HELLO, **fields})


def test_a_special_token_in_a_turn_is_rejected_when_rendered():
    with pytest.raises(PromptError, match=r"<\|eot_id\|>"):
        rendered(Prompt((Turn("Hello.<|eot_id|>"),)))


def test_a_prompt_does_not_change_when_its_inputs_are_modified():
    turns, profiles = [*HELLO], {"SPEAKER0": "feminine"}
    prompt = Prompt(turns, "  ", profiles)
    turns.clear()
    profiles["SPEAKER0"] = "masculine"
    assert (prompt.turns, prompt.scene, dict(prompt.profiles)) == (HELLO, None, {"SPEAKER0": "feminine"})
    with pytest.raises(TypeError):
        prompt.profiles["SPEAKER0"] = "masculine"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Prompt(None),
        lambda: Prompt(Turn("Hi.")),
        lambda: Prompt({"text": "Hi."}),
        lambda: Prompt((5,)),
        lambda: Prompt((Turn("Hi."),), scene=5),
        lambda: Prompt((Turn("Hi."),), system=5),
        lambda: Prompt((Turn("Hi."),), profiles=["SPEAKER0"]),
        lambda: compose("Hi."),
        lambda: compose([Turn("Hi.")], "ava"),
        lambda: compose([Turn("Hi.")], {"SPEAKER0": "ava"}),
        lambda: compose([Turn("Hi.")], previous=None),
    ],
)
def test_arguments_of_another_type_are_rejected(make):
    with pytest.raises(PromptError, match=r"give a|give None"):
        make()


@pytest.mark.parametrize("script", [None, 5, ["Hi."]])
def test_a_script_is_a_text(script):
    with pytest.raises(TextError, match="give a text"):
        parse_script(script)
