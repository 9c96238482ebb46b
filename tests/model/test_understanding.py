"""Tests of the understanding variant: the audio tower, its features beside codes, and answers in text."""

import json
import math

import numpy as np
import pytest
import torch
from corpus import TEXT
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from higgs_audio.audio.waveform import Waveform
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import AudioError, CodesError, HiggsAudioError, OptionError, PromptError
from higgs_audio.generation.loop import stream
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.model.tower import num_encoded, num_features
from higgs_audio.prompt.features import mel_windows
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.special_tokens import AUDIO_BOS, AUDIO_EOS, AUDIO_IN
from higgs_audio.train_lm.start import TOKEN_FIELDS

K, BINS, RATE = 8, 8, 16000
WINDOW = 200  # mel frames of the tiny tower: 2 seconds
TOWER = {
    "num_mel_bins": BINS,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "max_source_positions": WINDOW // 2,
}
FEATURES = {"encode_whisper_embed": True, "num_mel_bins": BINS, "window_seconds": 2}


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def processor(tokenizer):
    """Encodes audio as features alone."""
    return HiggsAudioProcessor(tokenizer, **FEATURES, encode_audio_in_tokens=False)


@pytest.fixture(scope="module")
def processor_of_both(tokenizer):
    """Encodes audio as features, then codes."""
    return HiggsAudioProcessor(tokenizer, **FEATURES)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


def make_config(tokenizer, **fields):
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in TOKEN_FIELDS.items()}
    tower = {"skip_audio_tower": False, "encode_whisper_embed": True, "audio_encoder_config": dict(TOWER)}
    return HiggsAudioConfig(text_config={"vocab_size": len(tokenizer), **TEXT}, **{**ids, **tower, **fields})


def make_model(tokenizer, seed=0, **fields):
    """A model with random weights that are large enough for uneven attention."""
    torch.manual_seed(seed)
    return HiggsAudioForConditionalGeneration(make_config(tokenizer, initializer_range=0.2, **fields)).eval()


def make_sound(seconds, seed=0):
    """A tone and noise, different for each seed."""
    random = np.random.default_rng(seed)
    times = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (200 * 1.35**seed) * times)
    return (0.3 * tone + 0.01 * random.normal(size=len(times))).astype(np.float32)


def make_codes(num_frames, seed=0):
    return np.random.default_rng(seed).integers(0, 1024, (K, num_frames))


def audio(seconds, seed=0, **more):
    return {"type": "audio", "audio": make_sound(seconds, seed), "sampling_rate": RATE, **more}


def ask(*items, answer=None, question="What is this?"):
    conversation = [{"role": "user", "content": [question, *items]}]
    return conversation if answer is None else [*conversation, {"role": "assistant", "content": answer}]


def encode(processor, conversation, **options):
    return processor.apply_chat_template(conversation, **options)


def runs(flags):
    """Lengths of the runs of true values of a row."""
    return [len(run) for run in "".join("x" if flag else " " for flag in flags.tolist()).split()]


# The config.


def test_a_config_has_no_tower_by_default():
    config = HiggsAudioConfig()
    assert (config.skip_audio_tower, config.encode_whisper_embed, config.encode_audio_in_tokens) == (True, False, True)
    assert HiggsAudioConfig(skip_audio_tower=False).audio_encoder_config.encoder_layers == 32


def test_the_tower_s_config_is_kept_without_a_tower():
    config = HiggsAudioConfig(audio_encoder_config={"model_type": "higgs_audio_encoder", "encoder_layers": 5})
    again = HiggsAudioConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.to_dict()["audio_encoder_config"]["encoder_layers"] == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"encode_whisper_embed": True},
        {"encode_audio_in_tokens": False},
        {"audio_encoder_config": WhisperConfig()},
        {"skip_audio_tower": False, "audio_encoder_config": {"d_model": 30, "encoder_attention_heads": 4}},
    ],
)
def test_a_contradiction_in_the_config_is_refused(fields):
    with pytest.raises(OptionError):
        HiggsAudioConfig(**fields)


def test_a_processor_encodes_audio_as_codes_or_features(tokenizer):
    with pytest.raises(OptionError, match="both False"):
        HiggsAudioProcessor(tokenizer, encode_audio_in_tokens=False)


