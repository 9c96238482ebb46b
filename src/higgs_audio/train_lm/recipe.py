"""The recipe of a language-model run."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from higgs_audio.errors import RecipeError
from higgs_audio.train_lm.composer import ExampleMix
from higgs_audio.train_lm.lora import Lora
from higgs_audio.train_lm.losses import LossWeights


@dataclass(frozen=True)
class LanguageModelRecipe:
    """Everything a language-model run depends on.

    `data` and `heldout` are folders of prepared clips, `processor` a folder with the tokenizer and processor files,
    `output` the run's folder, `profiles` speaker -> profile text. `start` is a checkpoint to train on from; the model
    is then its size, and `text_config` is not read. `base` is a Llama checkpoint whose weights a new model begins with,
    for text and sound alike; `text_config` says only what differs. The shares are those of `ExampleMix`.
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
    new_tokens: tuple[str, ...] = ()  # of the text tokenizer, which is then written beside the model
    reference_share: float = 0.15
    plain_share: float = 0.3
    several_share: float = 0.0
    cast_share: float = 0.0
    joined_share: float = 0.0
    switch_share: float = 0.0
    unread_share: float = 0.0
    reference_frames: tuple[int, ...] = (1, 60)
    more_turns: tuple[float, ...] = (0.6, 0.4)
    reference_labels_after: int = 0  # columns; 0: references are not trained
    num_steps: int = 5000
    batch_positions: int = 3000
    packed: bool = False  # no padding: worth it with flash attention; on a CPU the block mask costs more than padding
    accumulate: int = 1  # micro-batches of a step in each process; the step's positions are divided among them
    short_share: float = 0.15  # of the steps, on the shorter half of the clips alone
    train: tuple[str, ...] = ("all",)  # parts of the model, see `adapt.PARTS`; with LoRA those beside the adapters
    lora_rank: int = 0  # 0: no adapters
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    codebook_weights: tuple[float, ...] = (4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5)
    text_weight: float = 0.1
    z_weight: float = 0.0  # of the squared log of the audio head's normalizers: keeps logits from drifting
    corruption: float = 0.2
    final_corruption: float = 0.05
    guide_layers: tuple[int, ...] = (1, 2, 3)
    guide_weight: float = 0.3
    final_guide_weight: float = 0.05
    phone_layer: int = 4
    phone_weight: float = 0.5
    final_phone_weight: float = 0.1
    voice_layers: tuple[int, ...] = ()  # whose second head is told to look at what the same speaker said before
    voice_weight: float = 0.0
    final_voice_weight: float = 0.0
    name_layer: int = 3  # whose output names the speaker where a turn begins, if `name_weight` is above 0
    name_weight: float = 0.0
    final_name_weight: float = 0.0
    peak_rate: float = 1.5e-3
    final_rate: float = 5e-5
    warmup: int = 300
    weight_decay: float = 0.05
    max_norm: float = 1.0
    compile: bool = False  # norms and feed-forwards through torch.compile; on a CPU it needs a C++ compiler
    attention: str = "sdpa"  # or eager, flash_attention_2, flex_attention, as transformers names them
    precision: str = "float32"  # or bfloat16: of the forward and backward pass; weights and sums stay in float32
    frozen_precision: str = "float32"  # what parameters that are not trained are held in, by one process
    gradient_checkpointing: bool = False
    device: str = ""  # cpu or cuda; "": a GPU where there is one
    num_workers: int = 0  # processes that make the batches of each process that trains; 0: itself
    seed: int = 0
    save_every: int = 200
    log_every: int = 20
    check_every: int = 400
    sample_every: int = 0  # steps between speaking held-out sentences, with their word error rate; 0: never
    num_samples: int = 4
    patience: int = 0  # checks without a better held-out loss after which the run ends; 0: all steps


AT_LEAST_ONE = ("num_steps", "batch_positions", "accumulate", "num_samples", "save_every", "log_every", "check_every")
AT_LEAST_NONE = (
    *("lora_rank", "reference_labels_after", "sample_every", "patience", "warmup", "corruption", "weight_decay"),
    *("num_workers", "name_weight"),
    *("text_weight", "z_weight", "guide_weight", "phone_weight", "voice_weight"),
)


def check_numbers(recipe: LanguageModelRecipe) -> None:
    """Raises RecipeError where a number is smaller than it can be, or a share is none."""
    for least, names in ((1, AT_LEAST_ONE), (0, AT_LEAST_NONE)):
        for name in names:
            if not getattr(recipe, name) >= least:
                raise RecipeError(f"{name}={getattr(recipe, name)} must be {least} or more")
    for name in (one.name for one in fields(recipe) if one.name.endswith("_share")):
        if not 0 <= getattr(recipe, name) <= 1:
            raise RecipeError(f"{name}={getattr(recipe, name)} must be between 0 and 1")


def mix_of(recipe: LanguageModelRecipe) -> ExampleMix:
    """The recipe's shares.

    Raises RecipeError where `reference_frames` is not a least and a most, or `more_turns` are no shares.
    """
    frames = recipe.reference_frames
    if len(frames) != 2 or not 1 <= frames[0] <= frames[1]:
        raise RecipeError(f"reference_frames={list(frames)} must be the least and the most, such as [75, 250]")
    if not any(recipe.more_turns) or min(recipe.more_turns) < 0:
        raise RecipeError(f"more_turns={list(recipe.more_turns)} must be shares of no turn more, one, two: [0.6, 0.4]")
    shares = (recipe.reference_share, recipe.plain_share, recipe.several_share, recipe.cast_share, recipe.joined_share)
    return ExampleMix(*shares, (frames[0], frames[1]), recipe.more_turns, recipe.switch_share, recipe.unread_share)


def is_guided(recipe: LanguageModelRecipe) -> bool:
    """Whether the guide teaches."""
    return recipe.guide_weight > 0 or recipe.phone_weight > 0 or bool(recipe.voice_layers) or recipe.name_weight > 0


def unguided(recipe: LanguageModelRecipe) -> LanguageModelRecipe:
    """The same without the guide, for clips that were not aligned."""
    return replace(recipe, guide_weight=0.0, final_guide_weight=0.0, phone_weight=0.0, final_phone_weight=0.0)


def lora_of(recipe: LanguageModelRecipe) -> Lora | None:
    """The recipe's adapters, if any."""
    if not recipe.lora_rank:
        return None
    also = () if recipe.train == ("all",) else recipe.train
    return Lora(recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, also)


def weights_of(recipe: LanguageModelRecipe, step: int) -> LossWeights:
    """The weights of the losses at a step: the guide's fade over the first half of training."""
    done = step / recipe.num_steps
    return LossWeights(
        text=recipe.text_weight,
        codebooks=recipe.codebook_weights,
        z=recipe.z_weight,
        look=blend(recipe.guide_weight, recipe.final_guide_weight, done),
        phone=blend(recipe.phone_weight, recipe.final_phone_weight, done),
        voice=blend(recipe.voice_weight, recipe.final_voice_weight, done),
        name=blend(recipe.name_weight, recipe.final_name_weight, done),
    )


def blend(first: float, last: float, done: float) -> float:
    """From `first` to `last` over the first half of training, then `last`."""
    return first + (last - first) * min(1.0, 2 * done)
