"""TokenizerRecipe: all settings of a training run of the audio tokenizer."""

from dataclasses import dataclass, field
from typing import Any

from higgs_audio.errors import RecipeError, nearest
from higgs_audio.training.parallel import PRECISIONS

MATMUL_PRECISIONS = ("highest", "high", "medium")
GAIN_DB = (-10.0, 3.0)  # range of the random gain of training clips


@dataclass(frozen=True)
class TokenizerRecipe:
    """All settings of a tokenizer run.

    `data` is a folder with manifests, `teacher` a HubertForCTC checkpoint (frozen), `output` the run's folder, `body`
    the fields of the acoustic model. `depth_one` and `depth_any` are the shares of waveforms that use one codebook, or
    a random number of codebooks; the rest use all. Without `semantic_branch` the teacher's features are no input of the
    quantizer: an ablation, with `semantic_weight` and `first_weight` 0 and `acoustic_share` 1.

    `start` continues to train an existing tokenizer with its own teacher; `body` and `codebook_dim` are then ignored.
    `decoder_only` trains only its decoder: the codes do not change, so language models trained on them stay valid.
    Clips are then encoded once, each at one random gain. `fixed_codebooks` trains all but the codebooks, which are
    otherwise running averages of the latents: codes change, but entries keep their place, and a language model can
    follow with little further training.

    `heard_weight` is the weight of the consistency loss: the difference between the teacher's features of decoded and
    recorded audio, for the first `heard_share` of every batch. An `adversarial_weight` above 0 trains discriminators
    from step `adversarial_from` on, on the first `judged_share` of every batch; `judge_rate` is their learning rate.
    `in_memory` keeps all audio on the device, 2.9 MB per minute. `matmul_precision` is torch's setting for float32
    matrices: "high" allows TF32 on a GPU.
    """

    data: str
    output: str
    teacher: str = ""
    start: str = ""
    decoder_only: bool = False
    fixed_codebooks: bool = False
    body: dict[str, Any] = field(default_factory=lambda: {"body": "vocos"})
    codebook_dim: int = 64
    semantic_branch: bool = True
    num_steps: int = 4000
    batch: int = 16
    crop_seconds: float = 1.6
    warmup_unquantized: int = 500
    kmeans_batches: int = 25
    refit_every: int = 210  # steps between refits of axes and k-means, because the latents drift from the first axes
    refit_share: float = 0.75  # share of the steps after which the quantizers are no longer refitted
    replace_every: int = 50  # steps between replacements of dead codebook entries
    decay: float = 0.97
    acoustic_share: float = 0.65  # share of the latents' energy, see `codebook.rebalance`; the rest is semantic
    depth_one: float = 0.15
    depth_any: float = 0.35
    mel_weight: float = 15.0
    convergence_weight: float = 1.0
    semantic_weight: float = 1.0
    first_weight: float = 1.0
    heard_weight: float = 0.0
    heard_share: float = 0.25
    commitment_weight: float = 3.0
    scale_weight: float = 0.1
    adversarial_weight: float = 0.0
    feature_weight: float = 2.0
    adversarial_from: int = 0
    judged_share: float = 1.0
    period_channels: int = 8
    spectrum_channels: int = 16
    judge_rate: float = 3e-4
    pitch_weight: float = 2.0  # only for harmonic heads, as is voicing_weight
    voicing_weight: float = 1.0
    judge_precision: str = "float32"  # of the discriminators; or bfloat16: on a GPU they take most of a step
    peak_rate: float = 1e-3
    final_rate: float = 5e-5
    warmup: int = 200
    weight_decay: float = 0.01
    max_norm: float = 5.0
    device: str = ""  # cpu or cuda; "": a GPU if there is one
    in_memory: bool = False
    matmul_precision: str = "highest"
    seed: int = 0
    save_every: int = 200
    log_every: int = 20

    def crop_frames(self, frame_rate: float) -> int:
        """Returns the number of codec frames in a crop."""
        return round(self.crop_seconds * frame_rate)


def check_precisions(recipe: TokenizerRecipe) -> None:
    """Raises RecipeError for an unknown precision; for `matmul_precision` torch only warns."""
    for name, allowed in (("matmul_precision", MATMUL_PRECISIONS), ("judge_precision", tuple(PRECISIONS))):
        value = getattr(recipe, name)
        if value not in allowed:
            raise RecipeError(f"{name}={value!r}; {nearest(value, allowed)}")
