"""HiggsAudioConfig: sizes and token ids of the language model. Defaults are those of the published 3B checkpoint."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, PreTrainedConfig
from typing_extensions import Self

from higgs_audio.checkpoint import FOLDER_OPTIONS, Checkpoint, layouts
from higgs_audio.errors import OptionError, checkpoint_errors, nearest

ADAPTERS = ("dual_ffn_fast_forward", "dual_ffn", "stack")


@strict
class HiggsAudioEncoderConfig(PreTrainedConfig):
    """The audio tower of the understanding variant: a Whisper encoder. Defaults are those of Whisper large v3.

    Args:
        num_mel_bins: mel bands of a frame of 10 ms.
        d_model, encoder_layers, encoder_attention_heads, encoder_ffn_dim: sizes of the encoder, as in `WhisperConfig`.
        max_source_positions: positions of 20 ms after the convolutions; 1500 for windows of 30 seconds.
        activation_function: of the layers; the convolutions use GELU.
        dropout, attention_dropout, activation_dropout, encoder_layerdrop: used in training only.
        scale_embedding: ignored, as in Whisper's encoder.

    Source: the block `audio_encoder_config` of the published `config.json`.
    """

    model_type = "higgs_audio_encoder"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    }

    num_mel_bins: int = 128
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    max_source_positions: int = 1500
    activation_function: str = "gelu"
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    encoder_layerdrop: float | int = 0.0
    scale_embedding: bool = False
    init_std: float = 0.02
    pad_token_id: int | None = 128001

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.d_model % self.encoder_attention_heads or self.d_model % 2:
            raise OptionError(
                f"audio_encoder_config has d_model={self.d_model} and encoder_attention_heads="
                f"{self.encoder_attention_heads}; d_model must be even and a multiple of the heads"
            )


MAX_LAYERS = 1000  # the published model has 28; the limit keeps a damaged file from allocating all memory


@strict
class HiggsAudioConfig(PreTrainedConfig):
    """Configuration of `HiggsAudioModel` and `HiggsAudioForConditionalGeneration`.

    Args:
        text_config: config of the Llama backbone, a `LlamaConfig` or a dict of its fields; the published one when None.
        audio_adapter_type: "dual_ffn_fast_forward" or "dual_ffn" gives each of the `audio_dual_ffn_layers` a second
            feed-forward network and second norms for audio positions; "stack" has one feed-forward network for both.
        audio_dual_ffn_layers: indices of the layers with a DualFFN; all layers when None.
        audio_num_codebooks: codebooks of a frame, K.
        audio_codebook_size: codes of a codebook, V (1024). Embeddings and heads have V + 2 rows.
        audio_stream_bos_id, audio_stream_eos_id: ids of stream bos and stream eos of every codebook, V and V + 1.
        audio_bos_token_id, audio_eos_token_id, audio_out_bos_token_id: text tokens before and after audio.
        audio_in_token_idx, audio_out_token_idx, audio_delay_token_id: placeholders, each replaced by one column.
        skip_audio_tower: whether the model has no audio tower; only the understanding variant has one.
        encode_whisper_embed: whether audio in user and system turns is encoded as features of the tower.
        encode_audio_in_tokens: whether it is encoded as codes; they follow the features if both are set.
        audio_encoder_config: config of the tower, a `HiggsAudioEncoderConfig` or a dict of its fields; stored but
            unused with `skip_audio_tower`.
        codec: the audio tokenizer, a repository or a folder relative to the checkpoint; "codec" is the folder inside.
        use_text_head: whether the model has a head for text; without one it generates audio only.

    `from_pretrained` reads the config.json of every layout in `checkpoint.layouts`.

    Raises:
        OptionError: an unknown adapter, or fields that contradict one another.

    Source: the published `config.json` of bosonai/higgs-audio-v2-generation-3B-base, whose field names these are.

    >>> config = HiggsAudioConfig()  # the published 3B checkpoint
    >>> config.text_config.hidden_size, config.audio_num_codebooks, config.codebook_rows
    (3072, 8, 1026)
    >>> small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> HiggsAudioConfig(text_config=small).audio_dual_ffn_layers
    [0]
    """

    model_type = "higgs_audio"
    sub_configs = {"text_config": LlamaConfig, "audio_encoder_config": HiggsAudioEncoderConfig}
    keys_to_ignore_at_inference = ["cache"]

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    audio_adapter_type: str = "dual_ffn_fast_forward"
    audio_dual_ffn_layers: list[int] | None = None
    audio_num_codebooks: int = 8
    audio_codebook_size: int = 1024
    audio_stream_bos_id: int = 1024
    audio_stream_eos_id: int = 1025
    audio_bos_token_id: int = 128011
    audio_eos_token_id: int = 128012
    audio_out_bos_token_id: int = 128013
    audio_delay_token_id: int = 128014
    audio_in_token_idx: int = 128015
    audio_out_token_idx: int = 128016
    skip_audio_tower: bool = True
    encode_whisper_embed: bool = False
    encode_audio_in_tokens: bool = True
    audio_encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    pad_token_id: int | None = 128001
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = 128009
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    codec: str | None = None
    use_text_head: bool = True

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the fields of a config.json of any layout, and the keyword arguments that transformers does not use.

        Args:
            pretrained_model_name_or_path: as in transformers, or a `Checkpoint`, whose config.json is not read again.
            **kwargs: as in transformers.

        Raises:
            CheckpointError: another model's config, or an unsupported architecture.
        """
        source = pretrained_model_name_or_path
        if isinstance(source, Checkpoint):
            config = source.inside(kwargs.get("subfolder")).config
            rest = {name: value for name, value in kwargs.items() if name not in FOLDER_OPTIONS}
        else:
            config, rest = super().get_config_dict(source, **kwargs)
        with checkpoint_errors(f"the config.json of {source} does not fit"):
            return layouts.read_fields(config, str(source)), rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Returns a config with the given fields; transformers calls this with the fields of a file.

        Raises:
            CheckpointError: a field of another type. OptionError: fields that contradict one another.
        """
        with checkpoint_errors("the fields of a HiggsAudioConfig do not fit"):
            return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, LlamaConfig):
            given = self.text_config or {}
            given = given.to_dict() if isinstance(given, PreTrainedConfig) else given
            self.text_config = LlamaConfig(**{**(given or layouts.PUBLISHED_TEXT_CONFIG), "tie_word_embeddings": False})
        if self.text_config.num_hidden_layers > MAX_LAYERS:
            raise OptionError(f"num_hidden_layers={self.text_config.num_hidden_layers}; allowed: at most {MAX_LAYERS}")
        if self.audio_dual_ffn_layers is None:
            dual = self.audio_adapter_type != "stack"
            self.audio_dual_ffn_layers = list(range(self.text_config.num_hidden_layers)) if dual else []
        if isinstance(self.audio_encoder_config, dict) or (
            self.audio_encoder_config is None and not self.skip_audio_tower
        ):
            self.audio_encoder_config = HiggsAudioEncoderConfig(**(self.audio_encoder_config or {}))
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """Raises OptionError if fields contradict one another."""
        if self.audio_adapter_type not in ADAPTERS:
            raise OptionError(
                f"audio_adapter_type={self.audio_adapter_type!r}; {nearest(self.audio_adapter_type, ADAPTERS)}"
            )
        stream_ids = (self.audio_stream_bos_id, self.audio_stream_eos_id)
        required = (self.audio_codebook_size, self.audio_codebook_size + 1)
        if stream_ids != required:
            raise OptionError(
                f"audio_stream_bos_id and audio_stream_eos_id are {stream_ids}; with audio_codebook_size="
                f"{self.audio_codebook_size} they must be {required}"
            )
        if not isinstance(self.audio_encoder_config, HiggsAudioEncoderConfig | None):
            given = type(self.audio_encoder_config).__name__
            raise OptionError(
                f"audio_encoder_config is a {given}; give a HiggsAudioEncoderConfig or a dict of its fields"
            )
        if self.encode_whisper_embed and self.skip_audio_tower:
            raise OptionError(
                "encode_whisper_embed=True needs the audio tower, which skip_audio_tower=True removes; set one of "
                "them to False"
            )
        if not self.encode_whisper_embed and not self.encode_audio_in_tokens:
            raise OptionError(
                "encode_whisper_embed and encode_audio_in_tokens are both False, so that audio in user turns cannot be "
                "encoded; set one of them to True"
            )

    @property
    def codebook_rows(self) -> int:
        """Rows of one codebook's embedding and head: V codes, stream bos, stream eos."""
        return self.audio_codebook_size + 2

    @property
    def audio_placeholder_ids(self) -> tuple[int, int, int]:
        """Token ids at whose positions the input holds one column of delayed codes."""
        return (self.audio_in_token_idx, self.audio_out_token_idx, self.audio_delay_token_id)
