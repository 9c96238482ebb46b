"""Tests of prompts, byte for byte, against Boson's own code and the template published for transformers.

The original strings are the output of the original program for the same inputs. The strings of the style "transformers"
are the output of the `chat_template.jinja` of the published checkpoint for every conversation below.
"""

import numpy as np
import pytest

from higgs_audio import NANO
from higgs_audio.errors import OptionError, PromptError
from higgs_audio.prompt.conversation import STYLES
from higgs_audio.prompt.processor import HiggsAudioProcessor

AUDIO = {"type": "audio", "codes": np.zeros((8, 2), int)}
IN = "<|audio_bos|><|AUDIO|><|audio_eos|>"
OUT = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"
GENERATE = "Generate audio following instruction."
ROOM = "Audio is recorded from a quiet room."
MULTISPEAKER = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
INTERLEAVE = (
    "<|generation_instruction_start|>\nGenerate interleaved transcript and audio that lasts for around 20 seconds.\n"
    "<|generation_instruction_end|>"
)
PROFILE = "He speaks with a clear British accent."


def header(role):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def text(content):
    return {"type": "text", "text": content}


def scene(*lines):
    """Returns a scene block as the original code renders it."""
    return "<|scene_desc_start|>\n" + "\n".join(lines) + "\n<|scene_desc_end|>"


def system(content):
    return f"<|begin_of_text|>{header('system')}{content}<|eot_id|>"


def user(content):
    return f"{header('user')}{content}<|eot_id|>"


def assistant(content, end="<|eot_id|>"):
    return f"{header('assistant')}{content}{end}"


ANSWER = header("assistant")
HELLO = f"{user('Hello.')}{ANSWER}"
SCENE_OF_ONE = f"{GENERATE}\n\n<|scene_desc_start|>\n{ROOM}\n\nSPEAKER0: "

ORIGINAL = {
    "plain": ([turn("system", GENERATE), turn("user", "Hello.")], system(GENERATE) + HELLO),
    "smart voice": (
        [turn("system", f"{GENERATE}\n\n{scene(ROOM)}"), turn("user", "Hello.")],
        system(f"{GENERATE}\n\n<|scene_desc_start|>\n{ROOM}\n<|scene_desc_end|>") + HELLO,
    ),
    "clone with scene": (
        [
            turn("system", f"{GENERATE}\n\n{scene(ROOM)}"),
            turn("user", "A reference."),
            turn("assistant", AUDIO),
            turn("user", "Hello."),
        ],
        system(f"{GENERATE}\n\n{scene(ROOM)}") + user("A reference.") + assistant(OUT) + HELLO,
    ),
    "clone without scene": (
        [turn("user", "A reference."), turn("assistant", [AUDIO]), turn("user", "Hello.")],
        "<|begin_of_text|>" + user("A reference.") + assistant(OUT) + HELLO,
    ),
    "reference in the system message": (
        [turn("system", [text(SCENE_OF_ONE), AUDIO, text("\n<|scene_desc_end|>")]), turn("user", "Hello.")],
        system(f"{SCENE_OF_ONE}{IN}\n<|scene_desc_end|>") + HELLO,
    ),
    "two references in the system message": (
        [
            turn("system", [text(SCENE_OF_ONE), AUDIO, text("\nSPEAKER1: "), AUDIO, text("\n<|scene_desc_end|>")]),
            turn("user", "Hello."),
        ],
        system(f"{SCENE_OF_ONE}{IN}\nSPEAKER1: {IN}\n<|scene_desc_end|>") + HELLO,
    ),
    "text profile": (
        [turn("system", f"{GENERATE}\n\n{scene(ROOM, '', 'SPEAKER0: ' + PROFILE)}"), turn("user", "Hello.")],
        system(f"{SCENE_OF_ONE}{PROFILE}\n<|scene_desc_end|>") + HELLO,
    ),
    "profile and reference": (
        [
            turn("system", [text(f"{SCENE_OF_ONE}{PROFILE}\nSPEAKER1: "), AUDIO, text("\n<|scene_desc_end|>")]),
            turn("user", "Hello."),
        ],
        system(f"{SCENE_OF_ONE}{PROFILE}\nSPEAKER1: {IN}\n<|scene_desc_end|>") + HELLO,
    ),
    "several smart voices": (
        [
            turn("system", f"{MULTISPEAKER}\n\n{scene(ROOM, '', 'SPEAKER0: feminine', 'SPEAKER1: masculine')}"),
            turn("user", "[SPEAKER0] A\n[SPEAKER1] B"),
        ],
        system(
            f"{MULTISPEAKER}\n\n<|scene_desc_start|>\n{ROOM}\n\nSPEAKER0: feminine\nSPEAKER1: masculine\n"
            "<|scene_desc_end|>"
        )
        + user("[SPEAKER0] A\n[SPEAKER1] B")
        + ANSWER,
    ),
    "several smart voices without scene": (
        [
            turn("system", f"{MULTISPEAKER}\n\n{scene('SPEAKER0: feminine', 'SPEAKER1: masculine')}"),
            turn("user", "[SPEAKER0] A\n[SPEAKER1] B"),
        ],
        system(f"{MULTISPEAKER}\n\n<|scene_desc_start|>\nSPEAKER0: feminine\nSPEAKER1: masculine\n<|scene_desc_end|>")
        + user("[SPEAKER0] A\n[SPEAKER1] B")
        + ANSWER,
    ),
    "several cloned voices": (
        [
            turn("system", GENERATE),
            turn("user", "[SPEAKER0] One."),
            turn("assistant", [AUDIO]),
            turn("user", "[SPEAKER1] Two."),
            turn("assistant", [AUDIO]),
            turn("user", "[SPEAKER0] A"),
        ],
        system(GENERATE)
        + user("[SPEAKER0] One.")
        + assistant(OUT)
        + user("[SPEAKER1] Two.")
        + assistant(OUT)
        + user("[SPEAKER0] A")
        + ANSWER,
    ),
    "interleaved": (
        [
            turn("system", f"{GENERATE}\n\n{scene('SPEAKER0: vocal fry;moderate pitch')}"),
            turn("user", INTERLEAVE),
            turn("assistant", [text("One."), AUDIO, text("Two."), AUDIO]),
        ],
        system(f"{GENERATE}\n\n<|scene_desc_start|>\nSPEAKER0: vocal fry;moderate pitch\n<|scene_desc_end|>")
        + user(INTERLEAVE)
        + assistant(f"One.{OUT}Two.{OUT}")
        + ANSWER,
    ),
    "recipient": (
        [turn("user", "Hello."), turn("assistant", "hi", recipient="bob")],
        "<|begin_of_text|>" + user("Hello.") + assistant("bob<|recipient|>hi") + ANSWER,
    ),
    "turns of the assistant in a row": (
        [turn("user", "Hello."), turn("assistant", "a"), turn("assistant", [AUDIO]), turn("assistant", "b")],
        "<|begin_of_text|>"
        + user("Hello.")
        + assistant("a", "<|eom_id|>")
        + assistant(OUT, "<|eom_id|>")
        + assistant("b")
        + ANSWER,
    ),
    "audio of the user": (
        [turn("user", [text("Who is it? "), AUDIO, text(" \n")])],
        "<|begin_of_text|>" + user(f"Who is it? {IN} \n") + ANSWER,
    ),
    "nothing is trimmed": (
        [turn("system", " a \n"), turn("user", [text(" b"), text("c ")])],
        system(" a \n") + user(" bc ") + ANSWER,
    ),
    "any other role": ([turn("tool", "42")], "<|begin_of_text|>" + f"{header('tool')}42<|eot_id|>" + ANSWER),
}

