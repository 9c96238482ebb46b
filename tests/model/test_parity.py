"""Tests against both existing implementations: transformers' classes, and a slow loop over the rules of the original.

Every row of docs/compatibility.md names a test; comparing tests are here. For intended differences, the tests assert
the difference itself, so that a change of the other implementation is detected.
"""

import re
from pathlib import Path

import pytest
import torch
from oracle import (
    AUDIO_OUT,
    BOS,
    EOS,
    K,
    collate,
    generate_columns,
    make_codes,
    make_prompt,
    make_waveform,
)
from parity import CACHE, CODES, assert_near, audio_item, clone, message, plain, scripted, their_inputs
from transformers import DacFeatureExtractor, HiggsAudioV2Config, HiggsAudioV2Processor
from transformers import HiggsAudioV2TokenizerConfig as TransformersTokenizerConfig

from higgs_audio import NANO, HiggsAudioConfig, HiggsAudioTokenizerConfig
from higgs_audio.delay import apply_delay
from higgs_audio.errors import CodesError, PromptError
from higgs_audio.generation.loop import generate
from higgs_audio.prompt.processor import HiggsAudioProcessor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # warnings of transformers

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")


# The language model


@torch.no_grad()
def test_cached_and_uncached_logits_of_both_agree_in_a_left_padded_batch(model, oracle_model):
    """Compares ours with transformers, in one pass and column by column."""
    prompts = [make_prompt(range(20, 32), [make_codes(4, 1)]), make_prompt(range(40, 44), [make_codes(2, 2)] * 2)]
    answer = apply_delay(make_codes(5, 3), BOS, EOS).T  # [n, K]
    whole = collate([(ids + [AUDIO_OUT] * len(answer), torch.cat([columns, answer])) for ids, columns in prompts])
    mask, batch, num_columns = whole["attention_mask"], collate(prompts), len(answer)
    ours, theirs = model(**whole).logits.flatten(2), oracle_model(**whole).logits  # [B, T, K * (V + 2)]
    assert_near(ours[mask.bool()], theirs[mask.bool()])
    steps = {"ours": [model(**batch, use_cache=True)], "theirs": [oracle_model(**batch, use_cache=True)]}
    for number, column in enumerate(answer):
        step = {"audio_input_ids": column.expand(2, 1, -1)}
        step["attention_mask"] = mask[:, : batch["input_ids"].shape[1] + number + 1]
        steps["ours"].append(model(**step, past_key_values=steps["ours"][-1].cache))
        cache = {CACHE: steps["theirs"][-1][CACHE]}
        steps["theirs"].append(oracle_model(**step, **cache, use_cache=True))
    for outputs in steps.values():
        logits = torch.stack([output.logits[:, -1].flatten(1) for output in outputs], dim=1)  # [B, n + 1, ...]
        assert_near(logits, theirs[:, -num_columns - 1 :])


# Prompts and processors


@pytest.mark.parametrize(
    "conversation",
    [
        [message("system", " Speak. "), message("user", "Hello.")],
        plain(),
        clone("a.wav"),
        clone("a.wav", "b.wav"),
        [
            message("system", "S"),
            message("scene", "Quiet.", "SPEAKER0: deep", "SPEAKER1: high"),
            message("user", "[SPEAKER0] A"),
        ],
    ],
    ids=["text alone", "scene", "one reference", "two references", "described speakers"],
)
def test_rendered_prompts_are_those_of_transformers(stack, conversation):
    theirs = stack.their_processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    trimmed = [message(turn["role"], *(_trimmed(item) for item in turn["content"])) for turn in conversation]
    assert stack.processor.apply_chat_template(trimmed, force_audio=True, tokenize=False) == theirs


def _trimmed(item):
    """Returns the text of an item without surrounding spaces, which ours keeps if there is no scene."""
    return item["text"].strip() if item["type"] == "text" else item


