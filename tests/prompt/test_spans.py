"""Tests of the spans of turns that the renderer returns, ids derived from them, and the check without rendering."""

import dataclasses
import typing

import numpy as np
import pytest
import torch
from conversations import K, V, clone, codes_item, make_codes, message
from tracing import record_calls

from higgs_audio import NANO
from higgs_audio.errors import CodesError, HiggsAudioError, OptionError, PromptError, TextError
from higgs_audio.generation.guidance import last_text, mask_last_text
from higgs_audio.prompt.config import ProcessorConfig, ProcessorFields
from higgs_audio.prompt.options import RenderKeywords, RenderOptions
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.special_tokens import AUDIO_OUT_BOS

SCENE = "<|scene_desc_start|>\nSPEAKER0: "
CONVERSATIONS = {
    "text": [message("user", "Hello.")],
    "clone": clone(),
    "tags": [message("system", "S"), message("user", "[SPEAKER0] One.\n[SPEAKER1] Two.")],
    "tag without a space": [message("user", "[SPEAKER12]One.")],
    "tag before a line end": [message("user", "[SPEAKER0]\nOne.")],
    "no tag at the beginning": [message("user", "One. [SPEAKER0] Two.")],
    "sounds": [message("user", "<SE>[Laughter]</SE> Yes.")],
    "audio in a user turn": [message("user", ["Who? ", codes_item(2), " Say it."])],
    "several turns": [
        message("system", [f"G\n\n{SCENE}", codes_item(3), "\n<|scene_desc_end|>"]),
        message("user", "[SPEAKER0] One."),
        message("assistant", [codes_item(2)]),
        message("user", "[SPEAKER1] Two."),
        message("assistant", ["text", codes_item(4), "more", codes_item(1)], recipient="bob"),
        message("assistant", "b"),
        message("user", "[SPEAKER1] Three."),
    ],
}


@pytest.fixture(scope="module")
def phonemes():
    """A processor with a text front end."""
    return HiggsAudioProcessor.from_pretrained(NANO)


@pytest.fixture(params=["none", "phonemes"])
def any_processor(request, processor, phonemes):
    return processor if request.param == "none" else phonemes


def encode(processor, conversation, **options):
    (prompt,) = processor.encode_conversations([conversation], **options)
    return prompt


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("piecewise", [False, True])
def test_the_last_user_text_is_the_one_that_is_found_in_the_ids(any_processor, name, piecewise):
    prompt = encode(any_processor, CONVERSATIONS[name], force_audio=True, piecewise=piecewise)
    turn, tokenizer = prompt.last_user_turn, any_processor.tokenizer
    assert (turn.start, turn.stop) == last_text(prompt.input_ids, tokenizer)
    assert torch.equal(any_processor.mask_last_text(prompt), mask_last_text(prompt.input_ids, tokenizer))


def test_spans_are_the_bodies_of_the_turns(processor):
    prompt = encode(processor, CONVERSATIONS["several turns"], force_audio=True)
    assert [turn.role for turn in prompt.turns] == [
        message["role"] for message in CONVERSATIONS["several turns"]
    ]  # without the header of the generation prompt
    texts = [processor.tokenizer.decode(prompt.input_ids[turn.start : turn.stop]) for turn in prompt.turns]
    assert [texts[number] for number in (1, 3, 5, 6)] == [
        "[SPEAKER0] One.",
        "[SPEAKER1] Two.",
        "b",
        "[SPEAKER1] Three.",
    ]
    assert texts[4].startswith("bob<|recipient|>text<|audio_out_bos|>") and texts[4].endswith("<|audio_eos|>")
    assert [turn.tag_length for turn in prompt.turns] == [0, 1, 0, 1, 0, 0, 1]


def test_spans_contain_the_placeholders_of_every_audio(processor):
    prompt = encode(processor, CONVERSATIONS["several turns"])
    spans = [span for turn in prompt.turns for span in turn.audio]
    assert [stop - start for start, stop in spans] == [frames + K + 1 for frames in (3, 2, 4, 1)]
    opening = processor.tokenizer.convert_tokens_to_ids(AUDIO_OUT_BOS)
    found = (torch.eq(prompt.input_ids, opening).nonzero().squeeze(1) + 1).tolist()
    assert [start for turn in prompt.turns_of("assistant") for start, _ in turn.audio] == found


