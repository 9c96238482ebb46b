"""Tiny models, and the same models built from the Higgs Audio classes of transformers, which serve as oracles.

Only tests use these classes of transformers; the package never imports them.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    DacConfig,
    GenerationConfig,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    HubertConfig,
    processing_utils,
)
from transformers.utils import import_utils

from higgs_audio.checkpoint.layouts import PUBLISHED_TEXT_CONFIG
from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
from higgs_audio.codec.resample import resample
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.delay import apply_delay

ROOT = Path(__file__).parents[2]
K, V = 8, 16
BOS, EOS = V, V + 1
AUDIO_IN, AUDIO_OUT, AUDIO_OUT_BOS, AUDIO_EOS, DELAY = 300, 301, 302, 303, 307
PAD, BEGIN, EOT = 304, 305, 308
TEXT = {
    **PUBLISHED_TEXT_CONFIG,
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": BEGIN,
    "eos_token_id": EOT,
}

# The language model.


def make_config(text=None, **fields):
    ids = {
        "audio_stream_bos_id": fields.get("audio_codebook_size", V),
        "audio_stream_eos_id": fields.get("audio_codebook_size", V) + 1,
        "audio_bos_token_id": 306,
        "audio_eos_token_id": AUDIO_EOS,
        "audio_out_bos_token_id": AUDIO_OUT_BOS,
        "audio_delay_token_id": DELAY,
        "audio_in_token_idx": AUDIO_IN,
        "audio_out_token_idx": AUDIO_OUT,
        "pad_token_id": PAD,
        "bos_token_id": BEGIN,
        "eos_token_id": EOT,
    }
    sizes = {"audio_num_codebooks": K, "audio_codebook_size": V}
    return HiggsAudioConfig(text_config={**TEXT, **(text or {})}, **{**sizes, **ids, **fields})


def fill(model, seed=0):
    """Sets matrices to N(0, 0.25) and norms to 1 + N(0, 0.1); with the usual 0.02, outputs would hardly depend on
    inputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.25 * noise if parameter.dim() > 1 else 1 + 0.1 * noise)
    return model.eval()


def transformers_model(model):
    """Returns a HiggsAudioV2ForConditionalGeneration of transformers with the sizes, ids and weights of our model."""
    config, text = model.config, model.config.text_config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings")
    theirs = HiggsAudioV2Config(
        **{name: getattr(text, name) for name in names},
        num_codebooks=config.audio_num_codebooks,
        codebook_size=config.codebook_rows,
        audio_token_id=config.audio_out_token_idx,
        audio_bos_token_id=config.audio_out_bos_token_id,
        audio_delay_token_id=config.audio_delay_token_id,
        audio_stream_bos_id=config.audio_stream_bos_id,
        audio_stream_eos_id=config.audio_stream_eos_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )
    reference = HiggsAudioV2ForConditionalGeneration(theirs, use_text_head=True).eval()
    reference.load_state_dict(model.state_dict(), strict=True)
    return reference


def generate_columns(model, batch, steps, **options):
    """Returns the columns [B, n, K] that `generate` of transformers appends to the prompt; greedy by default."""
    ids = {name: getattr(model.config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = GenerationConfig(**{"max_new_tokens": steps, "do_sample": False, **ids, **options})
    columns = model.generate(**batch, generation_config=config)
    return columns[:, batch["audio_input_ids"].shape[1] if "audio_input_ids" in batch else 0 :]


def make_codes(num_frames, seed, size=V):
    return torch.randint(0, size, (K, num_frames), generator=torch.Generator().manual_seed(seed))


def make_prompt(text, codes=(), end=(AUDIO_OUT_BOS,)):
    """Returns the token ids and columns [n, K] of a prompt: reference recordings, then text, then `end`."""
    ids, columns = [BEGIN], []
    for segment in codes:
        delayed = apply_delay(segment, BOS, EOS)
        ids += [AUDIO_OUT_BOS] + [AUDIO_OUT] * (delayed.shape[1] - 7) + [DELAY] * 7 + [AUDIO_EOS, EOT]
        columns.append(delayed.T)
    return ids + list(text) + list(end), torch.cat(columns) if columns else torch.zeros(0, K, dtype=torch.long)


def collate(prompts):
    """Returns prompts as the keyword arguments of a batch: ids padded on the left, columns on the right."""
    length, frames = max(len(ids) for ids, _ in prompts), max(len(columns) for _, columns in prompts)
    input_ids = torch.tensor([[PAD] * (length - len(ids)) + ids for ids, _ in prompts])
    mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids, _ in prompts])
    audio = torch.full((len(prompts), frames, K), EOS)
    audio_mask = torch.zeros(len(prompts), frames, dtype=torch.bool)
    for row, (_, columns) in enumerate(prompts):
        audio[row, : len(columns)], audio_mask[row, : len(columns)] = columns, True
    batch = {"input_ids": input_ids, "attention_mask": mask}
    return batch | ({"audio_input_ids": audio, "audio_input_ids_mask": audio_mask} if frames else {})


def silence(model, codebooks, id):
    """Prevents greedy sampling of `id` in these codebooks: its logit becomes the mean of the logits of the codes."""
    config = model.config
    with torch.no_grad():
        weight = model.audio_lm_head.weight.view(config.audio_num_codebooks, config.codebook_rows, -1)
        for codebook in codebooks:
            weight[codebook, id] = weight[codebook, : config.audio_codebook_size].mean(0)


