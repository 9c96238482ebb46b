"""Tests of arguments of the wrong type: the processor raises an error of the package that names the allowed values."""

import base64
import binascii
import io

import numpy as np
import pytest
import torch
from hooks import after_calls

from higgs_audio import audio as audio_io
from higgs_audio.audio.limits import AudioLimits
from higgs_audio.audio.sources import read_source
from higgs_audio.audio.waveform import Waveform
from higgs_audio.delay import apply_delay
from higgs_audio.errors import AudioError, CodesError, OptionError, PromptError, TextError
from higgs_audio.prompt.processor import HiggsAudioProcessor

K, V = 8, 1024
PLACEHOLDER = "<|audio_bos|><|AUDIO|><|audio_eos|>"


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return HiggsAudioProcessor.from_pretrained(tiny_checkpoint)


def make_codes(num_frames=3, num_codebooks=K):
    return np.random.default_rng(0).integers(0, V, (num_codebooks, num_frames))


def make_segment(num_frames=3, num_codebooks=K):
    return apply_delay(torch.as_tensor(make_codes(num_frames, num_codebooks)), V, V + 1)


def user(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_half_of_a_character_is_refused(processor, role):
    """The tokenizers library raised a TypeError of its own. In user turns the phoneme front end drops it."""
    with pytest.raises(PromptError, match="half of a character"):
        processor.apply_chat_template([{"role": role, "content": "A \ud800 b"}])


def test_batches_are_made_of_encoded_prompts(processor):
    prompts = processor.encode_conversations([user("Hello.")])
    for wrong in ([], None, prompts[0], [user("Hello.")]):
        with pytest.raises(PromptError, match="give a list of what encode_conversations returns"):
            processor.collate(wrong)
    with pytest.raises(OptionError, match="padding_side='middle'; allowed: left, right"):
        processor.collate(prompts, padding_side="middle")
    for wrong in (None, 3, "Hello.", {}):
        with pytest.raises(PromptError, match="give a list"):
            processor.encode_conversations(wrong)


# Conversations.


@pytest.mark.parametrize("given", [None, 5, 1.5, {"role": "user", "content": "Hi."}, {1}, "Hi.", b"Hi.", [], (), [[]]])
def test_a_conversation_is_a_list_of_messages(processor, given):
    with pytest.raises(PromptError, match="give a list with at least one message"):
        processor.apply_chat_template(given)


@pytest.mark.parametrize("given", [[None], [5], ["Hi."], [[None]], [user("Hi.")[0], user("Hi.")], [user("Hi."), None]])
def test_a_message_is_a_dict(processor, given):
    with pytest.raises(PromptError, match=r"give a (dict|list)"):
        processor.apply_chat_template(given)


@pytest.mark.parametrize(
    "content", [None, 5, 1.5, True, {1}, [5], [None], [[]], {"type": ["text"]}, b"Hi.", np.zeros(3)]
)
def test_content_is_text_or_items(processor, content):
    with pytest.raises(PromptError, match=r"message 0 \(user\) has"):
        processor.apply_chat_template(user(content))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_index": "4"}, "start_index='4'"),
        ({"start_index": 1.5}, "start_index=1.5"),
        ({"start_index": [-1]}, "start_index=-1"),
        ({"sampling_rate": "24000"}, "sampling_rate='24000'"),
        ({"sampling_rate": 0}, "sampling_rate=0"),
        ({"allow_private_urls": "no"}, "allow_private_urls='no'"),
        ({"style": ["original"]}, "style"),
    ],
)
def test_options_of_rendering_have_their_types(processor, options, message):
    with pytest.raises(OptionError, match=message):
        processor.apply_chat_template(user("Hi."), **options)


@pytest.mark.parametrize("text", [None, 5, "", [], [""], [5], [None], {"a": 1}, b"Hi."])
def test_a_prompt_is_a_string(processor, text):
    with pytest.raises(PromptError, match="give a non-empty string, or a list"):
        processor(text)


