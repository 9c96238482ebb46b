"""Tiny models and processors, ours and those of transformers, with the same weights."""

from types import SimpleNamespace

import pytest
import soundfile
from oracle import (
    fill,
    make_config,
    make_tokenizer,
    make_waveform,
    nano_tokenizer,
    stand_in_torchaudio,
    transformers_model,
    transformers_tokenizer,
)
from parity import CHAT_TEMPLATE, config_for
from transformers import DacFeatureExtractor, HiggsAudioV2Processor

from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor


@pytest.fixture(scope="module")
def model():
    return fill(HiggsAudioForConditionalGeneration(make_config()))


@pytest.fixture(scope="module")
def oracle_model(model):
    return transformers_model(model)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """Processors, audio tokenizers and language models, ours and those of transformers, with the same tokenizer and
    weights."""
    tokenizer = nano_tokenizer().build()
    codec = make_tokenizer("dac", acoustic_padding=480)  # as transformers pads
    processor = HiggsAudioProcessor(tokenizer, codec)
    model = fill(HiggsAudioForConditionalGeneration(config_for(tokenizer)))
    folder = tmp_path_factory.mktemp("recordings")
    recordings = [folder / "a.wav", folder / "b.wav"]
    for seed, path in enumerate(recordings):
        samples = make_waveform(3 * 960 + (631, 118)[seed], seed=seed)[0, 0].numpy()
        soundfile.write(path, samples, 24000, subtype="FLOAT")
    with stand_in_torchaudio():
        codec_twin = transformers_tokenizer(codec.config)
        codec_twin.load_state_dict(codec.state_dict(), strict=True)
        extractor = DacFeatureExtractor(feature_size=1, hop_length=1, sampling_rate=24000)
        theirs = HiggsAudioV2Processor(extractor, tokenizer, codec_twin, chat_template=CHAT_TEMPLATE)
        yield SimpleNamespace(
            processor=processor,
            codec=codec,
            model=model,
            their_processor=theirs,
            their_model=transformers_model(model),
            recordings=[str(path) for path in recordings],
        )