def original_columns(script, num_codebooks=K):
    """Applies the rules of the original's audio mode to one list of K ids per step; returns the columns, and whether
    the segment ended. `script[0]` is the step that begins the segment, where nothing is sampled. Intentionally slow and
    simple."""
    columns, num_delay, remaining = [[BOS] * num_codebooks], 0, None
    for sampled in script[1:]:
        ids = list(sampled)
        if num_delay + 1 < num_codebooks:
            ids[num_delay + 1 :] = [BOS] * (num_codebooks - num_delay - 1)
            num_delay += 1
        if remaining is not None:
            ids[: num_codebooks - remaining] = [EOS] * (num_codebooks - remaining)
            remaining -= 1
        elif EOS in ids:
            first = ids.index(EOS)
            ids[:first] = [EOS] * first
            remaining = num_codebooks - first - 1
        columns.append(ids)
        if remaining is not None and remaining <= 0:
            return columns, True
    return columns, False


# The audio tokenizer.

RESIDUES = (0, 118, 119, 631, 632, 959)  # limits of the lengths for which the acoustic branch has one frame less
TOKENIZER_MODULE = "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer"
DAC_FIELDS = ("encoder_hidden_size", "decoder_hidden_size", "downsampling_ratios", "upsampling_ratios", "hidden_size")
HUBERT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0),
    "layerdrop": 0.0,
}
# Narrow, but with the depths and kernels of the published models, and therefore with their receptive fields.
ACOUSTIC_MODELS = {
    "dac": {"body": "dac", "encoder_hidden_size": 4, "decoder_hidden_size": 32, "hidden_size": 8},
    "vocos": {"body": "vocos", "hidden_size": 8, "encoder_widths": [16, 16], "decoder_widths": [24, 16]},
    "harmonic": {
        "body": "vocos",
        "hidden_size": 8,
        "encoder_widths": [16, 16],
        "decoder_widths": [24, 16],
        "decoder_head": "harmonic",
    },
    "vocos with lags": {"body": "vocos", "hidden_size": 8, "encoder_widths": [16, 16], "pitch_lags": 32},
}


def make_tokenizer(name, seed=0, gain=0.5, **fields):
    config = HiggsAudioTokenizerConfig(
        acoustic_model_config=ACOUSTIC_MODELS[name], semantic_model_config=HUBERT, codebook_dim=6, **fields
    )
    tokenizer = HiggsAudioTokenizer(config).eval()
    randomize(tokenizer, seed, gain)
    return tokenizer


def make_waveform(num_samples, batch=1, seed=0):
    """Returns noise [B, 1, S] whose loudness varies as in speech."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 1, num_samples, generator=generator)
    return 0.2 * noise * (1 + torch.sin(torch.arange(num_samples) / 2000))


@contextmanager
def stand_in_torchaudio():
    """Installs a `torchaudio` module with only the resampler that the audio tokenizer of transformers needs, until the
    context ends. CPU builds of torch may not include torchaudio."""
    torchaudio = types.ModuleType("torchaudio")
    torchaudio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    torchaudio.functional = types.SimpleNamespace(resample=resample)
    sys.modules["torchaudio"] = torchaudio
    import_utils.is_torchaudio_available.cache_clear()
    # transformers replaced the class by a placeholder that raises, because it found no torchaudio.
    names = vars(processing_utils.transformers_module)
    names["HiggsAudioV2TokenizerModel"] = importlib.import_module(TOKENIZER_MODULE).HiggsAudioV2TokenizerModel
    try:
        yield
    finally:
        del names["HiggsAudioV2TokenizerModel"]
        del sys.modules["torchaudio"]
        sys.modules.pop(TOKENIZER_MODULE, None)
        import_utils.is_torchaudio_available.cache_clear()


def transformers_tokenizer(config):
    """Returns a HiggsAudioV2TokenizerModel of transformers with the sizes of our config; requires torchaudio or its
    stand-in."""
    module = importlib.import_module(TOKENIZER_MODULE)
    acoustic = DacConfig(**{name: config.acoustic[name] for name in DAC_FIELDS})
    theirs = module.HiggsAudioV2TokenizerConfig(
        acoustic_model_config=acoustic,
        semantic_model_config=HubertConfig(**config.semantic.to_dict()),
        codebook_dim=config.codebook_dim,
        codebook_size=config.codebook_size,
        target_bandwidths=[0.5, 1, 1.5, 2],
    )
    return module.HiggsAudioV2TokenizerModel(theirs).eval()


def randomize(model, seed, gain):
    """Fills parameters and codebooks with noise that preserves the scale of signals, times `gain` in the acoustic
    decoder. The usual initial weights attenuate signals, which would hide errors after the first layers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            size = gain if name.startswith("acoustic_decoder") else 1
            if value.ndim > 1 and not name.endswith("alpha"):
                value.copy_(size * noise / value[0].numel() ** 0.5)
            else:
                middle = 1 if name.endswith(("alpha", "scale", "norm.weight")) else 0
                value.copy_(middle + 0.1 * noise)
        for name, value in model.named_buffers():
            if name.endswith(("codebook.embed", "codebook.embed_avg")):
                value.copy_(torch.randn(value.shape, generator=generator))


# The text tokenizer.


def nano_tokenizer():
    """Imports the recipe that builds the text tokenizer of nano."""
    spec = importlib.util.spec_from_file_location("nano_tokenizer", ROOT / "recipes" / "nano" / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
