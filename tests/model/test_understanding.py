"""Tests of the understanding variant: features of audio and codes in the language model, and answers in text."""

import json

import pytest
import torch
from hooks import counted_calls
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast
from understanding import (
    BINS,
    FEATURES,
    K,
    audio,
    encode,
    logits_of,
    make_codes,
    make_config,
    make_conversation,
    make_model,
    without_labels,
)

from higgs_audio.errors import HiggsAudioError, PromptError
from higgs_audio.generation.loop import stream
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor


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


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


def test_features_take_the_text_path_and_codes_the_audio_path(tokenizer, processor, processor_of_both):
    """With noise in the audio feed-forward networks, only the logits after codes change."""
    model, other = make_model(tokenizer), make_model(tokenizer)
    with torch.no_grad():
        for layer in other.model.layers:
            layer.audio_mlp.down_proj.weight.normal_()
    alone = encode(processor, make_conversation(audio(0.4)))
    both = encode(processor_of_both, make_conversation(audio(0.4, codes=make_codes(10))))
    assert torch.equal(logits_of(model, alone).text_logits, logits_of(other, alone).text_logits)
    assert not torch.allclose(logits_of(model, both).text_logits, logits_of(other, both).text_logits)


def test_features_replace_the_embeddings_of_their_positions(model, processor_of_both):
    items = (audio(0.4, 1, codes=make_codes(10)), "and", audio(2.5, 2, codes=make_codes(63)))
    inputs = encode(processor_of_both, make_conversation(*items))
    with torch.no_grad():
        features, _ = model.model.audio_features(inputs["input_features"], inputs["feature_attention_mask"])
        first = model.model(**without_labels(inputs), output_hidden_states=True).hidden_states[0]
    assert len(features) == 10 + 50 + 12
    assert torch.equal(first[inputs["feature_positions"]], features)


def test_rows_with_and_without_audio_equal_the_rows_alone(model, processor_of_both):
    conversations = [
        make_conversation(audio(0.4, 1, codes=make_codes(10))),
        make_conversation("No sound here, but many more words than in the others, so that they are padded."),
        make_conversation(audio(2.5, 2, codes=make_codes(63)), "and", audio(1.0, 3, codes=make_codes(25))),
        make_conversation({"type": "audio", "codes": make_codes(4)}),
    ]
    batch = encode(processor_of_both, conversations)
    assert len(batch["input_features"]) == 4
    together = logits_of(model, batch)
    for row, conversation in enumerate(conversations):
        alone = logits_of(model, encode(processor_of_both, conversation))
        length = alone.text_logits.shape[1]
        torch.testing.assert_close(together.text_logits[row, -length:], alone.text_logits[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.logits[row, -length:], alone.logits[0], rtol=0, atol=1e-5)


def test_cached_steps_equal_one_pass(model, processor_of_both):
    inputs = without_labels(encode(processor_of_both, make_conversation(audio(0.4, codes=make_codes(10)))))
    new = torch.tensor([processor_of_both.tokenizer.encode("abc", add_special_tokens=False)])
    assert new.shape == (1, 3)
    longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], new], 1), attention_mask=None)
    longer["feature_positions"] = F.pad(inputs["feature_positions"], (0, 3))
    with torch.no_grad():
        whole = model(**longer).text_logits[0, -3:]
        cache = model(**inputs, use_cache=True).cache
        steps = [model(token[None], past_key_values=cache).text_logits[0, -1] for token in new.T]
    torch.testing.assert_close(torch.stack(steps), whole, rtol=0, atol=1e-5)


def test_generation_encodes_audio_once_and_equals_the_loop_without_cache(model, processor):
    inputs = encode(
        processor, [make_conversation(audio(0.4, 1)), make_conversation(audio(1.3, 2))], output_labels=False
    )
    with counted_calls(model.model.audio_tower) as calls:
        out = model.generate(**inputs, do_sample=False, max_new_tokens=6, eos_token_id=[])
    assert len(calls) == 1
    forced = [*model.config.audio_placeholder_ids, model.config.audio_eos_token_id]
    start = inputs["input_ids"].shape[1]
    assert not (out.sequences[:, start:] == model.config.audio_out_bos_token_id).any(), "take another seed"
    again = dict(inputs)
    for _ in range(6):
        logits = logits_of(model, again).text_logits[:, -1]
        logits[:, forced] = float("-inf")
        again["input_ids"] = torch.cat([again["input_ids"], logits.argmax(-1, keepdim=True)], 1)
        again["attention_mask"] = F.pad(again["attention_mask"], (0, 1), value=1)
        again["feature_positions"] = F.pad(again["feature_positions"], (0, 1))
    assert torch.equal(out.sequences, again["input_ids"])


def test_the_loss_of_audio_answers_is_that_of_their_columns(model, processor):
    """Features precede the columns of the answer, which must still be compared with their own labels."""
    answer = [{"type": "audio", "codes": make_codes(6)}]
    inputs = encode(processor, make_conversation(audio(0.4), answer=answer), add_generation_prompt=False)
    out = logits_of(model, inputs)
    ids = inputs["input_ids"][0]
    columns = torch.isin(ids, torch.tensor(model.config.audio_placeholder_ids)) & ~inputs["feature_positions"][0]
    before = out.logits[0, columns.nonzero().squeeze(1) - 1]  # [F, K, V + 2]
    labels = inputs["audio_labels"][0]  # [F, K]
    losses = [F.cross_entropy(before[:, k], labels[:, k]) for k in range(K)]
    torch.testing.assert_close(out.codebook_losses, torch.stack(losses))


def test_a_bfloat16_model_takes_float32_features(tokenizer, processor):
    model = make_model(tokenizer).to(torch.bfloat16)
    assert logits_of(model, encode(processor, make_conversation(audio(0.4)))).text_logits.dtype == torch.bfloat16