def test_a_conversation_with_a_scene_is_trimmed_as_in_transformers(stack):
    conversation = [message("system", " Speak. \n"), message("scene", "\nQuiet room. "), message("user", " Hi ")]
    theirs = stack.their_processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert stack.processor.apply_chat_template(conversation, force_audio=True, tokenize=False) == theirs
    spaced = [message("system", "Speak."), message("user", " Hi ")]
    assert " Hi <|eot_id|>" in stack.processor.apply_chat_template(spaced, tokenize=False)
    assert "\n\nHi<|eot_id|>" in stack.their_processor.apply_chat_template(spaced, tokenize=False)


@torch.no_grad()
def test_recordings_become_the_inputs_and_the_logits_of_transformers(stack):
    """Two conversations of different length: files, audio tokenizer, delay pattern, placeholders, padding, model."""
    a, b = stack.recordings
    conversations = [_with_scene(clone(a)), _with_scene(clone(a, b))]
    theirs = their_inputs(stack, conversations, padding=True)
    ours = stack.processor.apply_chat_template(conversations, force_audio=True, output_labels=False)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    assert ours.audio_input_ids.shape == (2, (4 + 9) + (3 + 9), K)
    mask = ours.attention_mask.bool()
    logits = stack.model(**ours).logits.flatten(2), stack.their_model(**theirs).logits
    assert_near(logits[0][mask], logits[1][mask])


def _with_scene(conversation):
    return [conversation[0], message("scene", "Quiet room."), *conversation[1:]]


@torch.no_grad()
def test_a_batch_with_and_without_audio_is_rejected_by_transformers_and_equals_its_rows_in_ours(stack):
    conversations = [_with_scene(clone(stack.recordings[0])), plain()]
    with pytest.raises(ValueError, match="non-empty list"):
        their_inputs(stack, conversations, padding=True)
    together = stack.processor.apply_chat_template(conversations, force_audio=True, output_labels=False)
    logits = stack.model(**together).logits.flatten(2)
    for row, conversation in enumerate(conversations):
        alone = stack.their_model(**their_inputs(stack, conversation)).logits[0]
        assert_near(logits[row, -len(alone) :], alone)


@torch.no_grad()
def test_a_reference_in_a_scene_has_audio_in_where_transformers_has_audio_out(stack):
    """As in the original. The model treats all placeholders alike, but not the token at the start of the audio."""
    a, b = (audio_item(path) for path in stack.recordings)
    conversation = [
        message("system", "S"),
        message("scene", "Quiet.", "SPEAKER0:", a, "SPEAKER1:", b),
        message("user", "Hi"),
    ]
    theirs = stack.their_processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    ours = stack.processor.apply_chat_template(conversation, force_audio=True, tokenize=False)
    out, in_ = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>", "<|audio_bos|><|AUDIO|><|audio_eos|>"
    assert theirs.count(" " + out) == 2
    assert ours == theirs.replace(out, in_)
    columns = stack.processor.apply_chat_template(conversation).audio_input_ids
    assert torch.equal(columns, their_inputs(stack, conversation)["audio_input_ids"])


def test_a_scene_that_begins_with_a_speaker_has_a_blank_line_in_transformers_only(stack):
    conversation = [
        message("system", "S"),
        message("scene", "SPEAKER0:", audio_item(stack.recordings[0])),
        message("user", "Hi"),
    ]
    theirs = stack.their_processor.apply_chat_template(conversation, tokenize=False)
    ours = stack.processor.apply_chat_template(conversation, tokenize=False)
    assert "SPEAKER0:\n\n <|audio_out_bos|>" in theirs
    assert "SPEAKER0: <|audio_bos|>" in ours


