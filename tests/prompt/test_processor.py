"""Tests of the processor: rendering, token ids, labels, and invalid conversations."""

import numpy as np
import pytest
import torch
from conversations import ASSISTANT, SYSTEM, USER, K, V, clone, codes_item, make_codes, message, render

from higgs_audio.delay import apply_delay, delay_labels
from higgs_audio.errors import AudioError, CodesError, OptionError, PromptError
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.special_tokens import AUDIO_DELAY, AUDIO_EOS, AUDIO_IN, AUDIO_OUT, AUDIO_OUT_BOS, END_OF_TURN

SMART_VOICE = (
    f"<|begin_of_text|>{SYSTEM}Generate audio following instruction.\n\n<|scene_desc_start|>\n"
    f"Audio is recorded from a quiet room.\n<|scene_desc_end|><|eot_id|>{USER}Hello.<|eot_id|>{ASSISTANT}"
)


# Rendering.


def test_plain_speech_renders_as_in_the_original(processor):
    conversation = [message("system", "Generate audio following instruction."), message("user", "Hello.")]
    expected = (
        f"<|begin_of_text|>{SYSTEM}Generate audio following instruction.<|eot_id|>{USER}Hello.<|eot_id|>{ASSISTANT}"
    )
    assert render(processor, conversation) == expected
    assert render(processor, conversation, add_generation_prompt=False) == expected.removesuffix(ASSISTANT)
    assert render(processor, conversation, force_audio=True) == expected + "<|audio_out_bos|>"


def test_both_styles_of_a_scene_render_to_the_same_prompt(processor):
    block = "\n\n<|scene_desc_start|>\nAudio is recorded from a quiet room.\n<|scene_desc_end|>"
    mission = [message("system", "Generate audio following instruction." + block), message("user", "Hello.")]
    roles = [
        message("system", [{"type": "text", "text": " Generate audio following instruction.\n"}]),
        message("scene", [{"type": "text", "text": "Audio is recorded from a quiet room. "}]),
        message("user", [{"type": "text", "text": " Hello."}]),
    ]
    assert render(processor, mission) == render(processor, roles) == SMART_VOICE


def test_texts_are_not_trimmed_without_a_scene_role(processor):
    assert render(processor, [message("user", " a \n")]).startswith(f"<|begin_of_text|>{USER} a \n<|eot_id|>")


def test_voice_clone_without_a_system_turn(processor):
    reference = f"{USER}A reference.<|eot_id|>{ASSISTANT}<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|><|eot_id|>"
    assert render(processor, clone()[1:]) == f"<|begin_of_text|>{reference}{USER}Hello.<|eot_id|>{ASSISTANT}"


def test_scene_with_reference_audio_of_two_speakers(processor):
    audio = "<|audio_bos|><|AUDIO|><|audio_eos|>"
    expected = (
        f"<|begin_of_text|>{SYSTEM}Generate audio following instruction.\n\n<|scene_desc_start|>\nQuiet room.\n\n"
        f"SPEAKER0: {audio}\nSPEAKER1: {audio}\n<|scene_desc_end|><|eot_id|>{USER}Hi<|eot_id|>{ASSISTANT}"
    )
    scene = ["Quiet room.", "SPEAKER0:", codes_item(2), "SPEAKER1:", codes_item(3)]
    roles = [message("system", "Generate audio following instruction."), message("scene", scene), message("user", "Hi")]
    start = "Generate audio following instruction.\n\n<|scene_desc_start|>\nQuiet room.\n\nSPEAKER0: "
    system = [start, codes_item(2), "\nSPEAKER1: ", codes_item(3), "\n<|scene_desc_end|>"]
    mission = [message("system", system), message("user", "Hi")]
    assert render(processor, roles) == render(processor, mission) == expected


