"""A processor with nano's text tokenizer and a tiny audio tokenizer."""

import pytest
import torch
from oracle import nano_tokenizer
from transformers import HubertConfig

from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
from higgs_audio.prompt.processor import HiggsAudioProcessor


@pytest.fixture(scope="module")
def tokenizer():
    return nano_tokenizer().build()


@pytest.fixture(scope="module")
def codec():
    """A tiny audio tokenizer with the published frame rate and noise in its codebooks."""
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
