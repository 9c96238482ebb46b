"""Tests of training the decoder only."""

import dataclasses

import pytest
import torch
from runs import VOCOS, check_resumed, tokenizer_recipe

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.data.clips import to_int16
from higgs_audio.data.manifest import read_manifests
from higgs_audio.errors import RecipeError
from higgs_audio.train_codec.decoder import EncodedClipAudio
from higgs_audio.train_codec.tokenizer import train_tokenizer


@pytest.fixture(params=["spectrum", "harmonic"])
def decoder_recipe(request, corpus, tiny_teacher, tmp_path):
    body = VOCOS | {"decoder_head": request.param}
    whole = tokenizer_recipe(corpus, tmp_path / "start", teacher=str(tiny_teacher), body=body)
    changes = {"start": str(train_tokenizer(whole)), "decoder_only": True, "heard_weight": 0.5}
    return tokenizer_recipe(corpus, tmp_path / "decoder", **changes)


def test_a_decoder_run_that_is_killed_and_resumed_equals_an_uninterrupted_one(decoder_recipe, tmp_path):
    recipe = dataclasses.replace(decoder_recipe, num_steps=6, adversarial_weight=0.1)
    check_resumed(tmp_path, train_tokenizer, recipe, kills=(3, 1))


def test_the_waveform_codes_and_pitch_of_a_crop_are_of_the_same_frames(decoder_recipe):
    """Codes shifted by one frame would only be noticed as blurred audio after a whole run."""
    codec = HiggsAudioTokenizer.from_pretrained(decoder_recipe.start)
    clips = read_manifests(decoder_recipe.data, "train")
    crops = EncodedClipAudio(clips, codec, decoder_recipe).random_crops(3, torch.Generator().manual_seed(0))
    audio = EncodedClipAudio(clips, codec, decoder_recipe)
    whole = [audio.whole(index) for index in range(len(audio))]
    assert len(whole) == len(clips)
    for row in range(3):
        num_frames, found = crops.codes.shape[2], 0
        for clip in whole:
            for first in range(clip.codes.shape[2] - num_frames + 1):
                waveform = clip.waveform[0, 960 * first : 960 * (first + num_frames)]
                if torch.equal(to_int16(crops.waveform[row]), waveform):
                    found += 1
                    assert torch.equal(crops.codes[row], clip.codes[0, :, first : first + num_frames].long())
                    if crops.pitch is not None:
                        hz = clip.pitch.hz[0, 4 * first : 4 * (first + num_frames)]
                        assert torch.equal(crops.pitch.hz[row], hz)
        assert found == 1
    with pytest.raises(RecipeError, match="no clip is longer than crop_seconds=100"):
        EncodedClipAudio(clips, codec, dataclasses.replace(decoder_recipe, crop_seconds=100.0))


def test_short_clips_are_dropped_and_wrong_lengths_in_a_manifest_are_an_error(decoder_recipe, capsys):
    codec = HiggsAudioTokenizer.from_pretrained(decoder_recipe.start)
    clips = read_manifests(decoder_recipe.data, "train")
    short = dataclasses.replace(clips[0], seconds=0.1)
    audio = EncodedClipAudio([short, *clips], codec, decoder_recipe)
    assert audio.random_crops(2, torch.Generator().manual_seed(0)).codes.shape[0] == 2
    assert f"1 of {len(clips) + 1} clips are shorter than a crop" in capsys.readouterr().err
    wrong = [dataclasses.replace(clip, seconds=100.0) for clip in clips]
    long = dataclasses.replace(decoder_recipe, crop_seconds=50.0)
    with pytest.raises(RecipeError, match=r"frames, but 100\.0 s in the manifest"):
        EncodedClipAudio(wrong, codec, long).random_crops(1, torch.Generator().manual_seed(0))


def test_decoder_training_changes_the_decoder_and_keeps_the_codes(decoder_recipe):
    folders = (decoder_recipe.start, train_tokenizer(decoder_recipe))
    before, after = map(HiggsAudioTokenizer.from_pretrained, folders)
    waveform = 0.1 * torch.randn(1, 1, 9600, generator=torch.Generator().manual_seed(0))
    codes = before.encode(waveform).audio_codes
    assert torch.equal(after.encode(waveform).audio_codes, codes)
    assert not torch.equal(after.decode(codes).audio_values, before.decode(codes).audio_values)
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed and all(name.startswith(("acoustic_decoder.", "fc2.")) for name in changed)