def test_the_published_size_has_the_published_names_and_shapes():
    """Spec 1.8: the encoder of Whisper large v3, a projector with bias; position embeddings are saved, not trained."""
    with torch.device("meta"):
        model = HiggsAudioForConditionalGeneration(HiggsAudioConfig(skip_audio_tower=False, encode_whisper_embed=True))
    shapes = {name.removeprefix("model."): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tower = {name: shape for name, shape in shapes.items() if name.startswith("audio_tower.") or "_proj.linear" in name}
    assert tower == published_shapes()
    assert len(shapes) - len(tower) == 397
    assert sum(math.prod(shape) for shape in tower.values()) == 636_968_960 + 3_935_232
    assert "model.audio_tower.embed_positions.weight" not in dict(model.named_parameters())


def published_shapes():
    width, inner = 1280, 5120
    shapes = {"conv1.weight": (width, 128, 3), "conv1.bias": (width,)}
    shapes |= {"conv2.weight": (width, width, 3), "conv2.bias": (width,), "embed_positions.weight": (1500, width)}
    shapes |= {"layer_norm.weight": (width,), "layer_norm.bias": (width,)}
    for layer in (f"layers.{i}." for i in range(32)):
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (width, width) for part in ("q", "k", "v", "out")}
        shapes |= {f"{layer}self_attn.{part}_proj.bias": (width,) for part in ("q", "v", "out")}
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
        shapes |= {f"{layer}fc1.weight": (inner, width), f"{layer}fc1.bias": (inner,)}
        shapes |= {f"{layer}fc2.weight": (width, inner), f"{layer}fc2.bias": (width,)}
    projector = {"linear.weight": (3072, width), "linear.bias": (3072,)}
    return {f"audio_tower.{name}": shape for name, shape in shapes.items()} | {
        f"audio_encoder_proj.{name}": shape for name, shape in projector.items()
    }


# The tower.


def slow_tower(tower, mels, count):
    """The tower for one window `[bins, M]`, one position at a time, with attention over real positions alone."""
    config, weights = tower.config, dict(tower.state_dict())

    def convolve(x, name, stride):  # [C, M] -> [D, M / stride]
        weight, padded = weights[f"{name}.weight"], F.pad(x, (1, 1))
        columns = [padded[:, at : at + 3] for at in range(0, x.shape[1], stride)]
        return torch.stack([(weight * c).sum((1, 2)) for c in columns], dim=1) + weights[f"{name}.bias"][:, None]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]
            + (weights[f"{name}.bias"])
        )

    x = F.gelu(convolve(F.gelu(convolve(mels, "conv1", 1)), "conv2", 2)).T  # [L, D]
    x = (x + weights["embed_positions.weight"][: len(x)])[: num_encoded(count)]
    width = config.d_model // config.encoder_attention_heads
    for layer in (f"layers.{i}" for i in range(config.encoder_layers)):
        normed = norm(x, f"{layer}.self_attn_layer_norm")
        q, k, v = (linear(normed, f"{layer}.self_attn.{part}_proj") for part in "qkv")
        heads = [slice(start, start + width) for start in range(0, config.d_model, width)]
        scores = [(q[:, head] @ k[:, head].T / width**0.5).softmax(-1) @ v[:, head] for head in heads]
        x = x + linear(torch.cat(scores, dim=1), f"{layer}.self_attn.out_proj")
        inner = F.gelu(linear(norm(x, f"{layer}.final_layer_norm"), f"{layer}.fc1"))
        x = x + linear(inner, f"{layer}.fc2")
    pairs = [(x[i] + x[i + 1]) / 2 for i in range(0, len(x) - 1, 2)]
    return norm(torch.stack(pairs), "layer_norm")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_tower_is_the_one_that_is_written_out(tokenizer, attention):
    """Spec 8, row 28: the original's eager attention adds a mask of 1 and 0, which masks nothing."""
    model = make_model(tokenizer, attn_implementation=attention)
    tower, counts = model.model.audio_tower, torch.tensor([WINDOW, 75, 3, 150])
    assert tower.config._attn_implementation == attention
    mels = torch.randn(4, BINS, WINDOW)
    with torch.no_grad():
        features = tower(mels, counts)
        for window, count, given in zip(mels, counts.tolist(), features, strict=True):
            wanted = slow_tower(tower, window, count)
            assert len(wanted) == num_features(count)
            torch.testing.assert_close(given[: len(wanted)], wanted, rtol=0, atol=1e-5)


