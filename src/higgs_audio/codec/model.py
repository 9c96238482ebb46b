"""HiggsAudioTokenizer: waveforms to codes and back, 25 frames per second of 8 codebooks."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertModel, PreTrainedModel
from transformers.utils import ModelOutput
from typing_extensions import Self, Unpack

from higgs_audio import checkpoint
from higgs_audio.checkpoint import Checkpoint
from higgs_audio.checkpoint.weights import read_dtype
from higgs_audio.codec import dac, layout, loading, vocos
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.codec.harmonic import HarmonicHead, PhaseState, Pitch
from higgs_audio.codec.loading import LoadOptions
from higgs_audio.codec.quantizer import Codebook, Quantized, ResidualVectorQuantizer, VectorQuantizer
from higgs_audio.codec.resample import resample
from higgs_audio.codec.semantic import SemanticDecoder, SemanticEncoder
from higgs_audio.errors import AudioError, CodesError, OptionError, first_line

SEMANTIC_PADDING = 160  # samples at 16 kHz on each side, half a HuBERT frame
MIN_SAMPLES = 119  # HuBERT returns no frame for fewer


@dataclass
class TokenizerEncoderOutput(ModelOutput):
    """The result of `encode`: `audio_codes`, int64 `[B, K, F]`."""

    audio_codes: Tensor


@dataclass
class TokenizerDecoderOutput(ModelOutput):
    """The result of `decode`: `audio_values`, float32 `[B, 1, F * hop_length]`, not clamped."""

    audio_values: Tensor


@dataclass
class TokenizerTrainingOutput(ModelOutput):
    """The inputs of the tokenizer's losses; `quantized` is None while the quantizer is bypassed."""

    audio_values: Tensor | None = None  # [B, 1, S]
    semantic_target: Tensor | None = None  # [B, F, D_s]
    semantic_values: Tensor | None = None  # [B, F, D_s], reconstructed from all codebooks
    semantic_first: Tensor | None = None  # [B, F, D_s], reconstructed from the first codebook
    latent: Tensor | None = None  # [B, F, D]
    quantized: Quantized | None = None
    pitch: Tensor | None = None  # [B, T, 2], predicted by a harmonic head: octaves and log odds of voicing