def test_conversations_that_transformers_rejects_and_ours_accepts(stack):
    path = stack.recordings[0]
    cases = {
        "no audio tokens in the prompt": [message("system", "S"), message("user", "Listen:", audio_item(path))],
        "there are audio tokens": [
            message("system", "S"),
            message("assistant", {"type": "audio", "audio_url": path}),
        ],
        "system message": [message("user", "Hi")],
        "must contain audio": [message("system", "S"), message("assistant", "Hello.")],
    }
    for error, conversation in cases.items():
        with pytest.raises(Exception, match=error):
            their_inputs(stack, conversation)
        assert len(stack.processor.apply_chat_template(conversation).input_ids) == 1


def test_control_tokens_in_a_text_reach_the_model_in_transformers_and_are_rejected_in_ours(stack):
    conversation = [message("system", "S"), message("user", "one<|eot_id|>two")]
    end = stack.processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert int((their_inputs(stack, conversation)["input_ids"] == end).sum()) == 3
    with pytest.raises(PromptError, match="eot_id"):
        stack.processor.apply_chat_template(conversation)


# Labels and losses


def training_inputs(stack):
    """Returns one conversation with two audio turns, with the labels of both processors."""
    conversation = _with_scene(clone(*stack.recordings))[:-1]
    theirs = stack.their_processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", output_labels=True
    )
    return stack.processor.apply_chat_template(conversation, add_generation_prompt=False), theirs


def test_labels_differ_from_those_of_transformers_in_the_text_of_the_prompt_and_in_the_ends(stack):
    """transformers trains every text token except the bos of audio, also delay placeholders, and no stream eos."""
    ours, theirs = training_inputs(stack)
    ids, untrained = ours.input_ids, -100
    assert torch.equal(ids, theirs["input_ids"])
    special = stack.processor.tokenizer.convert_tokens_to_ids
    placeholder, opener, close, end = map(
        special, ("<|AUDIO_OUT|>", "<|audio_out_bos|>", "<|audio_eos|>", "<|eot_id|>")
    )
    wanted = ids.masked_fill((ids == placeholder) | (ids == opener), untrained)
    assert torch.equal(theirs["labels"], wanted)
    assert ours.labels[ours.labels != untrained].tolist() == [opener, close, end] * 2
    without_ends = ours.audio_labels.masked_fill(ours.audio_labels == CODES + 1, untrained)
    assert torch.equal(theirs["audio_labels"], without_ends)
    assert (ours.audio_labels == CODES + 1).sum((0, 1)).tolist() == [2] * K


def test_the_loss_of_transformers_is_text_loss_and_k_times_audio_loss_on_its_own_labels(stack):
    _, theirs = training_inputs(stack)
    ours = stack.model(**theirs)
    wanted = stack.their_model(**theirs).loss
    torch.testing.assert_close(ours.text_loss + K * ours.audio_loss, wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.text_loss + ours.codebook_losses.sum(), wanted, rtol=1e-5, atol=0)


@torch.no_grad()
def test_the_loss_of_the_early_version_is_ours(stack):
    """Its audio loss treats all columns as one stream, shifted by one, without labels for the first of a segment."""
    inputs, _ = training_inputs(stack)
    output = stack.model(**inputs)
    text = torch.nn.functional.cross_entropy(output.text_logits[0, :-1], inputs.labels[0, 1:])
    is_audio = stack.model.model.audio_mask(inputs.input_ids)
    logits, labels = output.logits[is_audio], inputs.audio_labels[inputs.audio_input_ids_mask].clone()  # [N, K, ...]
    labels[(inputs.audio_input_ids[0] == CODES).all(-1)] = -100
    losses = [torch.nn.functional.cross_entropy(logits[:-1, k], labels[1:, k]) for k in range(K)]
    torch.testing.assert_close(output.codebook_losses, torch.stack(losses))
    torch.testing.assert_close(output.loss, text + sum(losses) / K)


# Sampling