def test_before_the_pooling_the_tower_equals_the_encoder_of_transformers(model):
    tower = model.model.audio_tower
    theirs = WhisperEncoder(WhisperConfig(**TOWER)).eval()
    theirs.load_state_dict(tower.state_dict())
    theirs.layer_norm = nn.Identity()
    mels = torch.randn(2, BINS, WINDOW)
    with torch.no_grad():
        positions = theirs(mels).last_hidden_state  # [N, L, D]
        wanted = tower.layer_norm((positions[:, 0::2] + positions[:, 1::2]) / 2)
        torch.testing.assert_close(tower(mels, torch.tensor([WINDOW] * 2)), wanted, rtol=0, atol=1e-5)


def test_new_position_embeddings_are_those_of_whisper(tokenizer):
    model, fresh = make_model(tokenizer), WhisperEncoder(WhisperConfig(**TOWER)).embed_positions.weight
    positions = model.model.audio_tower.embed_positions
    torch.testing.assert_close(positions.weight, fresh, rtol=0, atol=1e-5)
    positions.weight.zero_()
    model._init_weights(positions)
    torch.testing.assert_close(positions.weight, fresh, rtol=0, atol=1e-5)


def test_num_features_is_the_number_that_the_tower_returns(model):
    tower = model.model.audio_tower
    assert num_features(3000) == 750
    for count in range(3, 30):
        assert tower(torch.randn(1, BINS, count), torch.tensor([count])).shape[1] == num_features(count)


# The processor.


def test_a_recording_becomes_log_mel_windows_of_thirty_seconds():
    (full, all_real), (rest, some) = mel_windows(Waveform(make_sound(31), RATE))
    assert full.shape == rest.shape == (128, 3000)
    assert (all_real, some) == (3000, 100)
    assert rest[:, some + 3 :].std() < 1e-6 < rest[:, : some - 3].std()  # silence


def test_thirty_one_seconds_are_two_windows_between_tokens_of_their_own(tokenizer):
    processor = HiggsAudioProcessor(tokenizer, encode_whisper_embed=True, num_mel_bins=BINS)
    inputs = encode(processor, ask(audio(31, codes=make_codes(775))))
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
    assert len(encode(processor, ask(audio(2.02)))["input_features"]) == 1
    assert len(encode(processor, ask(audio(2.03)))["input_features"]) == 2
    with pytest.raises(AudioError, match="30 ms"):
        encode(processor, ask(audio(0.02)))


def test_features_stand_before_the_codes_of_their_placeholder(processor_of_both):
    inputs = encode(processor_of_both, ask(audio(0.4, codes=make_codes(10))))
    audio_in = inputs["input_ids"][0] == processor_of_both.tokenizer.convert_tokens_to_ids(AUDIO_IN)
    assert runs(audio_in) == [10 + 10 + K + 1]
    assert torch.equal(inputs["feature_positions"][0].nonzero(), audio_in.nonzero()[:10])
    assert inputs["audio_input_ids"].shape == (1, 10 + K + 1, K)


def test_the_audio_tokenizer_gives_the_codes_of_a_recording(tiny_checkpoint):
    processor = HiggsAudioProcessor.from_pretrained(tiny_checkpoint)
    both = HiggsAudioProcessor(processor.tokenizer, processor.audio_tokenizer, **FEATURES)
    inputs = encode(both, ask(audio(1.0)))
    assert runs(inputs["feature_positions"][0]) == [25]
    assert torch.equal(inputs["audio_input_ids"], encode(processor, ask(audio(1.0)))["audio_input_ids"])


def test_audio_of_the_assistant_is_encoded_as_codes(processor):
    item = {"type": "audio", "codes": make_codes(5)}
    inputs = encode(processor, [*ask("Sing."), {"role": "assistant", "content": [item]}])
    assert "input_features" not in inputs
    assert inputs["audio_input_ids"].shape == (1, 5 + K + 1, K)


def test_labels_cover_the_answer_and_no_audio_of_the_user(processor_of_both):
    tokenizer = processor_of_both.tokenizer
    conversation = ask(audio(0.4, codes=make_codes(10)), answer="a bell")
    inputs = encode(processor_of_both, conversation, add_generation_prompt=False)
    labels = inputs["labels"][0]
    assert tokenizer.decode(labels[labels != -100]) == "a bell<|eot_id|>"
    assert set(labels[inputs["feature_positions"][0]].tolist()) == {-100}
    assert set(inputs["audio_labels"].flatten().tolist()) == {-100}


