"""HiggsAudioConfig: sizes and token ids of the language model. Defaults are those of the published 3B checkpoint."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, PreTrainedConfig

from higgs_audio.errors import OptionError, nearest

ADAPTERS = ("dual_ffn_fast_forward", "dual_ffn", "stack")

# The text trunk of the published checkpoint: Llama-3.2-3B.
PUBLISHED_TEXT_CONFIG = {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@strict
class HiggsAudioConfig(PreTrainedConfig):
    """Configuration of `HiggsAudioModel` and `HiggsAudioForConditionalGeneration`.

    Args:
        text_config: the Llama trunk, a `LlamaConfig` or a dict of its fields; the published 3B trunk when None.
        audio_adapter_type: "dual_ffn_fast_forward" or "dual_ffn" gives every layer named in `audio_dual_ffn_layers`
            its own feed-forward network and norms for audio positions; "stack" has one feed-forward for both.
        audio_dual_ffn_layers: layers with a DualFFN; all of them when None.
        audio_num_codebooks: codebooks of a frame, K.
        audio_codebook_size: codes of a codebook, V (1024). Embeddings and heads have V + 2 rows.
        audio_stream_bos_id, audio_stream_eos_id: the two further ids of a codebook's stream, V and V + 1.
        audio_bos_token_id, audio_eos_token_id, audio_out_bos_token_id: text tokens around audio.
        audio_in_token_idx, audio_out_token_idx, audio_delay_token_id: placeholders, each replaced by one column.
        codec: folder or name of the audio tokenizer, relative to this checkpoint ("codec" when it lies inside).

    Source: the published `config.json` of bosonai/higgs-audio-v2-generation-3B-base, whose field names these are.
    """

    model_type = "higgs_audio"
    sub_configs = {"text_config": LlamaConfig}
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
    pad_token_id: int | None = 128001
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = 128009
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    codec: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, LlamaConfig):
            given = self.text_config or {}
            given = given.to_dict() if isinstance(given, PreTrainedConfig) else given
            self.text_config = LlamaConfig(**{**(given or PUBLISHED_TEXT_CONFIG), "tie_word_embeddings": False})
        if self.audio_dual_ffn_layers is None:
            dual = self.audio_adapter_type != "stack"
            self.audio_dual_ffn_layers = list(range(self.text_config.num_hidden_layers)) if dual else []
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """Raises OptionError where the fields contradict one another."""
        if self.audio_adapter_type not in ADAPTERS:
            raise OptionError(
                f"audio_adapter_type={self.audio_adapter_type!r}; {nearest(self.audio_adapter_type, ADAPTERS)}"
            )
        markers = (self.audio_stream_bos_id, self.audio_stream_eos_id)
        wanted = (self.audio_codebook_size, self.audio_codebook_size + 1)
        if markers != wanted:
            raise OptionError(
                f"audio_stream_bos_id and audio_stream_eos_id are {markers}; with audio_codebook_size="
                f"{self.audio_codebook_size} they must be {wanted}"
            )

    @property
    def codebook_rows(self) -> int:
        """Rows of one codebook's embedding and head: V codes, stream bos, stream eos."""
        return self.audio_codebook_size + 2

    @property
    def audio_placeholder_ids(self) -> tuple[int, int, int]:
        """Token ids whose positions hold one column of delayed codes each."""
        return (self.audio_in_token_idx, self.audio_out_token_idx, self.audio_delay_token_id)
