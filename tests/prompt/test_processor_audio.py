"""Tests of the processor: audio input and output, phonemes, files, and use with a model."""

import base64
import json

import numpy as np
import pytest
import torch
from conversations import ASSISTANT, SYSTEM, USER, K, V, clone, codes_item, make_codes, make_wav, message, render
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoProcessor, PreTrainedTokenizerFast

from higgs_audio.audio.waveform import Waveform
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.delay import apply_delay
from higgs_audio.errors import AudioError, CheckpointError, OptionError, PromptError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.special_tokens import AUDIO_DELAY, AUDIO_EOS, AUDIO_IN, AUDIO_OUT, AUDIO_OUT_BOS

# Audio input and output.


def test_all_sources_of_a_recording_give_the_same_codes(processor, tmp_path):
    """A file whose path needs quoting in a URL gives the same codes, however it is passed."""
    content = make_wav()
    path = tmp_path / "a reference.wav"
    path.write_bytes(content)
    encoded = base64.b64encode(content).decode()
    samples = np.frombuffer(content[44:], "<i2").astype(np.float32) / 32768
    items = [
        {"audio_url": str(path)},
        {"audio_url": path.as_uri()},
        {"audio_url": f"data:audio/wav;base64,{encoded}"},
        {"audio_url": "placeholder", "raw_audio": encoded},
        {"path": path},
        {"url": str(path)},
        {"audio": samples, "sampling_rate": 16000},
        {"audio": torch.from_numpy(samples), "sampling_rate": 16000},
        {"audio": {"array": samples, "sampling_rate": 16000}},
        {"audio": Waveform(samples, 16000)},
        {"audio": content},
    ]
    batch = processor.apply_chat_template([[message("user", [{"type": "audio", **item}])] for item in items])
    assert batch.audio_input_ids.shape == (len(items), 13 + 9, K)  # 0.5 s and 841 samples: 13 frames
    assert all(torch.equal(row, batch.audio_input_ids[0]) for row in batch.audio_input_ids)


def test_arrays_without_a_rate_have_the_given_one(processor):
    samples = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    conversation = [message("user", [{"type": "audio", "audio": samples}])]
    assert processor.apply_chat_template(conversation, sampling_rate=16000).audio_input_ids.shape[1] == 25 + 9
    assert processor.apply_chat_template(conversation).audio_input_ids.shape[1] == 17 + 9


def test_rendered_strings_are_encoded_like_their_conversation(processor):
    conversation = [*clone()[:3], message("user", ["hear ", codes_item(2, seed=3)])]
    audio = [{"codes": make_codes(5)}, {"codes": make_codes(2, seed=3)}]
    direct = processor.apply_chat_template(conversation)
    encoded = processor(text=render(processor, conversation), audio=audio, output_labels=True)
    assert direct.keys() == encoded.keys()
    assert all(torch.equal(direct[key], encoded[key]) for key in direct)


def test_strings_need_one_audio_for_each_placeholder(processor):
    text = render(processor, clone())
    with pytest.raises(PromptError, match="2 audios for 1 placeholders"):
        processor(text=text, audio=[make_wav(), make_wav()])
    with pytest.raises(PromptError, match="0 audios for 1"):
        processor(text=text)
    with pytest.raises(PromptError, match="reserved_special_token_6"):
        processor(text=text + AUDIO_DELAY, audio=make_wav())


def test_decode_joins_segments_and_trims_incomplete_frames(processor, codec):
    first, second = (torch.as_tensor(make_codes(n, seed=n)) for n in (3, 4))
    segments = [apply_delay(first, V, V + 1), apply_delay(second, V, V + 1)[:, :-3]]  # the second segment is truncated
    ids = processor.tokenizer.encode("prompt<|audio_out_bos|>said<|eot_id|>", add_special_tokens=False)
    response = processor.decode(torch.tensor([ids]), segments, prompt_token_length=6)
    expected = [codec.decode(codes[None]).audio_values[0, 0] for codes in (first, second[:, :2])]
    assert np.array_equal(response.audio, torch.cat(expected).clamp(-1, 1).numpy())
    assert response.audio.dtype == np.float32
    assert (response.generated_text, response.sampling_rate) == ("said", 24000)


def test_a_response_without_a_complete_frame_has_no_audio(processor, tmp_path):
    cut = apply_delay(torch.as_tensor(make_codes(3)), V, V + 1)[:, :8]
    assert processor.decode([1, 2], [cut]).audio is None
    assert processor.decode([1, 2], []).audio is None
    with pytest.raises(AudioError, match="no audio to save"):
        processor.save_audio(None, tmp_path / "x.wav")


def test_batches_are_decoded_row_by_row(processor):
    segment = apply_delay(torch.as_tensor(make_codes(2)), V, V + 1)
    responses = processor.batch_decode(torch.zeros(2, 3, dtype=torch.long), [[segment], []])
    assert [None if r.audio is None else len(r.audio) for r in responses] == [1920, None]
    with pytest.raises(PromptError, match="batch_decode"):
        processor.decode(torch.zeros(2, 3, dtype=torch.long), [segment])