def test_codes_without_a_recording_need_a_model_that_takes_codes(processor, processor_of_both):
    item = {"type": "audio", "codes": make_codes(5)}
    assert "input_features" not in encode(processor_of_both, ask(item))
    with pytest.raises(PromptError, match="recording"):
        encode(processor, ask(item))
    with pytest.raises(PromptError, match="alone"):
        encode(processor, ask(audio(0.4, codes=make_codes(10))))


def test_codes_of_another_recording_are_refused(processor_of_both):
    with pytest.raises(CodesError, match="40 frames beside a recording of about 60"):
        encode(processor_of_both, ask(audio(2.4, codes=make_codes(40))))


def test_a_last_window_may_have_features_and_no_codes(processor_of_both):
    inputs = encode(processor_of_both, ask(audio(2.04, codes=make_codes(50))))
    assert runs(inputs["feature_positions"][0]) == [50, 1]
    assert inputs["audio_input_ids"].shape == (1, 50 + K + 1, K)


def test_codes_that_end_before_the_last_window_belong_to_the_others(processor_of_both):
    """Two frames fewer than features are a rounding difference; the last window, with one feature, has no codes."""
    inputs = encode(processor_of_both, ask(audio(2.04, codes=make_codes(49))))
    assert runs(inputs["feature_positions"][0]) == [50, 1]
    assert inputs["audio_input_ids"].shape == (1, 49 + K + 1, K)


def test_the_audio_of_a_prompt_as_string_is_encoded_too(processor):
    conversation = ask(audio(0.4))
    text = encode(processor, conversation, tokenize=False)
    assert text.count(AUDIO_IN) == 1
    inputs, again = encode(processor, conversation), processor(text, audio(0.4))
    assert torch.equal(inputs["input_ids"], again["input_ids"])
    torch.testing.assert_close(inputs["input_features"], again["input_features"])


# The model.


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs)


def test_features_take_the_text_path_and_codes_the_audio_path(tokenizer, processor, processor_of_both):
    """With noise in the audio feed-forward networks, only the logits after codes change."""
    model, other = make_model(tokenizer), make_model(tokenizer)
    with torch.no_grad():
        for layer in other.model.layers:
            layer.audio_mlp.down_proj.weight.normal_()
    alone = encode(processor, ask(audio(0.4)))
    both = encode(processor_of_both, ask(audio(0.4, codes=make_codes(10))))
    assert torch.equal(logits_of(model, alone).text_logits, logits_of(other, alone).text_logits)
    assert not torch.allclose(logits_of(model, both).text_logits, logits_of(other, both).text_logits)


def test_features_replace_the_embeddings_of_their_positions(model, processor_of_both):
    items = (audio(0.4, 1, codes=make_codes(10)), "and", audio(2.5, 2, codes=make_codes(63)))
    inputs = encode(processor_of_both, ask(*items))
    with torch.no_grad():
        features, _ = model.model.audio_features(inputs["input_features"], inputs["feature_attention_mask"])
        first = model.model(**without_labels(inputs), output_hidden_states=True).hidden_states[0]
    assert len(features) == 10 + 50 + 12
    assert torch.equal(first[inputs["feature_positions"]], features)


def without_labels(inputs):
    return {name: value for name, value in inputs.items() if "labels" not in name}


def test_rows_with_and_without_audio_equal_the_rows_alone(model, processor_of_both):
    conversations = [
        ask(audio(0.4, 1, codes=make_codes(10))),
        ask("No sound here, but many more words than in the others, so that they are padded."),
        ask(audio(2.5, 2, codes=make_codes(63)), "and", audio(1.0, 3, codes=make_codes(25))),
        ask({"type": "audio", "codes": make_codes(4)}),
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
    inputs = without_labels(encode(processor_of_both, ask(audio(0.4, codes=make_codes(10)))))
    new = torch.tensor([processor_of_both.tokenizer.encode("abc", add_special_tokens=False)])
    assert new.shape == (1, 3)
    longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], new], 1), attention_mask=None)
    longer["feature_positions"] = F.pad(inputs["feature_positions"], (0, 3))
    with torch.no_grad():
        whole = model(**longer).text_logits[0, -3:]
        cache = model(**inputs, use_cache=True).cache
        steps = [model(token[None], past_key_values=cache).text_logits[0, -1] for token in new.T]
    torch.testing.assert_close(torch.stack(steps), whole, rtol=0, atol=1e-5)