# Sounds and punctuation.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<SE>[Laughter]</SE>.", "<SE>[Laughter]</SE>."),
        ("Yes <SE>[Laughter]</SE>?!", "jˈɛs.<SE>[Laughter]</SE>?"),
        ("... <SE>[Laughter]</SE>, yes", ".<SE>[Laughter]</SE>jˈɛs."),
        ('"<SE>[Laughter]</SE>"', "<SE>[Laughter]</SE>"),
        ("<SE>[Laughter]</SE>…\nYes.", "<SE>[Laughter]</SE>.\njˈɛs."),
        ("[SPEAKER0] <SE>[Laughter]</SE>!\n[SPEAKER1] Yes.", "[SPEAKER0] <SE>[Laughter]</SE>!\n[SPEAKER1] jˈɛs."),
        ("Yes.\n...\nYes.", "jˈɛs.\n.\njˈɛs."),
    ],
)
def test_a_sound_event_may_be_followed_by_punctuation(processor, text, expected):
    rendered = processor.apply_chat_template(user(text), tokenize=False)
    assert expected in rendered
    assert processor.apply_chat_template(user(text)).input_ids.shape[0] == 1


@pytest.mark.parametrize("text", ["...", "?!\n...", "[SPEAKER0] ...", "<SE>[Laughter]</SE> 你好"])
def test_a_turn_with_nothing_to_speak_is_rejected(processor, text):
    with pytest.raises(TextError, match="nothing speakable"):
        processor.apply_chat_template(user(text))


# Codes.


@pytest.mark.parametrize(
    "codes",
    [
        "abc",
        b"abc",
        5,
        {"codes": 1},
        [[1, 2], [3]],
        [["1"] * 3] * K,
        [[None] * 3] * K,
        [[2**70] * 3] * K,
        [],
        make_codes().astype(float),
        make_codes() > 3,
        make_codes().astype(complex),
        make_codes() - 2000,
        make_codes() + 1000,
        make_codes(num_codebooks=7),
        make_codes()[None],
        torch.zeros(K, 3),
        torch.zeros(K, 3, dtype=torch.bfloat16),
    ],
)
def test_codes_of_another_type_are_rejected_everywhere(processor, codes):
    with pytest.raises(CodesError):
        processor.apply_chat_template(user([{"type": "audio", "codes": codes}]))
    with pytest.raises(CodesError):
        processor(PLACEHOLDER, audio={"codes": codes})
    with pytest.raises(CodesError):
        processor.decode([1, 2], [codes])


def test_codes_may_be_arrays_tensors_or_lists(processor):
    codes = make_codes()
    read_only = codes.copy()
    read_only.flags.writeable = False
    ways = [codes, read_only, torch.from_numpy(codes), codes.tolist(), list(codes), codes.astype(np.uint16)]
    batch = processor.apply_chat_template([user([{"type": "audio", "codes": way}]) for way in ways])
    assert all(torch.equal(row, batch.audio_input_ids[0]) for row in batch.audio_input_ids)


# Responses.


def test_decoded_audio_stays_within_full_scale(processor):
    def loud(samples):
        return torch.linspace(-1.5, 1.5, samples.shape[-1])[None, None]

    with after_calls(processor.audio_tokenizer.acoustic_decoder, loud):
        samples = processor.decode([1], [make_segment()]).audio
    assert (samples.min(), samples.max()) == (-1, 1)


@pytest.mark.parametrize("num_codebooks", [1, 7, 9])
def test_segments_have_the_number_of_codebooks_of_the_model(processor, num_codebooks):
    with pytest.raises(CodesError, match=f"{num_codebooks} codebooks; give columns of 8"):
        processor.decode([1], [make_segment(num_codebooks=num_codebooks)])


