"""The losses of the language model: which hidden state predicts which label, and their cross-entropy.

`HiggsAudioForConditionalGeneration.forward` averages them over a batch; training sums them over processes and
micro-batches first. Positions with the label `IGNORE_INDEX` are not trained.
"""

from torch import Tensor
from torch.nn import functional as F

from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.errors import CodesError, PromptError


def place_audio_labels(audio: Tensor, audio_labels: Tensor, columns_mask: Tensor | None) -> Tensor:
    """Returns the labels of the columns at the positions of their placeholders, `[B, T, K]`; others are ignored.

    Args:
        audio: `[B, T]` bool, true at placeholders of columns.
        audio_labels: `[B, F, K]`.
        columns_mask: `[B, F]`, true where a column is not padding; no padding when None.
    """
    placed = audio_labels.new_full((*audio.shape, audio_labels.shape[-1]), IGNORE_INDEX)
    placed[audio] = audio_labels.flatten(0, 1) if columns_mask is None else audio_labels[columns_mask.bool()]
    return placed


def select_labelled(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the M hidden states that predict a label, `[M, D]`, and their labels, `[M]` or `[M, K]`.

    The hidden state one position earlier predicts the label of a position: labels are shifted here and nowhere else.

    Args:
        hidden: `[B, T, D]`.
        labels: text labels `[B, T]`, or labels of columns `[B, T, K]`; a column is selected if any of its K cells has a
            label.
    """
    targets = labels[:, 1:].flatten(0, 1)
    is_labelled = targets != IGNORE_INDEX
    rows = (is_labelled if targets.dim() == 1 else is_labelled.any(-1)).nonzero().squeeze(1)  # [M]
    return hidden[:, :-1].flatten(0, 1).index_select(0, rows), targets[rows]


def text_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the sum of the cross-entropies of text logits `[M, V_text]` with labels `[M]`, a scalar."""
    return F.cross_entropy(logits, labels, reduction="sum")


def codebook_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of each cell, `[M, K]`, 0 in ignored cells.

    Args:
        logits: `[M, K, V + 2]`.
        labels: `[M, K]`.
    """
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )  # [M * K]
    return losses.view(labels.shape)


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Returns the mean of `losses [K]`, weighted by `weights [K]` unless None."""
    if weights is None:
        return losses.mean()
    weights = weights.to(losses)
    return (losses * weights).sum() / weights.sum()


def check_labels(
    labels: Tensor | None, input_ids: Tensor | None, audio_labels: Tensor | None, columns: Tensor | None
) -> None:
    """Checks that labels have the shape of the ids that they label.

    Raises:
        PromptError: text labels of another shape than `input_ids`, or labels without `input_ids`.
        CodesError: audio labels of another shape than `audio_input_ids`.
    """
    if input_ids is None and (labels is not None or audio_labels is not None):
        raise PromptError("labels without input_ids; pass the token ids, whose placeholders mark the columns")
    if labels is not None and input_ids is not None and labels.shape != input_ids.shape:
        raise PromptError(f"labels {tuple(labels.shape)} for input_ids {tuple(input_ids.shape)}; pass one for each id")
    if audio_labels is None:
        return
    expected = None if columns is None else tuple(columns.shape)
    if tuple(audio_labels.shape) != expected:
        raise CodesError(
            f"audio_labels {tuple(audio_labels.shape)} for audio_input_ids {expected}; pass one label for each code, "
            f"{IGNORE_INDEX} for codes that are not trained"
        )