# Invalid input.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i.pop("feature_positions"), "must be passed together"),
        (lambda i: i.pop("input_features"), "must be passed together"),
        (lambda i: i.update(input_features=i["input_features"][:1]), "whole windows"),
        (lambda i: i.update(input_features=i["input_features"].flip(0).repeat(2, 1, 1)), "does not fit"),
        (lambda i: i.update(feature_attention_mask=i["feature_attention_mask"].flip(0)), "whole windows"),
        (lambda i: i.update(feature_attention_mask=i["feature_attention_mask"].flip(1)), "before real ones"),
        (lambda i: i.update(feature_attention_mask=i["feature_attention_mask"] * 0), "at least 3 real frames"),
        (lambda i: i.update(input_features=i["input_features"][:, 1:]), r"\[windows, 8"),
        (lambda i: i.update(input_features=i["input_features"].repeat(1, 1, 2)), "at most 200 frames"),
        (lambda i: i.update(feature_positions=~i["feature_positions"]), "audio in"),
        (lambda i: i.update(input_ids=None), "must be passed together"),
        (lambda i: i.update(input_features=i["input_features"][:0]), "at least one window"),
        (lambda i: i.update(input_features=i["input_features"][:, :, :0]), "at least one window"),
        (lambda i: i.update(feature_positions=i["feature_positions"].roll(1, 1)), "audio in"),
        (lambda i: i.update(feature_positions=i["feature_positions"].roll(-1, 1)), "audio in"),
        (lambda i: i.update(feature_positions=i["feature_positions"] & False), "whole windows"),
    ],
)
def test_features_that_do_not_fit_are_rejected(model, processor, change, words):
    inputs = without_labels(encode(processor, make_conversation(audio(0.4, 1), audio(1.0, 2))))
    change(inputs)
    if inputs.get("feature_attention_mask") is not None and len(inputs.get("input_features", ())) == 1:
        inputs["feature_attention_mask"] = inputs["feature_attention_mask"][:1]
    with pytest.raises(PromptError, match=words):
        model(**inputs)


@pytest.mark.parametrize("shift", [1, 4, 17])
def test_features_shifted_into_the_codes_of_their_audio_are_rejected(shift, model, processor_of_both):
    """Features and codes have the same placeholder, so their numbers still fit: a shift would go unnoticed."""
    inputs = without_labels(encode(processor_of_both, make_conversation(audio(0.8, codes=make_codes(20)))))
    model(**inputs)
    inputs["feature_positions"] = inputs["feature_positions"].roll(shift, 1)
    assert (inputs["input_ids"][inputs["feature_positions"]] == model.config.audio_in_token_idx).all()
    with pytest.raises(PromptError, match="features after codes of the same audio"):
        model(**inputs)


def test_features_for_a_stream_of_a_model_without_tower_are_rejected(tokenizer, processor):
    without_tower = make_model(tokenizer, skip_audio_tower=True, encode_whisper_embed=False)
    with pytest.raises(PromptError, match="without audio tower"):
        stream(without_tower, **without_labels(encode(processor, make_conversation(audio(0.4)))))


def test_a_model_without_tower_rejects_features(tokenizer, processor):
    without_tower = make_model(tokenizer, skip_audio_tower=True, encode_whisper_embed=False)
    with pytest.raises(HiggsAudioError, match="skip_audio_tower"):
        without_tower(**encode(processor, make_conversation(audio(0.4))))


# Files.


def test_saving_and_loading_changes_nothing(tokenizer, processor, tmp_path):
    model = make_model(tokenizer)
    model.model.audio_tower.embed_positions.weight.mul_(0.5)  # of a checkpoint
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert {name: tensor.tolist() for name, tensor in again.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in model.state_dict().items()
    }
    inputs = encode(HiggsAudioProcessor.from_pretrained(tmp_path), make_conversation(audio(2.4)))
    assert torch.equal(
        logits_of(again, inputs).text_logits,
        logits_of(model, encode(processor, make_conversation(audio(2.4)))).text_logits,
    )


def test_without_a_processor_file_the_config_selects_features_and_codes(tokenizer, tmp_path):
    make_config(tokenizer, encode_audio_in_tokens=False).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = HiggsAudioProcessor.from_pretrained(tmp_path).config
    assert (config.encode_whisper_embed, config.encode_audio_in_tokens) == (True, False)
    assert (config.num_mel_bins, config.window_seconds) == (BINS, 2)
    assert "audio_encoder_config" in json.loads((tmp_path / "config.json").read_text())


# Learning.


def test_a_model_learns_to_name_eight_sounds(tokenizer, processor):
    words = ["bell", "drum", "horn", "rain", "bird", "wind", "dog", "train"]
    items = [audio(0.3 + 0.1 * seed, seed) for seed in range(8)]
    batch = encode(
        processor,
        [make_conversation(s, answer=w) for s, w in zip(items, words, strict=True)],
        add_generation_prompt=False,
    )
    model = make_model(tokenizer).train()
    positions = model.model.audio_tower.embed_positions.weight.clone()
    conv = model.model.audio_tower.conv1.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        out = model(**batch, only_loss=True)
        out.text_loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out.text_loss.detach()))
    assert losses[-1] < 0.02 < 1 < losses[0]
    assert torch.equal(model.model.audio_tower.embed_positions.weight, positions)
    assert not torch.equal(model.model.audio_tower.conv1.weight, conv)
    prompts = encode(processor, [make_conversation(item) for item in items], output_labels=False)
    out = model.eval().generate(**prompts, do_sample=False, max_new_tokens=12)
    start = prompts["input_ids"].shape[1]
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in out.sequences[:, start:]] == words