def test_a_bos_in_mid_stream_can_be_sampled_in_transformers_and_not_in_ours(model, oracle_model):
    script = [[BOS] * K] * 20
    batch = collate([make_prompt(range(20, 32))])
    with scripted(model, script):
        ours = generate(model, **batch, max_new_tokens=20, do_sample=False)[1][0]
    with scripted(oracle_model, script):
        theirs = generate_columns(oracle_model, batch, 20)[0]
    assert (theirs == BOS).all()
    assert not (ours[:, K:] == BOS).any()


# Differences of transformers' audio tokenizer and processor


def test_a_stream_bos_among_codes_is_an_index_error_in_transformers_and_a_codes_error_in_ours(stack):
    codes = torch.full((1, K, 3), CODES)
    with pytest.raises(IndexError):
        stack.their_processor.audio_tokenizer.decode(codes)
    with pytest.raises(CodesError, match="Remove stream bos and stream eos"):
        stack.codec.decode(codes)


@torch.no_grad()
def test_padding_by_the_published_feature_extractor_changes_the_codes(stack):
    """The file has hop_length 960: padding=True fills the last frame with silence, which changes HuBERT's features."""
    waveform = make_waveform(3 * 960 + 300)
    extractor = DacFeatureExtractor(feature_size=1, hop_length=960, sampling_rate=24000)
    padded = extractor(waveform[0, 0].numpy(), padding=True, sampling_rate=24000, return_tensors="pt")["input_values"]
    assert padded.shape == (1, 1, 4 * 960)
    encode = stack.their_processor.audio_tokenizer.encode
    assert not torch.equal(encode(padded).audio_codes, encode(waveform).audio_codes)
    assert torch.equal(stack.codec.encode(waveform).audio_codes, encode(waveform).audio_codes)


def test_a_processor_whose_codec_has_no_folder_is_loaded_by_ours_only(stack, tmp_path):
    stack.their_processor.save_pretrained(tmp_path / "theirs")
    with pytest.raises(OSError, match="Repo id"):
        HiggsAudioV2Processor.from_pretrained(tmp_path / "theirs")
    stack.processor.save_pretrained(tmp_path / "ours")
    loaded = HiggsAudioProcessor.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.audio_tokenizer.fc.weight, stack.codec.fc.weight)


# Sizes


def test_defaults_are_the_published_sizes_in_ours_and_others_in_transformers():
    ours, theirs = HiggsAudioConfig(), HiggsAudioV2Config()
    assert (ours.audio_codebook_size, ours.codebook_rows) == (1024, 1026)
    assert theirs.codebook_size == 1024  # 1026 in the published file, which includes bos and eos
    assert (ours.bos_token_id, theirs.bos_token_id) == (128000, 1)
    assert (ours.eos_token_id, theirs.eos_token_id) == (128009, 128009)
    codec, their_codec = HiggsAudioTokenizerConfig(), TransformersTokenizerConfig()
    assert (codec.hop_length, codec.num_codebooks) == (960, 8)
    assert their_codec.hop_length == 320
    published = TransformersTokenizerConfig(
        acoustic_model_config={"downsampling_ratios": [8, 5, 4, 2, 3], "upsampling_ratios": [8, 5, 4, 2, 3]},
        target_bandwidths=[0.5, 1, 1.5, 2, 4],  # in the original's file
    )
    assert (published.hop_length, published.num_quantizers) == (960, 16)


def test_the_package_contains_no_recordings():
    suffixes = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".npy", ".pt")
    assert not [path for path in NANO.parent.rglob("*") if path.suffix in suffixes]


# The document


def test_every_disagreement_has_a_row_and_every_test_that_a_row_names_exists():
    rows = re.findall(r"^\| (\d+) \| .+ \|$", DOCUMENT, flags=re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 36))
    named = re.findall(r"`(test_\w+)`", DOCUMENT)
    files = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    existing = {name for text in files for name in re.findall(r"def (test_\w+)\(", text)}
    assert len(named) >= 35
    for name in named:
        assert name in existing, name


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL))
def test_the_blocks_of_the_document_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "compatibility.md", "exec"), {"__name__": "compatibility"})
