"""HiggsAudioTokenizer: waveforms to codes and back, 25 frames a second of 8 codebooks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertModel, PreTrainedModel
from transformers.utils import ModelOutput

from higgs_audio import checkpoint
from higgs_audio.checkpoint.weights import read_dtype, read_json
from higgs_audio.codec import dac, layout, vocos
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.codec.harmonic import HarmonicHead, PhaseState, Pitch
from higgs_audio.codec.quantizer import Codebook, Quantized, ResidualVectorQuantizer, VectorQuantizer
from higgs_audio.codec.resample import resample
from higgs_audio.codec.semantic import SemanticDecoder, SemanticEncoder
from higgs_audio.device import read_device
from higgs_audio.errors import AudioError, CodesError, OptionError, first_line, nearest

# Of transformers' `from_pretrained`; the last three are added by its Auto classes.
TRANSFORMERS_OPTIONS = {
    *("attn_implementation", "quantization_config", "output_loading_info"),
    *("trust_remote_code", "adapter_kwargs", "use_safetensors"),
}
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
    pitch: Tensor | None = None  # [B, T, 2], what a harmonic head said of it


class HiggsAudioTokenizer(PreTrainedModel):
    """The audio tokenizer: a semantic and an acoustic branch before one residual quantizer.

    The semantic branch is a frozen HuBERT whose features enter before the quantizer and are rebuilt after it in
    training; the acoustic body ("dac" or "vocos") is named in the config. All arithmetic is meant for fp32: in bf16
    the nearest entry changes.

    Sound is float32 `[B, 1, S]`, mono, 24,000 samples a second, in [-1, 1]. Codes are int64 `[B, K, F]`: a frame is
    960 samples, 1/25 s, and has a code in 0..1023 of each of 8 codebooks, 2 kbit/s. Both numbers are of the published
    sizes; `config` has those of a tokenizer. `encode` and `decode` are the two ways, `StreamDecoder` decodes in
    pieces, `forward` is the pass of training.

    Args:
        config: the sizes. A new tokenizer has random weights and empty codebooks, which training fills;
            `from_pretrained` loads a trained one.

    Source: the tokenizer of Higgs Audio V2, bosonai/higgs-audio-v2-tokenizer; its plan is that of X-codec
    (arXiv 2408.17175), its acoustic body "dac" that of the Descript Audio Codec (arXiv 2306.06546).

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
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        config: HiggsAudioTokenizerConfig | None = None,
        **options: Any,
    ) -> Any:
        """Loads an audio tokenizer from any of the layouts of `higgs_audio.codec.layout`, in eval mode.

        Args:
            pretrained_model_name_or_path: "nano", a folder, or a hub repository "org/name": a tokenizer's, or that of
                a whole checkpoint with a tokenizer in its `codec/`.
            revision: branch, tag or commit of a repository.
            dtype: torch.float32 when None, "float32" or any other, or "auto" for that of the stored weights. In
                bfloat16 the nearest entries, and with them the codes, change.
            torch_dtype: the same, by its older name.
            device_map: "cpu", "cuda:0", ..., or "auto" for a GPU where there is one; the tokenizer is never split.
            config: to be used instead of the stored one.
            **options: fields of the config, such as `acoustic_padding`; subfolder, and cache_dir, token,
                local_files_only and force_download of a repository; and `attn_implementation`, `quantization_config`
                and `output_loading_info` of transformers.

        Raises:
            CheckpointError: no such tokenizer, or files that are damaged or do not fit one another.
            OptionError: an unknown option, device or type.

        >>> HiggsAudioTokenizer.from_pretrained("nano", acoustic_padding=480).config.acoustic_padding
        480
        """
        place = _place(device_map)
        hub = {name: options.pop(name) for name in checkpoint.FOLDER_OPTIONS if name in options}
        folder = _folder(pretrained_model_name_or_path, revision=revision, **hub)
        stored, state = layout.read(cls, folder)
        config = _changed(config or stored, options)
        if config is not stored:
            layout.check(folder, state, layout.expected(cls, config))
        dtype = dtype or torch_dtype or torch.float32
        dtype = state["fc.weight"].dtype if dtype == "auto" else read_dtype(dtype)
        # Copies: the stored tensors lie in their file, which may be written to while the tokenizer lives.
        state = {name: value.clone() for name, value in state.items()}
        try:
            loaded: Any = super().from_pretrained(None, config=config, state_dict=state, dtype=dtype, **options)
        except (ImportError, ValueError, TypeError, AttributeError) as error:  # the tensors fit, so that it is options
            raise OptionError(f"the audio tokenizer does not load with these options: {first_line(error)}") from error
        tokenizer = loaded[0] if options.get("output_loading_info") else loaded
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        tokenizer.to(place)
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **options: Any) -> None:
        """Writes our layout; what was in the folder before stays until all files are written.

        Args:
            save_directory: a folder, made where there is none.
            push_to_hub: upload it as well, to `repo_id` or the folder's name.
            **options: of transformers' `save_pretrained`, such as `max_shard_size`.

        Raises:
            CheckpointError: `save_directory` is a file, or cannot be written.
        """
        with checkpoint.saved_model(self, save_directory, push_to_hub, options) as part:
            super().save_pretrained(part, *args, **options)

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
            input_values: float waveforms `[B, 1, S]` at `config.sample_rate` (24,000 Hz), mono, in [-1, 1], all of one
                length (padding would change the codes: encode recordings one by one). S >= 119, which is 5 ms. They
                are taken to the type of the weights, and must be on their device.

        Returns:
            `.audio_codes`, int64 `[B, K, F]` with `F = (S + 841) // 960` at the published sizes: a last piece of 119
            samples or more is a frame.

        Raises:
            AudioError: another number of dimensions or channels, a waveform too short, integers, NaN or infinities.

        Source: the published tokenizer's inference. Where the acoustic branch "dac" lacks a frame (S % 960 from 119 to
        631) the waveform is padded by `config.acoustic_padding`, in which the two published implementations differ.

        >>> tokenizer = HiggsAudioTokenizer.from_pretrained("nano")
        >>> sound = torch.sin(torch.arange(12000) * 0.06).view(1, 1, -1)  # 229 Hz, half a second
        >>> codes = tokenizer.encode(sound).audio_codes
        >>> codes.shape, bool((codes < 1024).all())
        (torch.Size([1, 8, 13]), True)
        >>> tokenizer.encode(sound[0])
        Traceback (most recent call last):
        higgs_audio.errors.AudioError: waveform of shape (1, 12000): expected [batch, 1, samples], mono
        """
        waveform = self._checked(input_values)
        latent = self._latent(waveform, self.semantic_features(waveform))
        return TokenizerEncoderOutput(audio_codes=self.quantizer.encode(latent))

    @torch.no_grad()
    def decode(self, audio_codes: Tensor) -> TokenizerDecoderOutput:
        """Codes to waveforms.

        Args:
            audio_codes: integers `[B, k, F]` in 0..codebook_size-1, of the first `k <= K` codebooks: fewer are a lower
                bit rate, 0.25 kbit/s each.

        Returns:
            `.audio_values`, float32 `[B, 1, F * hop_length]` at `config.sample_rate`, not clamped: 960 samples a
            frame, so up to 841 more or 118 fewer than were encoded.

        Raises:
            CodesError: another shape, a type that is not integer, or an id outside the codebook (stream markers, 1024
                and 1025, among them).

        Source: the published tokenizer's inference.

        >>> tokenizer = HiggsAudioTokenizer.from_pretrained("nano")
        >>> tokenizer.decode(torch.zeros(2, 8, 10, dtype=torch.long)).audio_values.shape
        torch.Size([2, 1, 9600])
        >>> tokenizer.decode(torch.full((1, 8, 10), 1024))
        Traceback (most recent call last):
        higgs_audio.errors.CodesError: codes from 1024 to 1024: allowed are 0 to 1023; stream markers must be removed
        """
        return TokenizerDecoderOutput(audio_values=self.acoustic_decoder(self.acoustic_features(audio_codes)))

    def acoustic_features(self, audio_codes: Tensor) -> Tensor:
        """What the acoustic decoder makes sound of: codes `[B, k, F]` to `[B, D_a, F]`; raises as `decode`."""
        self._check_codes(audio_codes)
        latent = self.quantizer.decode(audio_codes.long())  # [B, F, D]
        return self.fc2(latent).transpose(1, 2)

    def forward(
        self, input_values: Tensor, depth: Tensor | None, pitch: Pitch | None = None, before: PhaseState | None = None
    ) -> TokenizerTrainingOutput:
        """The training pass: encode, quantize, decode, with gradients.

        Args:
            input_values: `[B, 1, S]`, S a multiple of `hop_length`.
            depth: codebooks used by each sample, `[B]`; None bypasses the quantizer (warm-up).
            pitch, before: of the recordings, for a harmonic head to sing at, and where in a sound they are.
        """
        with torch.no_grad():
            target = self.semantic_features(input_values)  # [B, F, D_s]
        latent = self._latent(input_values, target)
        quantized = None if depth is None else self.quantizer(latent, depth)
        coded = latent if quantized is None else quantized.latent
        first = None if quantized is None else self._semantic_from(quantized.first)
        sound, said = self.decode_with_pitch(self.fc2(coded).transpose(1, 2), pitch, before)
        return TokenizerTrainingOutput(sound, target, self._semantic_from(coded), first, latent, quantized, said)

    def decode_with_pitch(
        self, features: Tensor, pitch: Pitch | None = None, before: PhaseState | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Features `[B, D_a, F]` to sound `[B, 1, S]` and, from a harmonic head, what it says of the pitch."""
        body = self.acoustic_decoder
        if not isinstance(body, vocos.VocosDecoder) or not isinstance(body.head, HarmonicHead):
            return body(features), None
        hidden = body.hidden(features)
        return body.sound(hidden, pitch, before), body.head.pitch(hidden)

    @property
    def pitch_hop(self) -> int | None:
        """Samples from one pitch to the next, where the decoder has a harmonic head."""
        body = self.acoustic_decoder
        return body.hop if isinstance(body, vocos.VocosDecoder) and body.is_harmonic else None

    @property
    def decoder_context(self) -> tuple[int, int]:
        """Frames left and right of a frame that its samples depend on."""
        return {"dac": dac, "vocos": vocos}[self.config.body].decoder_context(self.config)

    def semantic_features(self, waveform: Tensor) -> Tensor:
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


