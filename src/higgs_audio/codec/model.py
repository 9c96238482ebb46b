"""HiggsAudioTokenizer: waveforms to codes and back, 25 frames a second of 8 codebooks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertModel, PreTrainedModel
from transformers.utils import ModelOutput

from higgs_audio.codec import dac, vocos
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.codec.quantizer import Codebook, Quantized, ResidualVectorQuantizer, VectorQuantizer
from higgs_audio.codec.resample import resample
from higgs_audio.codec.semantic import SemanticDecoder, SemanticEncoder
from higgs_audio.errors import AudioError, CodesError

SEMANTIC_PADDING = 160  # samples at 16 kHz on each side, half a HuBERT frame
MIN_SAMPLES = 119  # fewer give HuBERT no frame


@dataclass
class TokenizerEncoderOutput(ModelOutput):
    """`audio_codes`: int64 `[B, K, F]`."""

    audio_codes: Tensor | None = None


@dataclass
class TokenizerDecoderOutput(ModelOutput):
    """`audio_values`: float32 `[B, 1, F * hop_length]`, not clamped."""

    audio_values: Tensor | None = None


@dataclass
class TokenizerTrainingOutput(ModelOutput):
    """What the tokenizer's losses are made of; `quantized` is None while the quantizer is bypassed."""

    audio_values: Tensor | None = None  # [B, 1, S]
    semantic_target: Tensor | None = None  # [B, F, D_s]
    semantic_values: Tensor | None = None  # [B, F, D_s], rebuilt from all codebooks
    semantic_first: Tensor | None = None  # [B, F, D_s], rebuilt from the first codebook
    latent: Tensor | None = None  # [B, F, D]
    quantized: Quantized | None = None


