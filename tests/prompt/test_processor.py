"""Tests of the prompt format, the processor around it, and nano's text tokenizer."""

import base64
import importlib.util
import io
import json
import string
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoProcessor, AutoTokenizer, HubertConfig, PreTrainedTokenizerFast

from higgs_audio import special_tokens
from higgs_audio.audio.waveform import Waveform
from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.delay import apply_delay, delay_labels
from higgs_audio.errors import AudioError, CheckpointError, CodesError, OptionError, PromptError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.special_tokens import AUDIO_DELAY, AUDIO_EOS, AUDIO_IN, AUDIO_OUT, AUDIO_OUT_BOS, END_OF_TURN

K, V = 8, 1024
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
SYSTEM, USER, ASSISTANT = (HEADER.format(role) for role in ("system", "user", "assistant"))
SMART_VOICE = (
    f"<|begin_of_text|>{SYSTEM}Generate audio following instruction.\n\n<|scene_desc_start|>\n"
    f"Audio is recorded from a quiet room.\n<|scene_desc_end|><|eot_id|>{USER}Hello.<|eot_id|>{ASSISTANT}"
)


def load_recipe():
    """recipes/nano/tokenizer.py as a module."""
    path = Path(__file__).parents[2] / "recipes" / "nano" / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("nano_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


@pytest.fixture(scope="module")
def tokenizer():
    return recipe.build()


@pytest.fixture(scope="module")
def codec():
    """A tiny audio tokenizer of the published frame rate, with noise in its codebooks."""
    semantic = HubertConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
    )
    body = {"encoder_hidden_size": 4, "decoder_hidden_size": 64, "hidden_size": 8}
    config = HiggsAudioTokenizerConfig(acoustic_model_config=body, semantic_model_config=semantic, codebook_dim=6)
    torch.manual_seed(0)
    codec = HiggsAudioTokenizer(config).eval()
    for quantizer in codec.quantizer.quantizers:
        quantizer.codebook.embed.normal_(0, 0.1)
    return codec


@pytest.fixture(scope="module")
def processor(tokenizer, codec):
    return HiggsAudioProcessor(tokenizer, codec)


def make_codes(num_frames, seed=0):
    return np.random.default_rng(seed).integers(0, V, (K, num_frames))


def make_wav(seconds=0.5, sample_rate=16000):
    """A mono 16-bit wav file in memory."""
    samples = (np.random.default_rng(0).normal(0, 3000, int(seconds * sample_rate))).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def codes_item(num_frames, seed=0):
    return {"type": "audio", "codes": make_codes(num_frames, seed)}


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def render(processor, conversation, **options):
    return processor.apply_chat_template(conversation, tokenize=False, **options)


def clone(num_frames=5):
    """The voice cloning conversation of the documentation, with the reference as codes."""
    return [
        message("system", "Generate audio following instruction with the same voice."),
        message("user", "A reference."),
        message("assistant", [codes_item(num_frames)]),
        message("user", "Hello."),
    ]


# Nano's tokenizer.