def test_save_audio_requires_one_file_per_response(processor, tmp_path):
    samples = np.zeros(960, np.float32)
    processor.save_audio([samples, torch.zeros(960)], [tmp_path / "a.wav", tmp_path / "b.flac"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.flac"]
    with pytest.raises(PromptError, match="2 waveforms and 1 files"):
        processor.save_audio([samples, samples], tmp_path / "c.wav")


def test_a_processor_without_audio_tokenizer_accepts_codes_only(tokenizer):
    processor = HiggsAudioProcessor(tokenizer)
    assert processor.apply_chat_template(clone()).audio_input_ids.shape == (1, 14, K)
    with pytest.raises(CheckpointError, match="no audio tokenizer"):
        processor.apply_chat_template([message("user", [{"type": "audio", "audio": make_wav()}])])


def test_an_audio_tokenizer_or_text_tokenizer_that_does_not_fit_is_rejected(tokenizer, codec):
    with pytest.raises(CheckpointError, match="8 codebooks"):
        HiggsAudioProcessor(tokenizer, codec, audio_num_codebooks=4)
    foreign = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(CheckpointError, match="begin_of_text"):
        HiggsAudioProcessor(foreign)


# Phonemes.


def test_with_phonemes_only_the_words_of_user_turns_are_converted(tokenizer):
    processor = HiggsAudioProcessor(tokenizer, text_frontend="phonemes")
    conversation = [
        message("system", "Generate audio following instruction."),
        message("user", "[SPEAKER0] The sun rises.\n[SPEAKER1] <SE>[Laughter]</SE> Yes."),
        message("assistant", "The sun rises."),
    ]
    rendered = render(processor, conversation)
    assert f"{SYSTEM}Generate audio following instruction.<|eot_id|>" in rendered
    assert f"{USER}[SPEAKER0] ðə sˈʌn ɹˈIzᵻz.\n[SPEAKER1] <SE>[Laughter]</SE>" in rendered
    assert f"{ASSISTANT}The sun rises.<|eot_id|>" in rendered


# Files, and use with a model.


def test_a_saved_processor_loads_again_also_by_the_auto_class(tokenizer, codec, tmp_path):
    HiggsAudioProcessor(tokenizer, codec, text_frontend="phonemes").save_pretrained(tmp_path)
    for load in (HiggsAudioProcessor.from_pretrained, AutoProcessor.from_pretrained):
        loaded = load(tmp_path, device_map="cpu", torch_dtype="auto")
        assert isinstance(loaded, HiggsAudioProcessor)
        assert loaded.text_frontend == "phonemes"
        assert torch.equal(loaded.audio_tokenizer.fc.weight, codec.fc.weight)
    with pytest.raises(OptionError, match="did you mean 'revision'"):
        HiggsAudioProcessor.from_pretrained(tmp_path, revison="main")


def test_a_processor_saved_without_its_codec_stores_the_source_of_the_codec(tokenizer, codec, tmp_path):
    HiggsAudioProcessor(tokenizer, codec).save_pretrained(tmp_path / "whole")
    loaded = HiggsAudioProcessor.from_pretrained(tmp_path / "whole")
    loaded.save_pretrained(tmp_path / "light", save_audio_tokenizer=False)
    assert not (tmp_path / "light" / "codec").exists()
    assert HiggsAudioProcessor.from_pretrained(tmp_path / "light").audio_tokenizer is not None


def test_the_processor_file_of_the_published_layout_is_read(tokenizer, codec, tmp_path):
    HiggsAudioProcessor(tokenizer, codec).save_pretrained(tmp_path)
    published = {
        "audio_stream_bos_id": V,
        "audio_tokenizer": {"audio_tokenizer_name_or_path": str(tmp_path / "codec")},
        "feature_extractor": {"sampling_rate": 24000},
        "processor_class": "HiggsAudioV2Processor",
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(published))
    loaded = HiggsAudioProcessor.from_pretrained(tmp_path)
    assert loaded.audio_tokenizer is not None
    assert loaded.config.audio_codebook_size == V


@pytest.fixture(scope="module")
def model(processor):
    """Returns a tiny language model for nano's tokens."""
    ids = processor.tokenizer.convert_tokens_to_ids
    text_config = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    config = HiggsAudioConfig(
        text_config=text_config,
        audio_bos_token_id=ids("<|audio_bos|>"),
        audio_eos_token_id=ids(AUDIO_EOS),
        audio_out_bos_token_id=ids(AUDIO_OUT_BOS),
        audio_delay_token_id=ids(AUDIO_DELAY),
        audio_in_token_idx=ids(AUDIO_IN),
        audio_out_token_idx=ids(AUDIO_OUT),
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    return HiggsAudioForConditionalGeneration(config)


def test_the_training_example_has_a_loss(processor, model):
    inputs = processor.apply_chat_template(clone(), add_generation_prompt=True, tokenize=True).to("cpu")
    output = model(**inputs)
    output.loss.backward()
    assert output.text_loss > 0
    assert output.audio_loss > 0


def test_a_mixed_batch_with_and_without_audio_goes_through_the_model(processor, model):
    assert model(**processor.apply_chat_template([clone(), [message("user", "Hi")]])).loss.isfinite()
    assert model(**processor.apply_chat_template([message("user", "Hi")])).text_logits is not None


def test_the_usage_example_runs_from_messages_to_a_file(processor, model, tmp_path):
    inputs = processor.apply_chat_template(clone(), force_audio=True).to("cpu")
    outputs = model.generate(
        **inputs, max_new_tokens=16, do_sample=True, temperature=0.3, top_k=50, tokenizer=processor.tokenizer, seed=1
    )
    length = processor.get_prompt_len(inputs.input_ids)
    response = processor.decode(outputs[0], outputs[1], prompt_token_length=length)
    assert response.generated_text == ""
    assert len(response.audio) % 960 == 0
    processor.save_audio(response.audio, tmp_path / "output.wav")
    assert (tmp_path / "output.wav").stat().st_size > 44