class HiggsAudioTokenizer(PreTrainedModel):
    """The audio tokenizer: a semantic and an acoustic branch before one residual quantizer.

    The semantic branch is a frozen HuBERT whose features enter before the quantizer and are rebuilt after it in
    training; the acoustic body ("dac" or "vocos") is named in the config. All arithmetic is meant for fp32: in bf16
    the nearest entry changes.

    >>> tokenizer = HiggsAudioTokenizer.from_pretrained(higgs_audio.NANO / "codec")  # doctest: +SKIP
    >>> codes = tokenizer.encode(torch.zeros(1, 1, 24000)).audio_codes  # doctest: +SKIP
    >>> tokenizer.decode(codes).audio_values.shape  # doctest: +SKIP
    torch.Size([1, 1, 24000])
    """

    config: HiggsAudioTokenizerConfig
    config_class = HiggsAudioTokenizerConfig
    base_model_prefix = ""
    main_input_name = "input_values"
    input_modalities = "audio"

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__(config)
        bodies = {"dac": (dac.DacEncoder, dac.DacDecoder), "vocos": (vocos.VocosEncoder, vocos.VocosDecoder)}
        encoder, decoder = bodies[config.body]
        self.acoustic_encoder = encoder(config)
        self.acoustic_decoder = decoder(config)
        self.encoder_semantic = SemanticEncoder(config)
        self.decoder_semantic = SemanticDecoder(config)
        self.semantic_model = HubertModel(config.semantic).eval()
        self.fc = nn.Linear(config.hidden_size, config.hidden_size)
        self.fc1 = nn.Linear(config.hidden_size, config.semantic.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, config.acoustic["hidden_size"])
        self.quantizer = ResidualVectorQuantizer(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, but in float32 unless `dtype` says otherwise, however the weights were stored."""
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        return super().from_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Small normal weights for linears, torch's own for convolutions; codebooks wait for k-means."""
        if isinstance(module, (nn.Linear, VectorQuantizer)):
            super()._init_weights(module)
        elif isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.LayerNorm)):
            module.reset_parameters()
        elif isinstance(module, Codebook):
            module.inited.zero_()
        elif isinstance(module, (vocos.VocosEncoder, vocos.VocosDecoder)):
            module.window.copy_(torch.hann_window(module.n_fft))

    @torch.no_grad()
    def encode(self, input_values: Tensor) -> TokenizerEncoderOutput:
        """Waveforms to codes.

        Args:
            input_values: float waveforms `[B, 1, S]` at `config.sample_rate`, mono, in [-1, 1], all of one length
                (padding would change the codes: encode recordings one by one). S >= 119.

        Returns:
            `.audio_codes`, int64 `[B, K, F]` with `F = (S + 841) // 960` at the published sizes.

        Raises:
            AudioError: for another number of dimensions or channels, or a waveform too short.
        """
        waveform = self._checked(input_values)
        latent = self._latent(waveform, self._semantic_features(waveform))
        return TokenizerEncoderOutput(audio_codes=self.quantizer.encode(latent))

    @torch.no_grad()
    def decode(self, audio_codes: Tensor) -> TokenizerDecoderOutput:
        """Codes to waveforms.

        Args:
            audio_codes: integers `[B, k, F]` in 0..codebook_size-1, of the first `k <= K` codebooks.

        Returns:
            `.audio_values`, float32 `[B, 1, F * hop_length]`.

        Raises:
            CodesError: for another shape, a type that is not integer, or an id outside the codebook (stream markers
                among them).
        """
        self._check_codes(audio_codes)
        latent = self.quantizer.decode(audio_codes.long())  # [B, F, D]
        return TokenizerDecoderOutput(audio_values=self._sound(latent))

    def forward(self, input_values: Tensor, depth: Tensor | None) -> TokenizerTrainingOutput:
        """The training pass: encode, quantize, decode, with gradients.

        Args:
            input_values: `[B, 1, S]`, S a multiple of `hop_length`.
            depth: codebooks used by each sample, `[B]`; None bypasses the quantizer (warm-up).
        """
        with torch.no_grad():
            target = self._semantic_features(input_values)  # [B, F, D_s]
        latent = self._latent(input_values, target)
        quantized = None if depth is None else self.quantizer(latent, depth)
        coded = latent if quantized is None else quantized.latent
        first = None if quantized is None else self._semantic_from(quantized.first)
        return TokenizerTrainingOutput(self._sound(coded), target, self._semantic_from(coded), first, latent, quantized)

    @property
    def decoder_context(self) -> tuple[int, int]:
        """Frames left and right of a frame that its samples depend on."""
        return {"dac": dac, "vocos": vocos}[self.config.body].decoder_context(self.config)

    def _semantic_features(self, waveform: Tensor) -> Tensor:
        """Mean of HuBERT's hidden states at the frame rate, `[B, F, D_s]`."""
        c = self.config
        heard = resample(waveform[:, 0], c.sample_rate, c.semantic_sample_rate)
        heard = F.pad(heard, (SEMANTIC_PADDING, SEMANTIC_PADDING))
        states = self.semantic_model(heard, output_hidden_states=True).hidden_states
        return torch.stack(states).mean(0)[:, :: c.semantic_stride]

    def _latent(self, waveform: Tensor, semantic: Tensor) -> Tensor:
        """Both branches joined, `[B, F, D]`."""
        acoustic = self._acoustic_features(waveform, semantic.shape[1])  # [B, D_a, F]
        coded = self.encoder_semantic(semantic.transpose(1, 2))  # [B, D_s, F]
        joined: Tensor = self.fc(torch.cat([acoustic, coded], dim=1).transpose(1, 2))
        return joined

    def _acoustic_features(self, waveform: Tensor, num_frames: int) -> Tensor:
        """The acoustic encoder's `[B, D_a, num_frames]`, padded where it would give too few."""
        if self.config.body == "vocos":
            missing = num_frames * self.config.hop_length - waveform.shape[-1]
            return self.acoustic_encoder(F.pad(waveform, (0, missing)))
        if dac.encoder_frames(self.config, waveform.shape[-1]) != num_frames:
            waveform = F.pad(waveform, (self.config.acoustic_padding, self.config.acoustic_padding))
        return self.acoustic_encoder(waveform)[..., :num_frames]

    def _sound(self, latent: Tensor) -> Tensor:
        return self.acoustic_decoder(self.fc2(latent).transpose(1, 2))

    def _semantic_from(self, latent: Tensor) -> Tensor:
        return self.decoder_semantic(self.fc1(latent).transpose(1, 2)).transpose(1, 2)

    def _checked(self, waveform: Tensor) -> Tensor:
        if waveform.ndim != 3 or waveform.shape[1] != 1:
            raise AudioError(f"waveform of shape {tuple(waveform.shape)}: expected [batch, 1, samples], mono")
        if waveform.shape[2] < MIN_SAMPLES:
            raise AudioError(f"waveform of {waveform.shape[2]} samples: at least {MIN_SAMPLES} are needed (5 ms)")
        if not waveform.is_floating_point() or not bool(torch.isfinite(waveform).all()):
            raise AudioError(f"waveform of {waveform.dtype}: expected finite floating-point samples in [-1, 1]")
        return waveform.to(self.fc.weight.dtype)

    def _check_codes(self, codes: Tensor) -> None:
        k, v = self.config.num_codebooks, self.config.codebook_size
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= k or codes.shape[2] < 1:
            raise CodesError(f"codes of shape {tuple(codes.shape)}: expected [batch, 1 to {k} codebooks, frames >= 1]")
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise CodesError(f"codes of {codes.dtype}: expected integers")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= v:
            raise CodesError(f"codes from {low} to {high}: allowed are 0 to {v - 1}; stream markers must be removed")