def test_scene_with_voice_profiles(processor):
    roles = [
        message("system", "S"),
        message("scene", ["Quiet room.", "SPEAKER0: feminine", "SPEAKER1: masculine"]),
        message("user", "[SPEAKER0] A\n[SPEAKER1] B"),
    ]
    assert render(processor, roles, add_generation_prompt=False) == (
        f"<|begin_of_text|>{SYSTEM}S\n\n<|scene_desc_start|>\nQuiet room.\n\nSPEAKER0: feminine\nSPEAKER1: masculine\n"
        f"<|scene_desc_end|><|eot_id|>{USER}[SPEAKER0] A\n[SPEAKER1] B<|eot_id|>"
    )


def test_recipient_and_consecutive_assistant_turns(processor):
    conversation = [message("assistant", "hi", recipient="bob"), message("assistant", ["a", "b"]), message("user", "c")]
    assert render(processor, conversation, add_generation_prompt=False) == (
        f"<|begin_of_text|>{ASSISTANT}bob<|recipient|>hi<|eom_id|>{ASSISTANT}ab<|eot_id|>{USER}c<|eot_id|>"
    )


def test_user_audio_is_read_and_a_batch_gives_a_list(processor):
    conversation = [message("user", ["listen: ", codes_item(2)])]
    rendered = f"<|begin_of_text|>{USER}listen: <|audio_bos|><|AUDIO|><|audio_eos|><|eot_id|>{ASSISTANT}"
    assert render(processor, [conversation, conversation]) == [rendered, rendered]


def test_sound_tags_are_tokens_in_every_role(processor, tokenizer):
    ids = processor.apply_chat_template([message("user", "<SE>[Laughter]</SE>ok")]).input_ids[0].tolist()
    assert {tokenizer.convert_tokens_to_ids("<SE>"), tokenizer.convert_tokens_to_ids("</SE>")} <= set(ids)


# Ids.


def collapse(ids, tokenizer):
    """Replaces the placeholders of each audio with one placeholder."""
    audio_in, audio_out, delay = tokenizer.convert_tokens_to_ids([AUDIO_IN, AUDIO_OUT, AUDIO_DELAY])
    kept = [i for i in ids if i != delay]
    return [i for n, i in enumerate(kept) if n == 0 or i not in (audio_in, audio_out) or i != kept[n - 1]]


def test_ids_are_those_of_the_rendered_string_tokenized_as_a_whole(processor, tokenizer):
    for conversation in (clone(), [message("user", ["[SPEAKER", "0] hi"])], [message("user", "\n<SE>x</SE>")]):
        ids = processor.apply_chat_template(conversation).input_ids[0].tolist()
        expected = tokenizer.encode(render(processor, conversation), add_special_tokens=False)
        assert collapse(ids, tokenizer) == expected


def test_piecewise_tokenizes_each_text_by_itself(processor, tokenizer):
    conversation = [message("user", ["[SPEAKER", "0] hi"])]
    whole = processor.apply_chat_template(conversation).input_ids[0].tolist()
    parts = processor.apply_chat_template(conversation, piecewise=True).input_ids[0].tolist()
    assert len(parts) > len(whole)
    assert tokenizer.decode(parts) == tokenizer.decode(whole)


def test_each_audio_takes_one_placeholder_per_delayed_column(processor, tokenizer):
    conversation = [message("user", [codes_item(3, seed=1)]), message("assistant", [codes_item(25, seed=2)])]
    inputs = processor.apply_chat_template(conversation)
    ids = inputs.input_ids[0].tolist()
    audio_in, audio_out, delay = tokenizer.convert_tokens_to_ids([AUDIO_IN, AUDIO_OUT, AUDIO_DELAY])
    assert (ids.count(audio_in), ids.count(audio_out), ids.count(delay)) == (3 + 9, 27, 7)
    assert ids[ids.index(audio_out) :][:34] == [audio_out] * 27 + [delay] * 7
    expected = [apply_delay(torch.as_tensor(make_codes(*f)), V, V + 1).T for f in ((3, 1), (25, 2))]
    assert torch.equal(inputs.audio_input_ids[0], torch.cat(expected))
    assert inputs.audio_input_ids_mask.all()


