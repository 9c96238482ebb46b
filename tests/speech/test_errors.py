"""Tests of invalid arguments of HiggsAudio, and of damaged checkpoints: each raises an error of the package."""

import shutil
import time
from typing import get_type_hints

import pytest

from higgs_audio.errors import (
    AudioError,
    CheckpointError,
    CodesError,
    HiggsAudioError,
    OptionError,
    PromptError,
    TextError,
    VoiceError,
)
from higgs_audio.speech.request import SpeechOptions
from higgs_audio.speech.tts import HiggsAudio


@pytest.mark.parametrize("name", ["generate", "generate_async", "generate_batch", "stream", "stream_async"])
def test_every_method_takes_the_same_options(name):
    assert get_type_hints(getattr(HiggsAudio, name))["options"].__args__ == (SpeechOptions,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "letter or digit"),
        (" \n\t", "letter or digit"),
        ("?!...", "letter or digit"),
        ("Hello <|eot_id|> you", "<|eot_id|>"),
        ("<|AUDIO_OUT|>", "<|AUDIO_OUT|>"),
        ("Well <SE>[Laughter]</SE>", "<SE>"),
    ],
)
def test_unspeakable_text_is_rejected_before_any_audio(tts, text, message):
    with pytest.raises(TextError, match=message.replace("|", r"\|")):
        tts.stream(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": 0}, "top_k=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"max_seconds": 0}, "max_seconds=0"),
        ({"max_seconds": float("nan")}, "max_seconds=nan"),
        ({"max_seconds": "5"}, "max_seconds='5'"),
        ({"max_seconds": True}, "max_seconds=True"),
        ({"top_k": "5"}, "top_k='5'"),
        ({"max_new_tokens": 5}, "no option 'max_new_tokens'"),
    ],
)
def test_invalid_options_are_rejected_before_any_audio(tts, options, message):
    with pytest.raises(OptionError, match=message):
        tts.stream("Hello.", **options)


def test_a_special_token_in_the_scene_is_rejected(tts):
    with pytest.raises(PromptError, match="scene_desc_end"):
        tts.generate("Hello.", scene="A room.<|scene_desc_end|>")


@pytest.mark.parametrize(
    ("text", "scene", "error"), [("Half \ud800.", None, TextError), ("Hello.", "\udfff", PromptError)]
)
def test_half_a_character_is_rejected(tts, text, scene, error):
    with pytest.raises(error, match="half of a character"):
        tts.generate(text, scene=scene)


def test_scene_and_progress_are_checked(tts):
    with pytest.raises(PromptError, match="the scene is a int"):
        tts.stream("Hello.", scene=5)
    with pytest.raises(OptionError, match="progress=5"):
        tts.generate("Hello.", progress=5)


@pytest.mark.parametrize("voices", [5, ["ava"], {"ava": "Ava"}, {"ava": {"profile": None}}])
def test_the_arguments_of_the_constructor_are_checked(tts, voices):
    with pytest.raises(OptionError, match="voices="):
        HiggsAudio(tts.model, tts.processor, voices)
    with pytest.raises(OptionError, match="give a HiggsAudioForConditionalGeneration"):
        HiggsAudio(tts.processor, tts.model)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nanno", "did you mean 'nano'"), ("", "allowed: nano"), ("org/no-such-model", "neither a local folder nor")],
)
def test_an_unknown_model_suggests_the_nearest_name(name, message):
    with pytest.raises(CheckpointError, match=message):
        HiggsAudio.from_pretrained(name)


def test_an_unknown_device_is_rejected(tiny_checkpoint):
    with pytest.raises(OptionError, match="toaster"):
        HiggsAudio.from_pretrained(tiny_checkpoint, device="toaster")


def without(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def replaced(name, text):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        without("config.json"),
        without("model.safetensors"),
        without("tokenizer.json"),
        without("codec/model.safetensors"),
        cut("model.safetensors"),
        cut("codec/model.safetensors"),
        replaced("config.json", "{"),
        replaced("tokenizer.json", "{}"),
        replaced("processor_config.json", "{"),
        replaced("voices.json", '["ava"]'),
        replaced("generation_config.json", "{"),
        lambda folder: shutil.rmtree(folder / "codec"),
    ],
)
def test_a_damaged_checkpoint_is_a_checkpoint_error(tiny_checkpoint, tmp_path, damage):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError):
        HiggsAudio.from_pretrained(tmp_path / "model", device="cpu")


def test_missing_and_unexpected_weights_are_named(tiny_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    norm = weights.pop("model.norm.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing weights .*model\.norm\.weight"):
        HiggsAudio.from_pretrained(tmp_path / "model", device="cpu")
    weights |= {"model.norm.weight": norm, "model.more.weight": norm.clone()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 unexpected weights .*model\.more\.weight"):
        HiggsAudio.from_pretrained(tmp_path / "model", device="cpu")


def test_every_error_is_of_the_package(tts):
    for error in (TextError, OptionError, VoiceError, AudioError, CheckpointError, CodesError):
        assert issubclass(error, HiggsAudioError)


def test_a_text_of_one_endless_word_is_refused_before_it_is_read(tts):
    """200,000 digits once took a minute, while every other call waited."""
    started = time.process_time()
    with pytest.raises(TextError, match="a word of 200000 characters"):
        tts.generate("1" * 200_000)
    assert time.process_time() - started < 2
