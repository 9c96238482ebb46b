"""Conversations for tests of the processor, and the strings of their prompts."""

import io
import wave

import numpy as np

K, V = 8, 1024
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
SYSTEM, USER, ASSISTANT = (HEADER.format(role) for role in ("system", "user", "assistant"))


def make_codes(num_frames, seed=0):
    return np.random.default_rng(seed).integers(0, V, (K, num_frames))


def make_wav(seconds=0.5, sample_rate=16000):
    """Returns a mono 16-bit wav file in memory."""
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
    """Returns the voice cloning conversation of the documentation, with the reference as codes."""
    return [
        message("system", "Generate audio following instruction with the same voice."),
        message("user", "A reference."),
        message("assistant", [codes_item(num_frames)]),
        message("user", "Hello."),
    ]
