"""The recipe of a language-model run."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from higgs_audio.errors import RecipeError
from higgs_audio.train_lm.composer import ExampleMix
from higgs_audio.train_lm.lora import Lora
from higgs_audio.train_lm.losses import LossWeights


@dataclass(frozen=True)
class LanguageModelRecipe:
    """All settings of a language-model run.

    Args:
        data, heldout: folders of prepared clips for training and for evaluation.
        processor: folder of the tokenizer and processor files.
        output: folder of the run.
        start: checkpoint to continue from; the model keeps its size, and `text_config` is ignored.
        base: Llama checkpoint that initializes the text and audio modules of a new model; `text_config` overrides it.
        profiles: speaker -> profile text.
        default_speaker: the speaker of prompts without a voice.

    For the shares, `reference_frames` and `more_turns` see `ExampleMix`; comments describe the other fields.
    """

    data: str
    heldout: str
    processor: str
    output: str
    start: str = ""
    base: str = ""
    text_config: dict[str, Any] = field(default_factory=dict)
    audio_adapter_type: str = "dual_ffn_fast_forward"
    profiles: dict[str, str] = field(default_factory=dict)
    default_speaker: str = ""
    new_tokens: tuple[str, ...] = ()  # added to the text tokenizer, which is then saved with the model
    reference_share: float = 0.15
    plain_share: float = 0.3
    several_share: float = 0.0
    cast_share: float = 0.0
    joined_share: float = 0.0
    switch_share: float = 0.0
    unread_share: float = 0.0
    reference_frames: tuple[int, ...] = (1, 60)
    more_turns: tuple[float, ...] = (0.6, 0.4)
    reference_labels_after: int = 0  # first trained column of references; 0: references are not trained
    num_steps: int = 5000
    batch_positions: int = 3000
    packed: bool = False  # no padding: faster with flash attention; on a CPU the block mask costs more than padding
    accumulate: int = 1  # micro-batches of each process; they share the positions of a step
    short_share: float = 0.15  # share of the steps, at the start, that use only the shorter half of the clips
    train: tuple[str, ...] = ("all",)  # parts to train, see `lora.PARTS`; with LoRA, in addition to the adapters
    lora_rank: int = 0  # 0: no LoRA
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    codebook_weights: tuple[float, ...] = (4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5)
    text_weight: float = 0.1
    z_weight: float = 0.0  # weight of the squared log of the audio head's normalizers, to keep logits from drifting
    corruption: float = 0.2
    final_corruption: float = 0.05
    guide_layers: tuple[int, ...] = (1, 2, 3)
    guide_weight: float = 0.3
    final_guide_weight: float = 0.05
    phone_layer: int = 4
    phone_weight: float = 0.5
    final_phone_weight: float = 0.1
    voice_layers: tuple[int, ...] = ()  # layers with a head supervised to attend to the speaker's earlier turns
    voice_weight: float = 0.0
    final_voice_weight: float = 0.0
    name_layer: int = 3  # layer whose output is the input of the speaker classifier, if `name_weight` is above 0
    name_weight: float = 0.0
    final_name_weight: float = 0.0
    peak_rate: float = 1.5e-3
    final_rate: float = 5e-5
    warmup: int = 300
    weight_decay: float = 0.05
    max_norm: float = 1.0
    compile: bool = False  # torch.compile for norms and feed-forward networks; on a CPU it needs a C++ compiler
    attention: str = "sdpa"  # or eager, flash_attention_2, flex_attention, as in transformers
    precision: str = "float32"  # or bfloat16, for the forward and backward pass; weights and sums stay in float32
    frozen_precision: str = "float32"  # dtype of the frozen parameters; bfloat16 requires a single process
    gradient_checkpointing: bool = False
    device: str = ""  # cpu or cuda; "": a GPU if there is one
    num_workers: int = 0  # data loading processes per training process; 0: it loads the data itself
    seed: int = 0
    save_every: int = 200
    log_every: int = 20
    check_every: int = 400
    sample_every: int = 0  # steps between audio samples of held-out sentences, with their word error rate; 0: never
    num_samples: int = 4
    patience: int = 0  # stop after this many evaluations without a better held-out loss; 0: never


AT_LEAST_ONE = ("num_steps", "batch_positions", "accumulate", "num_samples", "save_every", "log_every", "check_every")
AT_LEAST_ZERO = (
    *("lora_rank", "reference_labels_after", "sample_every", "patience", "warmup", "corruption", "weight_decay"),
    *("num_workers", "name_weight"),
    *("text_weight", "z_weight", "guide_weight", "phone_weight", "voice_weight"),
)


def check_numbers(recipe: LanguageModelRecipe) -> None:
    """Raises RecipeError if a number is below its minimum, or a share outside [0, 1]."""
    for minimum, names in ((1, AT_LEAST_ONE), (0, AT_LEAST_ZERO)):
        for name in names:
            if not getattr(recipe, name) >= minimum:  # NaN too
                raise RecipeError(f"{name}={getattr(recipe, name)} must be {minimum} or more")
    for name in (one.name for one in fields(recipe) if one.name.endswith("_share")):
        if not 0 <= getattr(recipe, name) <= 1:
            raise RecipeError(f"{name}={getattr(recipe, name)} must be between 0 and 1")


def example_mix(recipe: LanguageModelRecipe) -> ExampleMix:
    """Returns the shares of the recipe.

    Raises:
        RecipeError: `reference_frames` is not a minimum and a maximum, or `more_turns` are not shares.
    """
    frames = recipe.reference_frames
    if len(frames) != 2 or not 1 <= frames[0] <= frames[1]:
        raise RecipeError(f"reference_frames={list(frames)} must be a minimum and a maximum, such as [75, 250]")
    if not any(recipe.more_turns) or min(recipe.more_turns) < 0:
        raise RecipeError(
            f"more_turns={list(recipe.more_turns)} must be the shares of zero, one, two ... additional turns, such as "
            "[0.6, 0.4]"
        )
    return ExampleMix(
        reference=recipe.reference_share,
        plain=recipe.plain_share,
        several=recipe.several_share,
        cast=recipe.cast_share,
        joined=recipe.joined_share,
        reference_frames=(frames[0], frames[1]),
        more_turns=recipe.more_turns,
        switch=recipe.switch_share,
        unread=recipe.unread_share,
    )


def is_guided(recipe: LanguageModelRecipe) -> bool:
    """Whether the recipe uses a loss of the guide."""
    return recipe.guide_weight > 0 or recipe.phone_weight > 0 or bool(recipe.voice_layers) or recipe.name_weight > 0


def without_guide(recipe: LanguageModelRecipe) -> LanguageModelRecipe:
    """Returns the recipe without the losses that require aligned clips."""
    return replace(recipe, guide_weight=0.0, final_guide_weight=0.0, phone_weight=0.0, final_phone_weight=0.0)


def lora_options(recipe: LanguageModelRecipe) -> Lora | None:
    """Returns the recipe's LoRA options; None for full training."""
    if not recipe.lora_rank:
        return None
    also = () if recipe.train == ("all",) else recipe.train
    return Lora(recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, also)


def loss_weights(recipe: LanguageModelRecipe, step: int) -> LossWeights:
    """Returns the loss weights at a step; the guide's weights change over the first half of training."""
    progress = step / recipe.num_steps
    return LossWeights(
        text=recipe.text_weight,
        codebooks=recipe.codebook_weights,
        z=recipe.z_weight,
        look=interpolate(recipe.guide_weight, recipe.final_guide_weight, progress),
        phone=interpolate(recipe.phone_weight, recipe.final_phone_weight, progress),
        voice=interpolate(recipe.voice_weight, recipe.final_voice_weight, progress),
        name=interpolate(recipe.name_weight, recipe.final_name_weight, progress),
    )


def interpolate(first: float, last: float, progress: float) -> float:
    """Interpolates from `first` to `last` over the first half of training (`progress` 0 to 0.5)."""
    return first + (last - first) * min(1.0, 2 * progress)