def test_rendered_strings_have_the_spans_of_their_conversation(processor):
    conversation = [*clone()[:3], message("user", ["hear ", codes_item(2, seed=3)])]
    rendered = processor.apply_chat_template(conversation, tokenize=False)
    seen = []

    class Recorder(HiggsAudioProcessor):
        def collate(self, prompts, *args):
            seen.extend(prompts)
            return super().collate(prompts, *args)

    Recorder(processor.tokenizer, processor.audio_tokenizer)(
        rendered, audio=[{"codes": make_codes(5)}, {"codes": make_codes(2, seed=3)}]
    )
    assert seen[0].turns == encode(processor, conversation).turns


def test_an_empty_turn_has_an_empty_span(processor):
    prompt = encode(processor, [message("user", "One."), message("user", "")])
    turn = prompt.last_user_turn
    assert turn.start == turn.stop == last_text(prompt.input_ids, processor.tokenizer)[0]


def test_a_prompt_without_a_user_turn_has_no_text_to_mask(processor):
    with pytest.raises(PromptError, match="no user turn"):
        processor.mask_last_text(encode(processor, [message("system", "S")]))


def test_padding_on_the_right_moves_no_column_and_no_label(processor):
    prompts = processor.encode_conversations([clone(4), [message("user", "Hi")]])
    left, right = processor.collate(prompts), processor.collate(prompts, padding_side="right")
    for row, prompt in enumerate(prompts):
        length = len(prompt.input_ids)
        for name, value in (("input_ids", prompt.input_ids), ("labels", prompt.labels)):
            assert torch.equal(right[name][row, :length], value)
            assert torch.equal(right[name][row, length:], left[name][row, :-length])
        assert right["attention_mask"][row].tolist() == [1] * length + [0] * (right["labels"].shape[1] - length)
    for name in ("audio_input_ids", "audio_input_ids_mask", "audio_labels"):
        assert torch.equal(left[name], right[name])


# The check without rendering.


@pytest.mark.parametrize(
    ("conversation", "error"),
    [
        ([], PromptError),
        ([message("user", "a<|eot_id|>")], PromptError),
        ([message("user", "...")], TextError),
        ([message("user", "Hello.\n你好")], TextError),
        ([message("user", "[SPEAKER0] ...")], TextError),
        ([message("user", [{"type": "audio"}])], PromptError),
        ([message("user", [codes_item(0)])], PromptError),
        ([message("user", [{"type": "audio", "codes": np.full((K, 3), V)}])], CodesError),
        ([message("user", [{"type": "audio", "codes": np.zeros((K - 1, 3), int)}])], CodesError),
    ],
)
def test_the_check_finds_what_rendering_rejects(phonemes, conversation, error):
    with pytest.raises(error) as checked:
        phonemes.check_conversation(conversation)
    with pytest.raises(error) as rendered:
        phonemes.apply_chat_template(conversation)
    if error is not PromptError:
        assert str(checked.value) == str(rendered.value)


def test_the_check_accepts_what_can_be_rendered(any_processor):
    for conversation in CONVERSATIONS.values():
        any_processor.check_conversation(conversation)
    any_processor.check_conversation([message("user", "<SE>[Laughter]</SE>...")])


def test_the_check_renders_no_text(phonemes):
    """Phonemizing and tokenizing, which the encoder does, are what takes time."""
    conversation = [message("user", "The sun rises in the east.")]
    with record_calls() as calls:
        phonemes.check_conversation(conversation)
    assert calls.indices_in("prompt.conversation")
    assert not calls.indices_in("text.phonemes", "prompt.encoder")
    with record_calls() as calls:
        phonemes.apply_chat_template([message("user", "Seventeen herons, and no other text is equal to this.")])
    assert calls.indices_in("text.phonemes") and calls.indices_in("prompt.encoder")


# Options.


@pytest.mark.parametrize(("options", "keywords"), [(RenderOptions, RenderKeywords), (ProcessorConfig, ProcessorFields)])
def test_keyword_types_are_those_of_the_fields(options, keywords):
    assert typing.get_type_hints(keywords) == {field.name: field.type for field in dataclasses.fields(options)}


def test_an_unknown_option_of_rendering_suggests_the_nearest(processor):
    with pytest.raises(OptionError, match="did you mean 'force_audio'"):
        processor.apply_chat_template(clone(), force_adio=True)
    assert issubclass(OptionError, HiggsAudioError)