def test_generation_encodes_audio_once_and_equals_the_loop_without_cache(model, processor, monkeypatch):
    inputs = encode(processor, [ask(audio(0.4, 1)), ask(audio(1.3, 2))], output_labels=False)
    calls, forward = [], type(model.model.audio_tower).forward
    monkeypatch.setattr(type(model.model.audio_tower), "forward", lambda *a: calls.append(1) or forward(*a))
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
    inputs = encode(processor, ask(audio(0.4), answer=answer), add_generation_prompt=False)
    out = logits_of(model, inputs)
    ids = inputs["input_ids"][0]
    columns = torch.isin(ids, torch.tensor(model.config.audio_placeholder_ids)) & ~inputs["feature_positions"][0]
    before = out.logits[0, columns.nonzero().squeeze(1) - 1]  # [F, K, V + 2]
    labels = inputs["audio_labels"][0]  # [F, K]
    losses = [F.cross_entropy(before[:, k], labels[:, k]) for k in range(K)]
    torch.testing.assert_close(out.codebook_losses, torch.stack(losses))


def test_a_bfloat16_model_takes_float32_features(tokenizer, processor):
    model = make_model(tokenizer).to(torch.bfloat16)
    assert logits_of(model, encode(processor, ask(audio(0.4)))).text_logits.dtype == torch.bfloat16


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
def test_features_that_do_not_fit_are_refused(model, processor, change, words):
    inputs = without_labels(encode(processor, ask(audio(0.4, 1), audio(1.0, 2))))
    change(inputs)
    if inputs.get("feature_attention_mask") is not None and len(inputs.get("input_features", ())) == 1:
        inputs["feature_attention_mask"] = inputs["feature_attention_mask"][:1]
    with pytest.raises(PromptError, match=words):
        model(**inputs)


@pytest.mark.parametrize("shift", [1, 4, 17])
def test_features_shifted_into_the_codes_of_their_audio_are_refused(shift, model, processor_of_both):
    """Features and codes have the same placeholder, so their numbers still fit: a shift would go unnoticed."""
    inputs = without_labels(encode(processor_of_both, ask(audio(0.8, codes=make_codes(20)))))
    model(**inputs)
    inputs["feature_positions"] = inputs["feature_positions"].roll(shift, 1)
    assert (inputs["input_ids"][inputs["feature_positions"]] == model.config.audio_in_token_idx).all()
    with pytest.raises(PromptError, match="features after codes of the same audio"):
        model(**inputs)


def test_features_for_a_stream_of_a_model_without_tower_are_refused(tokenizer, processor):
    towerless = make_model(tokenizer, skip_audio_tower=True, encode_whisper_embed=False)
    with pytest.raises(PromptError, match="without audio tower"):
        stream(towerless, **without_labels(encode(processor, ask(audio(0.4)))))


def test_a_model_without_tower_refuses_features(tokenizer, processor):
    towerless = make_model(tokenizer, skip_audio_tower=True, encode_whisper_embed=False)
    with pytest.raises(HiggsAudioError, match="skip_audio_tower"):
        towerless(**encode(processor, ask(audio(0.4))))


# Files.


def test_saving_and_loading_changes_nothing(tokenizer, processor, tmp_path):
    model = make_model(tokenizer)
    model.model.audio_tower.embed_positions.weight.mul_(0.5)  # a checkpoint's own
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert {name: tensor.tolist() for name, tensor in again.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in model.state_dict().items()
    }
    inputs = encode(HiggsAudioProcessor.from_pretrained(tmp_path), ask(audio(2.4)))
    assert torch.equal(
        logits_of(again, inputs).text_logits, logits_of(model, encode(processor, ask(audio(2.4)))).text_logits
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
    sounds = [audio(0.3 + 0.1 * seed, seed) for seed in range(8)]
    batch = encode(
        processor, [ask(s, answer=w) for s, w in zip(sounds, words, strict=True)], add_generation_prompt=False
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
    prompts = encode(processor, [ask(sound) for sound in sounds], output_labels=False)
    out = model.eval().generate(**prompts, do_sample=False, max_new_tokens=12)
    start = prompts["input_ids"].shape[1]
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in out.sequences[:, start:]] == words
