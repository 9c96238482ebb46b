"""A tiny model of the understanding variant, and conversations with audio for it."""

import numpy as np
import torch
from corpus import TEXT

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
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


def make_config(tokenizer, **fields):
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in TOKEN_FIELDS.items()}
    tower = {"skip_audio_tower": False, "encode_whisper_embed": True, "audio_encoder_config": dict(TOWER)}
    return HiggsAudioConfig(text_config={"vocab_size": len(tokenizer), **TEXT}, **{**ids, **tower, **fields})


def make_model(tokenizer, seed=0, **fields):
    """Returns a model with random weights, large enough for uneven attention."""
    torch.manual_seed(seed)
    return HiggsAudioForConditionalGeneration(make_config(tokenizer, initializer_range=0.2, **fields)).eval()


def make_waveform(seconds, seed=0):
    """Returns a tone with noise, different for each seed."""
    random = np.random.default_rng(seed)
    times = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (200 * 1.35**seed) * times)
    return (0.3 * tone + 0.01 * random.normal(size=len(times))).astype(np.float32)


def make_codes(num_frames, seed=0):
    return np.random.default_rng(seed).integers(0, 1024, (K, num_frames))


def audio(seconds, seed=0, **more):
    return {"type": "audio", "audio": make_waveform(seconds, seed), "sampling_rate": RATE, **more}


def make_conversation(*items, answer=None, question="What is this?"):
    conversation = [{"role": "user", "content": [question, *items]}]
    return conversation if answer is None else [*conversation, {"role": "assistant", "content": answer}]


def encode(processor, conversation, **options):
    return processor.apply_chat_template(conversation, **options)


def runs(flags):
    """Returns the lengths of the runs of true values of a row."""
    return [len(run) for run in "".join("x" if flag else " " for flag in flags.tolist()).split()]


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs)


def without_labels(inputs):
    return {name: value for name, value in inputs.items() if "labels" not in name}