class HiggsAudioTokenizer(PreTrainedModel):
    """The audio tokenizer: a semantic and an acoustic branch, quantized jointly by one residual quantizer.

    The semantic branch is a frozen HuBERT; training also reconstructs its features from the quantized latent. The
    config selects the acoustic model, "dac" or "vocos". Use fp32: in bf16 the nearest entries change.

    Waveforms are float32 `[B, 1, S]`, mono, 24,000 samples per second, in [-1, 1]. Codes are int64 `[B, K, F]`: a frame
    is 960 samples, 1/25 s, and has one code in 0..1023 from each of 8 codebooks, 2 kbit/s. These are the published
    sizes; `config` has the sizes of this tokenizer. `encode` and `decode` convert between waveforms and codes,
    `StreamDecoder` decodes a stream in chunks, and `forward` is the training pass.

    Args:
        config: the sizes. A new tokenizer has random weights and empty codebooks, which training fills;
            `from_pretrained` loads a trained one.

    Source: the tokenizer of Higgs Audio V2, bosonai/higgs-audio-v2-tokenizer. Its architecture is X-codec
    (arXiv 2408.17175), and its acoustic model "dac" is the Descript Audio Codec (arXiv 2306.06546).

    >>> tokenizer = HiggsAudioTokenizer.from_pretrained("nano")
    >>> codes = tokenizer.encode(torch.zeros(1, 1, 24000)).audio_codes
    >>> codes.shape, codes.dtype
    (torch.Size([1, 8, 25]), torch.int64)
    >>> tokenizer.decode(codes).audio_values.shape
    torch.Size([1, 1, 24000])
    """

    config: HiggsAudioTokenizerConfig
    config_class = HiggsAudioTokenizerConfig
    base_model_prefix = ""
    main_input_name = "input_values"
    input_modalities = "audio"

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__(config)
        classes = {"dac": (dac.DacEncoder, dac.DacDecoder), "vocos": (vocos.VocosEncoder, vocos.VocosDecoder)}
        encoder, decoder = classes[config.body]
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
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path | Checkpoint,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        config: HiggsAudioTokenizerConfig | None = None,
        **options: Unpack[LoadOptions],
    ) -> Self:
        """Loads an audio tokenizer from any of the layouts of `higgs_audio.codec.layout`, in eval mode.

        Args:
            pretrained_model_name_or_path: "nano", a folder, or a hub repository "org/name", of an audio tokenizer or of
                a language model with an audio tokenizer in its folder `codec/`.
            revision: branch, tag or commit of a repository.
            dtype: dtype of the weights, such as torch.float32 (when None) or "bfloat16", or "auto" for the stored
                dtype. In bfloat16 the nearest entries, and with them the codes, change.
            torch_dtype: the older name of `dtype`.
            device_map: "cpu", "cuda:0", ..., or "auto" for a GPU if there is one; one device holds all weights.
            config: replaces the stored config.
            **options: `subfolder` of a folder or repository; `cache_dir`, `token`, `local_files_only` and
                `force_download` of a repository; fields of the config, such as `acoustic_padding`; and
                `attn_implementation`, `quantization_config` and `output_loading_info` of transformers.

        Returns:
            The tokenizer; with `output_loading_info=True`, a pair of tokenizer and loading report, as in transformers.

        Raises:
            CheckpointError: no such tokenizer, or files that are damaged or do not fit one another.
            OptionError: an unknown option, device or dtype.

        >>> HiggsAudioTokenizer.from_pretrained("nano", acoustic_padding=480).config.acoustic_padding
        480
        """
        device = loading.single_device(device_map)
        remaining: dict[str, Any] = dict(options)
        hub = {name: remaining.pop(name) for name in checkpoint.FOLDER_OPTIONS if name in remaining}
        folder = loading.open_tokenizer(pretrained_model_name_or_path, revision=revision, **hub)
        stored, state = layout.read(cls, folder)
        config = loading.apply_options(config or stored, remaining)
        if config is not stored:
            layout.check_tensors(folder, state, layout.expected_shapes(cls, config))
        dtype = dtype or torch_dtype or torch.float32
        dtype = state["fc.weight"].dtype if dtype == "auto" else read_dtype(dtype)
        # Copies: the stored tensors are mapped from their file, which may be overwritten while the tokenizer is in use.
        state = {name: value.clone() for name, value in state.items()}
        try:
            loaded: Any = super().from_pretrained(None, config=config, state_dict=state, dtype=dtype, **remaining)
        except (ImportError, ValueError, TypeError, AttributeError) as error:  # the tensors fit: the options are wrong
            raise OptionError(f"the audio tokenizer does not load with these options: {first_line(error)}") from error
        tokenizer = loaded[0] if remaining.get("output_loading_info") else loaded
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        tokenizer.to(device)
        return loaded

    def save_pretrained(
        self, save_directory: str | os.PathLike[Any], *args: Any, push_to_hub: bool = False, **options: Any
    ) -> None:
        """Writes the layout "native". Earlier files in the folder stay until all new files are complete.

        Args:
            save_directory: a folder; created if missing.
            push_to_hub: whether to upload it as well, to `repo_id` or a repository with the folder's name.
            *args, **options: arguments of transformers' `save_pretrained`, such as `max_shard_size`.

        Raises:
            CheckpointError: `save_directory` is a file, or cannot be written.
        """
        with checkpoint.saved_model(self, Path(save_directory), push_to_hub, options) as part:
            super().save_pretrained(part, *args, **options)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initializes linear layers with small normal weights, convolutions as torch does; codebooks stay empty."""
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
        """Encodes waveforms as codes.

        Args:
            input_values: floating-point waveforms `[B, 1, S]` at `config.sample_rate` (24,000 Hz), mono, in [-1, 1],
                on the device of the weights. S >= 119, which is 5 ms. Recordings of different lengths must be encoded
                one by one, because padding would change their codes.

        Returns:
            `.audio_codes`, int64 `[B, K, F]` with `F = (S + 841) // 960` at the published sizes: a remainder of 119
            samples or more adds a frame.

        Raises:
            AudioError: another number of dimensions or channels, a waveform too short, integers, NaN or infinities.

        Source: inference with the published tokenizer. Where the acoustic model "dac" returns one frame too few
        (S % 960 from 119 to 631), the waveform is padded by `config.acoustic_padding`; the two published
        implementations differ in it.

        >>> tokenizer = HiggsAudioTokenizer.from_pretrained("nano")
        >>> waveform = torch.sin(torch.arange(12000) * 0.06).view(1, 1, -1)  # 229 Hz, half a second
        >>> codes = tokenizer.encode(waveform).audio_codes
        >>> codes.shape, bool((codes < 1024).all())
        (torch.Size([1, 8, 13]), True)
        >>> tokenizer.encode(waveform[0])
        Traceback (most recent call last):
        higgs_audio.errors.AudioError: waveform of shape (1, 12000): expected [batch, 1, samples], mono
        """
        waveform = self._checked_waveform(input_values)
        latent = self._latent(waveform, self.semantic_features(waveform))
        return TokenizerEncoderOutput(audio_codes=self.quantizer.encode(latent))

    @torch.no_grad()
    def decode(self, audio_codes: Tensor) -> TokenizerDecoderOutput:
        """Decodes codes to waveforms.

        Args:
            audio_codes: integers `[B, k, F]` in 0..codebook_size-1, of the first `k <= K` codebooks; each one has a bit
                rate of 0.25 kbit/s.

        Returns:
            `.audio_values`, float32 `[B, 1, F * hop_length]` at `config.sample_rate`, not clamped: 960 samples per
            frame, so up to 841 more or 118 fewer than were encoded.

        Raises:
            CodesError: another shape, a dtype that is not integer, or an id outside the codebook, such as stream bos
                (1024) and stream eos (1025).

        Source: inference with the published tokenizer.

        >>> tokenizer = HiggsAudioTokenizer.from_pretrained("nano")
        >>> tokenizer.decode(torch.zeros(2, 8, 10, dtype=torch.long)).audio_values.shape
        torch.Size([2, 1, 9600])
        >>> tokenizer.decode(torch.full((1, 8, 10), 1024))
        Traceback (most recent call last):
        higgs_audio.errors.CodesError: codes from 1024 to 1024; allowed: 0 to 1023. Remove stream bos and stream eos
        """
        return TokenizerDecoderOutput(audio_values=self.acoustic_decoder(self.acoustic_features(audio_codes)))

    def acoustic_features(self, audio_codes: Tensor) -> Tensor:
        """Converts codes `[B, k, F]` to the input `[B, D_a, F]` of the acoustic decoder.

        Raises:
            CodesError: as for `decode`.
        """
        self._check_codes(audio_codes)
        latent = self.quantizer.decode(audio_codes.long())  # [B, F, D]
        return self.fc2(latent).transpose(1, 2)

    def forward(
        self, input_values: Tensor, depth: Tensor | None, pitch: Pitch | None = None, start: PhaseState | None = None
    ) -> TokenizerTrainingOutput:
        """The training pass: encode, quantize, decode, with gradients.

        Args:
            input_values: `[B, 1, S]`, S a multiple of `hop_length`.
            depth: codebooks used for each sample, `[B]`; None bypasses the quantizer (warm-up).
            pitch: pitch of the recordings; a harmonic head uses it instead of its prediction.
            start: phase at which a harmonic head starts.

        Returns:
            The inputs of the losses.
        """
        with torch.no_grad():
            target = self.semantic_features(input_values)  # [B, F, D_s]
        latent = self._latent(input_values, target)
        quantized = None if depth is None else self.quantizer(latent, depth)
        coded = latent if quantized is None else quantized.latent
        first = None if quantized is None else self._reconstruct_semantic(quantized.first)
        # Gradients of `coded` are summed in the reverse of this order, and resumed runs must be equal bit for bit.
        audio, predicted = self.decode_with_pitch(self.fc2(coded).transpose(1, 2), pitch, start)
        semantic = self._reconstruct_semantic(coded)
        return TokenizerTrainingOutput(audio, target, semantic, first, latent, quantized, predicted)

    def decode_with_pitch(
        self, features: Tensor, pitch: Pitch | None = None, start: PhaseState | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Decodes features to the waveform, and returns the pitch that a harmonic head predicts.

        Args:
            features: `[B, D_a, F]`, from `acoustic_features`.
            pitch, start: as for `forward`.

        Returns:
            The waveform `[B, 1, S]`, and octaves and log odds of voicing `[B, T, 2]`; None without a harmonic head.
        """
        decoder = self.acoustic_decoder
        if not isinstance(decoder, vocos.VocosDecoder) or not isinstance(decoder.head, HarmonicHead):
            return decoder(features), None
        hidden = decoder.hidden_states(features)
        return decoder.synthesize(hidden, pitch, start), decoder.head.pitch(hidden)

    @property
    def pitch_hop(self) -> int | None:
        """Samples between two pitch values of a harmonic head; None without one."""
        head = getattr(self.acoustic_decoder, "head", None)
        return head.hop if isinstance(head, HarmonicHead) else None

    @property
    def decoder_context(self) -> tuple[int, int]:
        """How many frames before and after a frame its samples depend on."""
        return {"dac": dac, "vocos": vocos}[self.config.body].decoder_context(self.config)

    def semantic_features(self, waveform: Tensor) -> Tensor:
        """Returns the mean of HuBERT's hidden states at the frame rate, `[B, F, D_s]`, for `waveform [B, 1, S]`."""
        c = self.config
        resampled = resample(waveform[:, 0], c.sample_rate, c.semantic_sample_rate)
        padded = F.pad(resampled, (SEMANTIC_PADDING, SEMANTIC_PADDING))
        states = self.semantic_model(padded, output_hidden_states=True).hidden_states
        return torch.stack(states).mean(0)[:, :: c.semantic_stride]

    def _latent(self, waveform: Tensor, semantic: Tensor) -> Tensor:
        """Returns the joint latent of both branches, `[B, F, D]`."""
        acoustic = self._acoustic_features(waveform, semantic.shape[1])  # [B, D_a, F]
        coded = self.encoder_semantic(semantic.transpose(1, 2))  # [B, D_s, F]
        joined: Tensor = self.fc(torch.cat([acoustic, coded], dim=1).transpose(1, 2))
        return joined

    def _acoustic_features(self, waveform: Tensor, num_frames: int) -> Tensor:
        """Returns features `[B, D_a, num_frames]` of the acoustic encoder; pads the waveform if frames are missing."""
        if self.config.body == "vocos":
            missing = num_frames * self.config.hop_length - waveform.shape[-1]
            return self.acoustic_encoder(F.pad(waveform, (0, missing)))
        if dac.encoder_frames(self.config, waveform.shape[-1]) != num_frames:
            waveform = F.pad(waveform, (self.config.acoustic_padding, self.config.acoustic_padding))
        return self.acoustic_encoder(waveform)[..., :num_frames]

    def _reconstruct_semantic(self, latent: Tensor) -> Tensor:
        """Reconstructs HuBERT's features `[B, F, D_s]` from the latent `[B, F, D]`."""
        return self.decoder_semantic(self.fc1(latent).transpose(1, 2)).transpose(1, 2)

    def _checked_waveform(self, waveform: Tensor) -> Tensor:
        if waveform.ndim != 3 or waveform.shape[1] != 1:
            raise AudioError(f"waveform of shape {tuple(waveform.shape)}: expected [batch, 1, samples], mono")
        if waveform.shape[2] < MIN_SAMPLES:
            raise AudioError(f"waveform of {waveform.shape[2]} samples: expected at least {MIN_SAMPLES} (5 ms)")
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
            raise CodesError(f"codes from {low} to {high}; allowed: 0 to {v - 1}. Remove stream bos and stream eos")