def test_a_batch_pads_tokens_on_the_left_and_columns_on_the_right(processor, tokenizer):
    short = [message("user", "Hi")]
    batch = processor.apply_chat_template([clone(4), short, clone(2)])
    alone = [processor.apply_chat_template(conversation) for conversation in (clone(4), short, clone(2))]
    for row, single in enumerate(alone):
        length, columns = single.input_ids.shape[1], single.audio_input_ids.shape[1]
        assert batch.attention_mask[row].sum() == length
        assert torch.equal(batch.input_ids[row, -length:], single.input_ids[0])
        assert torch.equal(batch.labels[row, -length:], single.labels[0])
        assert (batch.input_ids[row, :-length] == tokenizer.pad_token_id).all()
        assert batch.audio_input_ids_mask[row].tolist() == [True] * columns + [False] * (13 - columns)
        assert torch.equal(batch.audio_input_ids[row, :columns], single.audio_input_ids[0])
        assert (batch.audio_labels[row, columns:] == -100).all()
    assert alone[1].audio_input_ids.shape == (1, 0, K)


# Labels.


def trained_tokens(processor, inputs):
    labels = inputs.labels[0]
    assert torch.equal(labels[labels != -100], inputs.input_ids[0][labels != -100])
    return processor.tokenizer.convert_ids_to_tokens(labels[labels != -100].tolist())


def test_an_audio_turn_trains_its_closing_tokens_codes_and_one_eos_per_codebook(processor):
    inputs = processor.apply_chat_template(clone(5))
    assert trained_tokens(processor, inputs) == [AUDIO_OUT_BOS, AUDIO_EOS, END_OF_TURN]
    assert torch.equal(inputs.audio_labels[0], delay_labels(torch.as_tensor(make_codes(5)), V + 1).T)


def test_user_audio_and_turns_before_start_index_are_not_trained(processor):
    conversation = [
        message("user", [codes_item(2)]),
        message("assistant", "one", recipient="bob"),
        message("user", "two"),
        message("assistant", ["x", codes_item(3)]),
    ]
    inputs = processor.apply_chat_template(conversation, add_generation_prompt=False, start_index=3)
    expected = [*"bob", "<|recipient|>", "x", AUDIO_OUT_BOS, AUDIO_EOS, END_OF_TURN]
    assert trained_tokens(processor, inputs) == expected
    assert (inputs.audio_labels[0, :11] == -100).all()
    assert (inputs.audio_labels[0, 11:] != -100).sum() == K * (3 + 1)
    everything = trained_tokens(processor, processor.apply_chat_template(conversation, add_generation_prompt=False))
    assert "".join(everything).startswith("bob<|recipient|>one<|eot_id|>x<|audio_out_bos|>")


def test_start_index_counts_the_given_messages_and_may_differ_in_a_batch(processor):
    roles = [message("system", "S"), message("scene", "Q"), *clone()[1:3], *clone()[1:3]]
    batch = processor.apply_chat_template([roles, roles], start_index=[4, None])
    assert [(labels != -100).sum().item() for labels in batch.labels] == [3, 6]
    with pytest.raises(OptionError, match="2 conversations"):
        processor.apply_chat_template([roles, roles], start_index=[4])


def test_a_token_that_reaches_from_the_header_into_the_text_is_trained(processor):
    inputs = processor.apply_chat_template([message("assistant", "\nhi")], add_generation_prompt=False)
    assert processor.tokenizer.convert_ids_to_tokens(inputs.input_ids[0])[4:] == ["\n", "\n\n", "h", "i", END_OF_TURN]
    assert trained_tokens(processor, inputs) == ["\n\n", "h", "i", END_OF_TURN]


def test_labels_can_be_omitted(processor):
    assert "labels" not in processor.apply_chat_template(clone(), output_labels=False)


# Special tokens in texts.


