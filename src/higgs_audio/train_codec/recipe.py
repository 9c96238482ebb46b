"""TokenizerRecipe: everything that a run of the audio tokenizer's training depends on."""

from dataclasses import dataclass, field
from typing import Any

from higgs_audio.errors import RecipeError, nearest
from higgs_audio.training.parallel import PRECISIONS

MATMUL_PRECISIONS = ("highest", "high", "medium")


@dataclass(frozen=True)
class TokenizerRecipe:
    """Everything a tokenizer run depends on.

    `data` is a folder with manifests, `teacher` a HubertForCTC checkpoint (frozen), `output` the run's folder.
    `depth_one` and `depth_any` are the shares of samples that use one codebook, or a random number of them; the rest
    use all. Without `semantic_branch` the teacher's features do not enter the quantizer: an ablation, with
    `semantic_weight` and `first_weight` 0 and `acoustic_share` 1. With `start` a trained tokenizer is trained on, the
    teacher is its own, and `body` and `codebook_dim` are not read. With `decoder_only` codes stay what they are, so
    language models that speak them remain good; clips are encoded once, each at a level of its own.
    With `adversarial_weight` above 0 discriminators judge, from step `adversarial_from` on, the first
    `judged_share` of every batch. `in_memory` holds all sound on the device, 2.9 MB a minute, and `matmul_precision`
    is torch's for float32 matrices: "high" lets a GPU multiply them in TF32.
    """

    data: str
    output: str
    teacher: str = ""
    start: str = ""
    decoder_only: bool = False
    body: dict[str, Any] = field(default_factory=lambda: {"body": "vocos"})
    codebook_dim: int = 64
    semantic_branch: bool = True
    num_steps: int = 4000
    batch: int = 16
    crop_seconds: float = 1.6
    warmup_unquantized: int = 500
    kmeans_batches: int = 25
    refit_every: int = 210  # steps between new axes and k-means: the latents move away from the axes of the start
    refit_share: float = 0.75  # of the steps, after which the quantizers stay as they are
    decay: float = 0.97
    acoustic_share: float = 0.65  # of the quantizer's attention; the rest is for the semantic features
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
    pitch_weight: float = 2.0  # of a harmonic head, as the next
    voicing_weight: float = 1.0
    judge_precision: str = "float32"  # or bfloat16: on a GPU the judges are most of a step
    peak_rate: float = 1e-3
    final_rate: float = 5e-5
    warmup: int = 200
    weight_decay: float = 0.01
    max_norm: float = 5.0
    device: str = ""  # cpu or cuda; "": a GPU where there is one
    in_memory: bool = False
    matmul_precision: str = "highest"
    seed: int = 0
    save_every: int = 200
    log_every: int = 20


def check_precisions(recipe: TokenizerRecipe) -> None:
    """Raises RecipeError for a precision that there is not; of one of matrices torch itself only warns."""
    for name, allowed in (("matmul_precision", MATMUL_PRECISIONS), ("judge_precision", tuple(PRECISIONS))):
        given = getattr(recipe, name)
        if given not in allowed:
            raise RecipeError(f"{name}={given!r}; {nearest(given, allowed)}")
