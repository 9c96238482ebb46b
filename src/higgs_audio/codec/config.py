"""HiggsAudioTokenizerConfig: the sizes of the audio tokenizer. The defaults are the published sizes."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import HubertConfig, PreTrainedConfig

from higgs_audio.errors import OptionError, nearest

# The acoustic model of the published tokenizer.
DAC_DEFAULTS: dict[str, Any] = {
    "body": "dac",
    "encoder_hidden_size": 64,
    "decoder_hidden_size": 1024,
    "downsampling_ratios": [8, 5, 4, 2, 3],
    "upsampling_ratios": [8, 5, 4, 2, 3],
    "hidden_size": 256,
}
# An acoustic model that trains and runs on two CPU cores: STFT front end, ConvNeXt, inverse-STFT head.
VOCOS_DEFAULTS: dict[str, Any] = {
    "body": "vocos",
    "n_fft": 960,
    "stft_hop": 240,  # 100 spectra per second
    "stride": 4,  # spectra in a frame
    "pitch_lags": 0,  # lags of the autocorrelation that the encoder hears besides spectra; see `VocosEncoder`
    "hidden_size": 128,
    "encoder_widths": [256, 256],  # at 100 Hz, at 25 Hz
    "encoder_depths": [2, 4],
    "decoder_widths": [384, 256],  # at 25 Hz, at 100 Hz
    "decoder_depths": [6, 2],
    "kernel_size": 7,
    "decoder_lookahead": 1,  # later positions that each convolution of the decoder depends on
    "decoder_head": "spectrum",  # or "harmonic"
}
HEADS = ("spectrum", "harmonic")
ACOUSTIC_DEFAULTS = {"dac": DAC_DEFAULTS, "vocos": VOCOS_DEFAULTS}  # value of "body" -> default fields


@strict
class HiggsAudioTokenizerConfig(PreTrainedConfig):
    """Configuration of `HiggsAudioTokenizer`. The defaults are the published sizes.

    Args:
        acoustic_model_config: fields of the acoustic model; its key "body" selects the architecture, "dac" (default)
            or "vocos". Missing fields come from `DAC_DEFAULTS` or `VOCOS_DEFAULTS`.
        semantic_model_config: a `HubertConfig` or its fields; HuBERT base when None. HuBERT is built from it and never
            downloaded.
        sample_rate, semantic_sample_rate: in Hz; 24000 and 16000.
        num_codebooks, codebook_size, codebook_dim: 8 residual codebooks of 1024 entries of 64 numbers.
        downsample_factor: samples per HuBERT frame at `semantic_sample_rate`, 320.
        kernel_size, unit_kernel_size, block_dilations, num_blocks: sizes of the convolutions in the semantic branch;
            kernel sizes are odd, in frames.
        acoustic_padding: samples added on each side where the `dac` encoder would return one frame too few: 320 in the
            original inference code, 480 in transformers. Loading a tokenizer of either layout sets it, and saving keeps
            it.
        initializer_range: standard deviation of the initial weights of linear layers.

    Raises:
        OptionError: an unknown acoustic model or decoder head, or a field that the acoustic model does not have.

    Source: `config.json` of bosonai/higgs-audio-v2-tokenizer, before and after April 2026.

    >>> config = HiggsAudioTokenizerConfig()
    >>> config.hop_length, config.frame_rate, config.hidden_size
    (960, 25.0, 1024)
    >>> HiggsAudioTokenizerConfig(acoustic_model_config={"body": "vocos"}).hidden_size
    896
    """

    model_type = "higgs_audio_tokenizer"
    sub_configs = {"semantic_model_config": HubertConfig}

    acoustic_model_config: dict[str, Any] | None = None
    semantic_model_config: dict[str, Any] | PreTrainedConfig | None = None
    sample_rate: int = 24000
    semantic_sample_rate: int = 16000
    num_codebooks: int = 8
    codebook_size: int = 1024
    codebook_dim: int = 64
    downsample_factor: int = 320
    kernel_size: int = 3
    unit_kernel_size: int = 3
    block_dilations: list[int] | tuple[int, ...] = (1, 1)
    num_blocks: int = 2
    acoustic_padding: int = 320
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        given = dict(self.acoustic_model_config or {})
        body = str(given.get("body", "dac"))
        if body not in ACOUSTIC_DEFAULTS:
            raise OptionError(f"acoustic_model_config['body']={body!r}; {nearest(body, ACOUSTIC_DEFAULTS)}")
        defaults = ACOUSTIC_DEFAULTS[body]
        if unknown := set(given) - set(defaults):
            raise OptionError(f"acoustic_model_config key {min(unknown)!r}; {nearest(min(unknown), defaults)}")
        self.acoustic_model_config = {**defaults, **given}
        head = str(self.acoustic_model_config.get("decoder_head", HEADS[0]))
        if head not in HEADS:
            raise OptionError(f"acoustic_model_config['decoder_head']={head!r}; {nearest(head, HEADS)}")
        if not isinstance(self.semantic_model_config, HubertConfig):
            fields = self.semantic_model_config or {}
            fields = fields.to_dict() if isinstance(fields, PreTrainedConfig) else fields
            self.semantic_model_config = HubertConfig(**{"mask_time_prob": 0.0, **fields})
        super().__post_init__(**kwargs)

    @property
    def body(self) -> str:
        """Architecture of the acoustic model: "dac" or "vocos"."""
        return str(self.acoustic["body"])

    @property
    def acoustic(self) -> dict[str, Any]:
        """All fields of the acoustic model."""
        assert self.acoustic_model_config is not None
        return self.acoustic_model_config

    @property
    def semantic(self) -> HubertConfig:
        """The semantic model's configuration."""
        assert isinstance(self.semantic_model_config, HubertConfig)
        return self.semantic_model_config

    @property
    def hop_length(self) -> int:
        """Samples per frame: 960."""
        if self.body == "dac":
            return math.prod(self.acoustic["downsampling_ratios"])
        return int(self.acoustic["stft_hop"] * self.acoustic["stride"])

    @property
    def frame_rate(self) -> float:
        """Frames per second: 25."""
        return self.sample_rate / self.hop_length

    @property
    def hidden_size(self) -> int:
        """Width of the quantizer's input and output: acoustic plus semantic."""
        return int(self.acoustic["hidden_size"] + self.semantic.hidden_size)

    @property
    def semantic_stride(self) -> int:
        """HuBERT frames per frame: 2."""
        hop = self.hop_length * self.semantic_sample_rate / self.sample_rate
        return int(hop / self.downsample_factor)
