"""Tests of audio as features for the audio tower, in addition to codes or instead of them."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from understanding import (
    BINS,
    FEATURES,
    RATE,
    K,
    audio,
    encode,
    make_codes,
    make_conversation,
    make_waveform,
    runs,
)

from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import AudioError, CodesError, PromptError
from higgs_audio.prompt.features import mel_windows
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.special_tokens import AUDIO_BOS, AUDIO_EOS, AUDIO_IN


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def processor(tokenizer):
    """Encodes audio as features only."""
    return HiggsAudioProcessor(tokenizer, **FEATURES, encode_audio_in_tokens=False)


@pytest.fixture(scope="module")
def processor_of_both(tokenizer):
    """Encodes audio as features, then codes."""
    return HiggsAudioProcessor(tokenizer, **FEATURES)


def test_a_recording_becomes_log_mel_windows_of_thirty_seconds():
    (full, all_real), (rest, some) = mel_windows(Waveform(make_waveform(31), RATE))
    assert full.shape == rest.shape == (128, 3000)
    assert (all_real, some) == (3000, 100)
    assert rest[:, some + 3 :].std() < 1e-6 < rest[:, : some - 3].std()  # silence


def test_thirty_one_seconds_are_two_windows_each_between_its_own_tokens(tokenizer):
    processor = HiggsAudioProcessor(tokenizer, encode_whisper_embed=True, num_mel_bins=BINS)
    inputs = encode(processor, make_conversation(audio(31, codes=make_codes(775))))
    opened, placeholder, closed = tokenizer.convert_tokens_to_ids([AUDIO_BOS, AUDIO_IN, AUDIO_EOS])
    columns = [750 + K + 1, 25 + K + 1]
    wanted = (
        [opened] + [placeholder] * (750 + columns[0]) + [closed, opened] + [placeholder] * (25 + columns[1]) + [closed]
    )
    ids = inputs["input_ids"][0].tolist()
    assert ids[ids.index(opened) : ids.index(opened) + len(wanted)] == wanted
    assert runs(inputs["feature_positions"][0]) == [750, 25]
    assert inputs["feature_attention_mask"].sum(1).tolist() == [3000, 100]
    first_codes = inputs["audio_input_ids"][0, [1, columns[0] + 1], 0]  # codebook 0 begins in column 1
    assert first_codes.tolist() == make_codes(775)[0, [0, 750]].tolist()


def test_a_last_window_without_a_feature_is_dropped(processor):
    assert len(encode(processor, make_conversation(audio(2.02)))["input_features"]) == 1
    assert len(encode(processor, make_conversation(audio(2.03)))["input_features"]) == 2
    with pytest.raises(AudioError, match="30 ms"):
        encode(processor, make_conversation(audio(0.02)))


def test_features_stand_before_the_codes_of_their_placeholder(processor_of_both):
    inputs = encode(processor_of_both, make_conversation(audio(0.4, codes=make_codes(10))))
    audio_in = inputs["input_ids"][0] == processor_of_both.tokenizer.convert_tokens_to_ids(AUDIO_IN)
    assert runs(audio_in) == [10 + 10 + K + 1]
    assert torch.equal(inputs["feature_positions"][0].nonzero(), audio_in.nonzero()[:10])
    assert inputs["audio_input_ids"].shape == (1, 10 + K + 1, K)


def test_the_audio_tokenizer_gives_the_codes_of_a_recording(tiny_checkpoint):
    processor = HiggsAudioProcessor.from_pretrained(tiny_checkpoint)
    both = HiggsAudioProcessor(processor.tokenizer, processor.audio_tokenizer, **FEATURES)
    inputs = encode(both, make_conversation(audio(1.0)))
    assert runs(inputs["feature_positions"][0]) == [25]
    assert torch.equal(inputs["audio_input_ids"], encode(processor, make_conversation(audio(1.0)))["audio_input_ids"])


def test_audio_of_the_assistant_is_encoded_as_codes(processor):
    item = {"type": "audio", "codes": make_codes(5)}
    inputs = encode(processor, [*make_conversation("Sing."), {"role": "assistant", "content": [item]}])
    assert "input_features" not in inputs
    assert inputs["audio_input_ids"].shape == (1, 5 + K + 1, K)


def test_labels_cover_the_answer_and_no_audio_of_the_user(processor_of_both):
    tokenizer = processor_of_both.tokenizer
    conversation = make_conversation(audio(0.4, codes=make_codes(10)), answer="a bell")
    inputs = encode(processor_of_both, conversation, add_generation_prompt=False)
    labels = inputs["labels"][0]
    assert tokenizer.decode(labels[labels != -100]) == "a bell<|eot_id|>"
    assert set(labels[inputs["feature_positions"][0]].tolist()) == {-100}
    assert set(inputs["audio_labels"].flatten().tolist()) == {-100}


def test_codes_without_a_recording_need_a_model_that_takes_codes(processor, processor_of_both):
    item = {"type": "audio", "codes": make_codes(5)}
    assert "input_features" not in encode(processor_of_both, make_conversation(item))
    with pytest.raises(PromptError, match="recording"):
        encode(processor, make_conversation(item))
    with pytest.raises(PromptError, match="alone"):
        encode(processor, make_conversation(audio(0.4, codes=make_codes(10))))


def test_codes_of_another_recording_are_rejected(processor_of_both):
    with pytest.raises(CodesError, match="40 frames beside a recording of about 60"):
        encode(processor_of_both, make_conversation(audio(2.4, codes=make_codes(40))))


def test_a_last_window_may_have_features_and_no_codes(processor_of_both):
    inputs = encode(processor_of_both, make_conversation(audio(2.04, codes=make_codes(50))))
    assert runs(inputs["feature_positions"][0]) == [50, 1]
    assert inputs["audio_input_ids"].shape == (1, 50 + K + 1, K)


def test_codes_that_end_before_the_last_window_belong_to_the_others(processor_of_both):
    """Two frames fewer than features are a rounding difference; the last window, with one feature, has no codes."""
    inputs = encode(processor_of_both, make_conversation(audio(2.04, codes=make_codes(49))))
    assert runs(inputs["feature_positions"][0]) == [50, 1]
    assert inputs["audio_input_ids"].shape == (1, 49 + K + 1, K)


def test_the_audio_of_a_prompt_as_string_is_encoded_too(processor):
    conversation = make_conversation(audio(0.4))
    text = encode(processor, conversation, tokenize=False)
    assert text.count(AUDIO_IN) == 1
    inputs, again = encode(processor, conversation), processor(text, audio(0.4))
    assert torch.equal(inputs["input_ids"], again["input_ids"])
    torch.testing.assert_close(inputs["input_features"], again["input_features"])