@pytest.mark.parametrize("role", ["user", "assistant", "scene"])
@pytest.mark.parametrize("token", ["<|eot_id|>", "<|AUDIO_OUT|>", "<|scene_desc_end|>", "<|no_such|>"])
def test_special_tokens_in_a_text_are_rejected(processor, role, token):
    system = [message("system", "s")] if role == "scene" else []
    with pytest.raises(PromptError, match="special token"):
        processor.apply_chat_template([*system, message(role, f"a{token}b")])


def test_a_system_text_may_contain_scene_tags_but_no_turns(processor):
    with pytest.raises(PromptError, match="eot_id"):
        processor.apply_chat_template([message("system", "a<|eot_id|>"), message("user", "b")])


def test_allowed_special_tokens_are_spelled_and_never_become_tokens(processor, tokenizer):
    conversation = [message("user", "a<|eot_id|><|AUDIO_OUT|>b")]
    ids = processor.apply_chat_template(conversation, allow_special=True).input_ids[0].tolist()
    assert ids.count(tokenizer.convert_tokens_to_ids("<|eot_id|>")) == 1
    assert tokenizer.convert_tokens_to_ids("<|AUDIO_OUT|>") not in ids
    assert "a<|eot_id|><|AUDIO_OUT|>b" in tokenizer.decode(ids)


def test_a_generation_instruction_in_a_user_turn_is_a_tag_when_special_tokens_are_allowed(processor, tokenizer):
    text = "<|generation_instruction_start|>\nGo.\n<|generation_instruction_end|>"
    ids = processor.apply_chat_template([message("user", text)], allow_special=True).input_ids[0].tolist()
    assert tokenizer.convert_tokens_to_ids("<|generation_instruction_start|>") in ids


# Rejected conversations.


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        ([], "at least one message"),
        ("Hello.", "at least one message"),
        ([message("sytem", [codes_item(1)])], "did you mean 'system'"),
        ([message("user", [{"type": "audoi", "path": "x"}])], "did you mean 'audio'"),
        ([message("user", [{"type": "audio", "uri": "x"}])], "did you mean 'url'"),
        ([message("user", "x", name="y")], "key 'name'"),
        ([message("user", [])], "content"),
        ([message("user", None)], "content"),
        ([message("user", [{"type": "text", "text": None}])], "string"),
        ([message("", "x")], "role"),
        ([{"content": "x"}], "role"),
        ([message("user", "x", recipient="bob")], "recipient"),
        ([message("assistant", [{"type": "audio"}])], "no audio in it"),
        ([message("assistant", [codes_item(0)])], "no frames"),
        ([message("assistant", [{**codes_item(1), "path": "x"}])], "path and codes"),
        ([message("scene", "x"), message("user", "y")], "after a system message"),
    ],
)
def test_conversations_that_cannot_be_rendered(processor, conversation, expected):
    with pytest.raises(PromptError, match=expected):
        processor.apply_chat_template(conversation)


@pytest.mark.parametrize("codes", [np.zeros((7, 3), int), np.zeros((8, 3)), np.full((8, 3), 1024), np.zeros(8, int)])
def test_codes_of_another_shape_type_or_range_are_rejected(processor, codes):
    with pytest.raises(CodesError):
        processor.apply_chat_template([message("user", [{"type": "audio", "codes": codes}])])


@pytest.mark.parametrize("url", ["https://example.org/a.wav", "HTTP://example.org/a", "s3://bucket/a.wav", "data:x"])
def test_audio_that_cannot_be_downloaded_is_rejected(processor, url):
    with pytest.raises(AudioError):
        processor.apply_chat_template([message("user", [{"type": "audio", "audio_url": url}])])


def test_unknown_options_are_rejected(processor, tokenizer):
    with pytest.raises(OptionError, match="return_tensors"):
        processor.apply_chat_template(clone(), return_tensors="np")
    with pytest.raises(OptionError, match="did you mean 'text_frontend'"):
        HiggsAudioProcessor(tokenizer, text_frontends="none")
    with pytest.raises(OptionError, match="did you mean 'phonemes'"):
        HiggsAudioProcessor(tokenizer, text_frontend="phoneme")