SYSTEM, USER = turn("system", GENERATE), turn("user", [text(" Hello.\n")])
HELLO_AUDIO = f"{HELLO}<|audio_out_bos|>"


def published_scene(body):
    return system(f"{GENERATE}\n\n<|scene_desc_start|>\n{body}\n<|scene_desc_end|>") + HELLO_AUDIO


TRANSFORMERS = {
    "plain": ([turn("system", [text(f" {GENERATE}\n")]), USER], system(GENERATE) + HELLO_AUDIO),
    "scene": ([SYSTEM, turn("scene", f"{ROOM} "), USER], published_scene(ROOM)),
    "scene in the system string": (
        [turn("system", f"{GENERATE}\n\n{scene(ROOM)}"), turn("user", "Hello. ")],
        published_scene(ROOM),
    ),
    "clone": (
        [SYSTEM, turn("user", "A reference."), turn("assistant", [AUDIO]), turn("user", "Hello.")],
        system(GENERATE) + user("A reference.") + assistant(OUT) + HELLO_AUDIO,
    ),
    "answers in a row": (
        [SYSTEM, turn("assistant", [AUDIO]), turn("assistant", [AUDIO]), USER],
        system(GENERATE) + assistant(OUT) + assistant(OUT) + HELLO_AUDIO,
    ),
    "references in the scene": (
        [SYSTEM, turn("scene", [text("Quiet room."), text("SPEAKER0:"), AUDIO, text("SPEAKER1:"), AUDIO]), USER],
        published_scene(f"Quiet room.\n\nSPEAKER0: {OUT}\nSPEAKER1: {OUT}"),
    ),
    "a scene that begins with a speaker": (
        [SYSTEM, turn("scene", [text("SPEAKER0:"), AUDIO]), USER],
        published_scene(f"SPEAKER0:\n\n {OUT}"),
    ),
    "a scene of audio alone": ([SYSTEM, turn("scene", [AUDIO, AUDIO]), USER], published_scene(f" {OUT}\n {OUT}")),
    "profiles in the scene": (
        [SYSTEM, turn("scene", [text(ROOM), text(" SPEAKER0: feminine"), text("SPEAKER1: masculine ")]), USER],
        published_scene(f"{ROOM}\n\nSPEAKER0: feminine\nSPEAKER1: masculine"),
    ),
    "profile and reference": (
        [
            SYSTEM,
            turn("scene", [text(ROOM), text("SPEAKER0: low"), AUDIO, text("SPEAKER1:"), AUDIO, text("End")]),
            USER,
        ],
        published_scene(f"{ROOM}\n\nSPEAKER0: low {OUT}\nSPEAKER1: {OUT}\nEnd"),
    ),
    "texts of a user are joined": (
        [SYSTEM, turn("user", [text(" Hel "), text(" lo. ")])],
        system(GENERATE) + user("Hello.") + ANSWER + "<|audio_out_bos|>",
    ),
}