@pytest.mark.parametrize(
    "segments", ["abc", 5, {"a": 1}, [None], ["abc"], torch.zeros(1, K, 5).long(), np.zeros((K, 5), int)]
)
def test_segments_are_a_list_of_delayed_columns(processor, segments):
    with pytest.raises(CodesError):
        processor.decode([1], segments)


def test_segments_may_be_one_array_or_none(processor):
    segment = make_segment()
    assert len(processor.decode([1], segment).audio) == len(processor.decode([1], segment.numpy()).audio) == 3 * 960
    assert processor.decode([1]).audio is None


@pytest.mark.parametrize(
    "ids", [None, "abc", {"a": 1}, [1.5], [True], [[1], [2, 3]], [-1], [-100, 1], [10**6], [2**70], ["1"]]
)
def test_token_ids_are_those_of_the_vocabulary(processor, ids):
    for read in (processor.decode, processor.get_prompt_len):
        with pytest.raises(PromptError, match="token ids"):
            read(ids)
    with pytest.raises(PromptError):
        processor.batch_decode(ids, [[]])


def test_the_length_of_a_prompt_is_that_of_its_last_dimension(processor):
    assert [processor.get_prompt_len(ids) for ids in (torch.zeros(2, 3).long(), [1, 2], [[1, 2, 3, 4]], [])] == [
        3,
        2,
        4,
        0,
    ]
    with pytest.raises(PromptError, match="shape"):
        processor.get_prompt_len(torch.tensor(1))


@pytest.mark.parametrize("length", [-1, 3, "1", 1.0, None])
def test_the_prompt_is_no_longer_than_the_sequence(processor, length):
    with pytest.raises(OptionError, match="prompt_token_length"):
        processor.decode([1, 2], prompt_token_length=length)


def test_a_batch_to_decode_has_a_list_of_segments_for_each_row(processor):
    for segments in (None, 5, {}, [[]]):
        with pytest.raises(PromptError):
            processor.batch_decode([[1], [2]], segments)


@pytest.mark.parametrize("path", [None, 5, [5], {"a": 1}])
def test_audio_is_saved_to_a_path(processor, path):
    with pytest.raises(OptionError, match="saving_path"):
        processor.save_audio(np.zeros(960, np.float32), path)


@pytest.mark.parametrize("recording", [None, "x.wav", np.zeros(960, np.float32), {"array": [0.0]}])
def test_only_a_waveform_is_encoded(processor, recording):
    with pytest.raises(AudioError, match="Waveform"):
        processor.encode_audio(recording)


# The parts of a processor.


@pytest.mark.parametrize(
    "parts",
    [
        {"tokenizer": None},
        {"tokenizer": "nano"},
        {"audio_tokenizer": "nano"},
        {"audio_tokenizer": torch.nn.Linear(1, 1)},
        {"limits": {"max_bytes": 5}},
    ],
)
def test_the_parts_of_a_processor_have_their_types(processor, parts):
    with pytest.raises(OptionError, match="give"):
        HiggsAudioProcessor(**{"tokenizer": processor.tokenizer, **parts})


@pytest.mark.parametrize("device", ["gpu", ["cpu"], {}, {"": "tpus"}])
def test_an_unknown_device_is_rejected(processor, tiny_checkpoint, device):
    for given in (None, processor.audio_tokenizer, tiny_checkpoint / "codec"):
        with pytest.raises(OptionError, match="device_map"):
            HiggsAudioProcessor.from_pretrained(tiny_checkpoint, audio_tokenizer=given, device_map=device)


def test_a_batch_to_decode_may_be_rows_of_any_lengths(processor):
    rows = [torch.tensor([1, 2]), [1, 2, 3]]
    assert len(processor.batch_decode(rows, [[], [make_segment()]])) == 2


def test_the_function_that_loads_an_audio_tokenizer_must_return_one(processor):
    with pytest.raises(OptionError, match="NoneType"):
        _ = HiggsAudioProcessor(processor.tokenizer, lambda: None).audio_tokenizer


# Audio items.


def make_wav():
    return audio_io.encode(Waveform(np.zeros(4800, np.float32), 24000))