def test_nano_ids_have_no_gaps_stay_below_512_and_survive_a_save(tokenizer, tmp_path):
    recipe.main(str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert sorted(loaded.get_vocab().values()) == list(range(len(loaded)))
    assert len(loaded) < 512
    assert (loaded.bos_token, loaded.eos_token) == (special_tokens.BEGIN, END_OF_TURN)
    assert loaded.pad_token == special_tokens.PAD


def test_special_tokens_have_the_smallest_ids_in_the_published_order(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(special_tokens.SPECIAL_TOKENS)) == list(
        range(len(special_tokens.SPECIAL_TOKENS))
    )


@pytest.mark.parametrize("text", ["ðə sˈʌn ɹˈIzᵻz.", "hˌW ðˈɛn hˈɪɹ mˌi, hˌu ɐm ʌv?", " ˈivən sˈA;  ðˈW —“ʤ” "])
def test_phonemes_are_one_id_per_character_and_come_back(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def test_no_prompt_piece_is_spelled_in_american_phonemes_alone():
    american = set("AIOWYbdfhijklmnpstuvwzæðŋɑɔəɛɜɡɪɹɾʃʊʌʒʔʤʧˈˌθᵊᵻTɐ")
    letters = [set(piece) for piece in recipe.PROMPT_PIECES if piece.strip()]
    assert not [piece for piece in letters if piece <= american]


@pytest.mark.parametrize("text", [string.printable, "  two  spaces . , n't s ", "日本 é\t\r\n", "<0x41><unk> ▁"])
def test_any_text_comes_back_from_its_ids(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_fixed_prompt_strings_are_single_ids(tokenizer):
    for piece in recipe.PROMPT_PIECES:
        assert len(tokenizer.encode(piece, add_special_tokens=False)) == 1, piece


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
    """Ids with one placeholder per audio again."""
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


def test_a_spoken_turn_trains_its_closing_tokens_codes_and_one_eos_per_codebook(processor):
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


def test_labels_can_be_left_out(processor):
    assert "labels" not in processor.apply_chat_template(clone(), output_labels=False)


# Special tokens in what people type.


@pytest.mark.parametrize("role", ["user", "assistant", "scene"])
@pytest.mark.parametrize("token", ["<|eot_id|>", "<|AUDIO_OUT|>", "<|scene_desc_end|>", "<|no_such|>"])
def test_special_tokens_in_a_text_are_refused(processor, role, token):
    system = [message("system", "s")] if role == "scene" else []
    with pytest.raises(PromptError, match="special token"):
        processor.apply_chat_template([*system, message(role, f"a{token}b")])


def test_a_system_text_may_hold_scene_tags_but_no_turns(processor):
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


# What is refused.


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
def test_codes_of_another_shape_type_or_range_are_refused(processor, codes):
    with pytest.raises(CodesError):
        processor.apply_chat_template([message("user", [{"type": "audio", "codes": codes}])])


@pytest.mark.parametrize("url", ["https://example.org/a.wav", "HTTP://example.org/a", "s3://bucket/a.wav", "data:x"])
def test_audio_that_would_have_to_be_fetched_is_refused_with_a_reason(processor, url):
    with pytest.raises(AudioError):
        processor.apply_chat_template([message("user", [{"type": "audio", "audio_url": url}])])


def test_options_that_are_not_offered(processor, tokenizer):
    with pytest.raises(OptionError, match="return_tensors"):
        processor.apply_chat_template(clone(), return_tensors="np")
    with pytest.raises(OptionError, match="did you mean 'text_frontend'"):
        HiggsAudioProcessor(tokenizer, text_frontends="none")
    with pytest.raises(OptionError, match="did you mean 'phonemes'"):
        HiggsAudioProcessor(tokenizer, text_frontend="phoneme")


# Audio in and out.


def test_all_ways_to_name_a_recording_give_the_same_codes(processor, tmp_path):
    """The sound of a file whose path needs quoting in a URL is the same however it is given."""
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


def test_rendered_strings_are_encoded_like_the_conversation_they_came_from(processor):
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
    segments = [apply_delay(first, V, V + 1), apply_delay(second, V, V + 1)[:, :-3]]  # the second is cut short
    ids = processor.tokenizer.encode("prompt<|audio_out_bos|>said<|eot_id|>", add_special_tokens=False)
    response = processor.decode(torch.tensor([ids]), segments, prompt_token_length=6)
    expected = [codec.decode(codes[None]).audio_values[0, 0] for codes in (first, second[:, :2])]
    assert np.array_equal(response.audio, torch.cat(expected).clamp(-1, 1).numpy())
    assert response.audio.dtype == np.float32
    assert (response.generated_text, response.sampling_rate) == ("said", 24000)


def test_an_answer_without_a_complete_frame_has_no_audio(processor, tmp_path):
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


def test_save_audio_needs_one_file_for_each_sound(processor, tmp_path):
    sound = np.zeros(960, np.float32)
    processor.save_audio([sound, torch.zeros(960)], [tmp_path / "a.wav", tmp_path / "b.flac"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.flac"]
    with pytest.raises(PromptError, match="2 sounds and 1 files"):
        processor.save_audio([sound, sound], tmp_path / "c.wav")


def test_a_processor_without_codec_takes_codes_and_says_what_it_lacks(tokenizer):
    processor = HiggsAudioProcessor(tokenizer)
    assert processor.apply_chat_template(clone()).audio_input_ids.shape == (1, 14, K)
    with pytest.raises(CheckpointError, match="no audio tokenizer"):
        processor.apply_chat_template([message("user", [{"type": "audio", "audio": make_wav()}])])


def test_a_codec_with_other_codebooks_and_a_tokenizer_without_our_tokens_are_refused(tokenizer, codec):
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


# Files, and the whole way round.


def test_a_saved_processor_loads_again_also_by_the_auto_class(tokenizer, codec, tmp_path):
    HiggsAudioProcessor(tokenizer, codec, text_frontend="phonemes").save_pretrained(tmp_path)
    for load in (HiggsAudioProcessor.from_pretrained, AutoProcessor.from_pretrained):
        loaded = load(tmp_path, device_map="cpu", torch_dtype="auto")
        assert isinstance(loaded, HiggsAudioProcessor)
        assert loaded.text_frontend == "phonemes"
        assert torch.equal(loaded.audio_tokenizer.fc.weight, codec.fc.weight)
    with pytest.raises(OptionError, match="did you mean 'revision'"):
        HiggsAudioProcessor.from_pretrained(tmp_path, revison="main")


def test_a_processor_saved_without_its_codec_names_where_it_came_from(tokenizer, codec, tmp_path):
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
    """A tiny language model that reads nano's tokens."""
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