@pytest.fixture(scope="module")
def processor():
    """A processor with nano's text tokenizer, without phonemization."""
    return HiggsAudioProcessor(HiggsAudioProcessor.from_pretrained(NANO).tokenizer)


def render(processor, conversation, **options):
    return processor.apply_chat_template(conversation, tokenize=False, allow_special=True, **options)


@pytest.mark.parametrize("case", ORIGINAL)
def test_original_prompts(processor, case):
    conversation, expected = ORIGINAL[case]
    assert render(processor, conversation) == expected
    assert render(processor, conversation, force_audio=True) == expected + "<|audio_out_bos|>"
    assert render(processor, conversation, add_generation_prompt=False) == expected.removesuffix(ANSWER)


@pytest.mark.parametrize("case", ORIGINAL)
def test_original_prompts_have_their_special_tokens_as_single_ids(processor, case):
    """The ids are those of the tokenized string, with one placeholder for each audio."""
    conversation, expected = ORIGINAL[case]
    encoded = processor.apply_chat_template(conversation, allow_special=True).input_ids[0].tolist()
    wanted = processor.tokenizer.encode(expected, add_special_tokens=False)
    held = processor.tokenizer.convert_tokens_to_ids(["<|AUDIO|>", "<|AUDIO_OUT|>", "<|reserved_special_token_6|>"])
    assert [i for i in encoded if i not in held] == [i for i in wanted if i not in held]


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_prompts_of_the_template_published_for_transformers(processor, case):
    conversation, expected = TRANSFORMERS[case]
    assert render(processor, conversation, style="transformers") == expected
    open_end = f"{ANSWER}<|audio_out_bos|>"
    finished = render(processor, conversation, style="transformers", add_generation_prompt=False)
    assert finished == expected.removesuffix(open_end)


def test_audio_of_a_published_scene_takes_the_placeholders_of_an_answer_and_is_not_trained(processor):
    conversation, _ = TRANSFORMERS["references in the scene"]
    inputs = processor.apply_chat_template(conversation, style="transformers")
    ids = processor.tokenizer.convert_tokens_to_ids(["<|AUDIO_OUT|>", "<|reserved_special_token_6|>"])
    assert [inputs.input_ids[0].tolist().count(i) for i in ids] == [2 * 4, 2 * 7]
    assert (inputs.audio_labels == -100).all()
    assert inputs.audio_input_ids.shape == (1, 2 * 11, 8)


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        ([turn("user", "Hello.")], "system message"),
        ([turn("system", [AUDIO]), USER], "system message"),
        ([turn("system", [text("a"), text("b")]), USER], "system message of one text"),
        ([SYSTEM, turn("assistant", "Hi.")], "not one audio item"),
        ([SYSTEM, turn("assistant", [AUDIO, AUDIO])], "not one audio item"),
        ([SYSTEM, turn("user", [AUDIO])], "message 1 .user. has audio"),
        ([SYSTEM, turn("assistant", [AUDIO], recipient="bob")], "recipient"),
        ([SYSTEM, USER, turn("scene", "Late.")], "message 2 is a scene"),
    ],
)
def test_content_that_the_published_template_rejects_or_drops_is_rejected(processor, conversation, expected):
    with pytest.raises(PromptError, match=expected):
        render(processor, conversation, style="transformers")


def test_there_are_two_styles(processor):
    assert STYLES == ("original", "transformers")
    with pytest.raises(OptionError, match="did you mean 'transformers'"):
        render(processor, [USER], style="transformer")


# Invalid input.


def test_two_audio_items_need_two_recordings(processor):
    conversation = [turn("user", [AUDIO, {"type": "audio"}])]
    with pytest.raises(PromptError, match=r"1 recordings for 2 audio items: there is no audio in item 1.*audio_url"):
        processor.apply_chat_template(conversation)
    with pytest.raises(PromptError, match="1 audios for 2 placeholders; give one for each"):
        processor(render(processor, conversation), audio=[{"codes": np.zeros((8, 2), int)}])


@pytest.mark.parametrize("content", [[], [{"type": "audio"}], [{"type": "audio", "audio_url": ""}]])
def test_an_assistant_turn_without_audio_is_rejected(processor, content):
    with pytest.raises(PromptError, match="give"):
        processor.apply_chat_template([turn("user", "Hello."), turn("assistant", content)])