def test_two_audio_items_need_two_recordings(processor):
    """No placeholder and no item is left without audio."""
    with pytest.raises(PromptError, match="1 audios for 2 placeholders"):
        processor(2 * PLACEHOLDER, audio=make_wav())
    with pytest.raises(PromptError, match="1 recordings for 2 audio items: there is no audio in item 1"):
        processor.apply_chat_template(user([{"type": "audio", "audio": make_wav()}, {"type": "audio"}]))
    with pytest.raises(PromptError, match="0 recordings for 1 audio items"):
        processor.apply_chat_template([*user("Hi."), {"role": "assistant", "content": [{"type": "audio"}]}])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"url": 5}, "url is a int"),
        ({"path": ["a.wav"]}, "path is a list"),
        ({"audio_url": np.zeros(3)}, "audio_url is a ndarray"),
        ({"raw_audio": 5}, "the audio is a int"),
        ({"raw_audio": "ab$"}, "is not base64"),
        ({"raw_audio": "é"}, "is not base64"),
        ({"raw_audio": ""}, "is empty"),
        ({"raw_audio": "AAAA"}, "cannot be read as audio"),
        ({"url": "data:audio/wav;base64,ab$"}, "is not base64"),
        ({"url": "data:audio/wav;base64,"}, "is empty"),
        ({"url": "data:audio/wav;base64"}, "no comma"),
        ({"url": "data:,%ff%fe"}, "cannot be read as audio"),
        ({"audio": 5}, "the array is"),
        ({"audio": {1}}, "the array is"),
        ({"audio": ["a", "b"]}, "the array is"),
        ({"audio": [[0.0], [0.0, 1.0]]}, "cannot be read as an array"),
        ({"audio": {"array": None}}, "it needs array, bytes or path"),
        ({"audio": torch.zeros(9, dtype=torch.bfloat16)}, "cannot be read as an array"),
        ({"audio": io.StringIO("x")}, "binary mode"),
    ],
)
def test_an_audio_item_of_another_type_is_rejected(processor, item, message):
    with pytest.raises(AudioError, match=message):
        processor.apply_chat_template(user([{"type": "audio", **item}]))
    with pytest.raises(AudioError, match=message):
        processor(PLACEHOLDER, audio=item)


def test_an_item_of_a_prompt_has_known_keys(processor):
    with pytest.raises(PromptError, match="did you mean 'url'"):
        processor(PLACEHOLDER, audio={"uri": "a.wav"})


def test_samples_bytes_and_dataset_features_are_one_audio_each(processor):
    wav = make_wav()
    samples = [np.float32(0)] * 4800
    for audio in (
        wav,
        bytearray(wav),
        {"bytes": wav, "path": None},
        {"array": samples, "sampling_rate": 24000},
        samples,
    ):
        assert processor(PLACEHOLDER, audio=audio).audio_input_ids.shape == (1, 5 + 9, K)


@pytest.mark.parametrize("key", ["raw_audio", "url"])
def test_the_size_of_base64_is_checked_before_decoding(key):
    """The text cannot be decoded: it has one character too many."""
    text = "A" * 8001
    with pytest.raises(binascii.Error):
        base64.b64decode(text)
    with pytest.raises(AudioError, match="more than 3,000 bytes"):
        read_source({key: text if key == "raw_audio" else f"data:;base64,{text}"}, 24000, AudioLimits(max_bytes=3000))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_bytes", "5"),
        ("max_bytes", 1e6),
        ("max_seconds", None),
        ("max_seconds", float("nan")),
        ("max_redirects", 1.0),
        ("timeout_seconds", float("inf")),
        ("timeout_seconds", True),
        ("allow_private_urls", "no"),
        ("allow_private_urls", 1),
    ],
)
def test_limits_have_their_types(name, value):
    with pytest.raises(OptionError, match=f"{name}="):
        AudioLimits(**{name: value})