def _folder(name: str | Path, **place: Any) -> Path:
    """The tokenizer's folder: config.json first, then the weights that its layout has, and no other."""
    folder = checkpoint.resolve(name, patterns=("*.json", f"{checkpoint.CODEC_FOLDER}/*"), **place)
    inside = folder / checkpoint.CODEC_FOLDER
    if (inside / checkpoint.CONFIG_FILE).is_file():
        return inside
    weights = layout.WEIGHTS[layout.recognise(read_json(folder / checkpoint.CONFIG_FILE))]
    return checkpoint.resolve(name, patterns=(checkpoint.CONFIG_FILE, *weights), **place)


def _changed(config: HiggsAudioTokenizerConfig, options: dict[str, Any]) -> HiggsAudioTokenizerConfig:
    """The config with those of the options that are its fields, which are taken out of them."""
    known = config.to_dict()
    fields = {name: options.pop(name) for name in list(options) if name in known}
    if unknown := {name for name in options if not name.startswith("_")} - TRANSFORMERS_OPTIONS:
        allowed = {*TRANSFORMERS_OPTIONS, *checkpoint.FOLDER_OPTIONS, *known}
        raise OptionError(f"option {min(unknown)!r}; {nearest(min(unknown), allowed)}")
    try:
        return HiggsAudioTokenizerConfig.from_dict(known | fields) if fields else config
    except Exception as error:  # a value of another type or size fails in a dozen ways
        raise OptionError(f"{', '.join(fields)} cannot be used: {' '.join(str(error).split())}") from error


def _place(device_map: Any) -> torch.device:
    """One device; "auto" is the GPU where there is one, a mapping names it under ""."""
    wanted = device_map.get("") if isinstance(device_map, dict) and len(device_map) == 1 else device_map
    return read_device("cpu" if wanted is None else wanted, "device_map")
