"""Conversations into batches of tensors and labels."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from higgs_audio.delay import delay_labels
from higgs_audio.generation.guidance import mask_last_text
from higgs_audio.model.model import IGNORED
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_lm.examples import Dialogue
from higgs_audio.train_lm.targets import guide_targets, said_in, who_speaks

TARGETS = ("look", "phones", "turn_labels", "said", "who")  # of a batch, beside the model's inputs


@dataclass(frozen=True)
class Batch:
    """What a step needs.

    `inputs` are the model's; `look [B, T]` and `phones [B, T]` the guide's targets; `turn_labels [B, F, K]` the audio
    labels of the trained turns alone, where `inputs` may have labels of references too; `said [B, T, 2]` where sound
    is, the number of its turn, from 1, and of its speaker, and zeros elsewhere; `who [B, T]` the number of the speaker
    that the guide is to name there.
    """

    inputs: dict[str, Tensor]
    look: Tensor
    phones: Tensor
    turn_labels: Tensor
    said: Tensor
    who: Tensor
    num_frames: int

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, **{name: getattr(self, name).to(device) for name in TARGETS})

    def arrays(self) -> dict[str, Any]:
        """Everything as small arrays, to be sent to another process: `from_arrays` makes the batch of them again."""
        tensors = {name: getattr(self, name) for name in TARGETS} | self.inputs
        short = {name: (t.int() if t.dtype == torch.int64 else t).numpy() for name, t in tensors.items()}
        return short | {"num_frames": self.num_frames}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "Batch":
        """The batch that `arrays` was called of."""
        numbers = {name: torch.from_numpy(value) for name, value in arrays.items() if name != "num_frames"}
        tensors = {name: t.long() if t.dtype == torch.int32 else t for name, t in numbers.items()}
        targets = {name: tensors.pop(name) for name in TARGETS}
        return cls(inputs=tensors, num_frames=arrays["num_frames"], **targets)


def collate(
    dialogues: Sequence[Dialogue],
    processor: HiggsAudioProcessor,
    reference_labels_after: int = 0,
    speakers: Mapping[str, int] | None = None,
) -> Batch:
    """Conversations to a batch, padded on the right, with labels and the guide's targets.

    With `reference_labels_after` (0: never) a turn whose voice nothing tells is labelled too, from that column on: by
    then it has been heard in the turn itself, and what follows teaches as much as another turn would. `speakers` are
    those that the guide can name.
    """
    known = processor.text_frontend == "phonemes" and all(len(s.phones) for d in dialogues for s in d.turns)
    if known:  # reading a text takes longer than all the rest
        processor = without_frontend(processor)
    conversations = [dialogue.messages(with_phonemes=known) for dialogue in dialogues]
    starts = [len(m) - 2 * (len(d.turns) - d.first_trained) for m, d in zip(conversations, dialogues, strict=True)]
    rendered = processor.apply_chat_template(conversations, add_generation_prompt=False, start_index=starts)
    inputs = pad_behind(dict(rendered))
    inputs["input_ids"] = mask_last_texts(inputs["input_ids"], dialogues, processor)
    turn_labels = inputs["audio_labels"]
    if reference_labels_after:
        inputs["audio_labels"] = with_reference_labels(turn_labels, dialogues, processor, reference_labels_after)
    look, phones = guide_targets(inputs["input_ids"], dialogues, processor)
    return Batch(
        inputs=inputs,
        look=look,
        phones=phones,
        turn_labels=turn_labels,
        said=said_in(inputs["input_ids"], dialogues, processor),
        who=who_speaks(inputs["input_ids"], dialogues, processor, speakers or {}),
        num_frames=sum(s.num_frames for d in dialogues for s in d.turns[d.first_trained :]),
    )


def without_frontend(processor: HiggsAudioProcessor) -> HiggsAudioProcessor:
    """The same processor for texts that are phonemes already."""
    other = copy.copy(processor)
    other.config = replace(processor.config, text_frontend="none")
    return other


def mask_last_texts(ids: Tensor, dialogues: Sequence[Dialogue], processor: HiggsAudioProcessor) -> Tensor:
    """Token ids `[B, T]` with the last text of every unread dialogue hidden."""
    ids = ids.clone()
    for row, dialogue in enumerate(dialogues):
        if dialogue.unread:
            ids[row] = mask_last_text(ids[row], processor.tokenizer)
    return ids


def with_reference_labels(
    labels: Tensor, dialogues: Sequence[Dialogue], processor: HiggsAudioProcessor, after: int
) -> Tensor:
    """`labels [B, F, K]` with those of the turns before `first_trained`, each from its column number `after` on."""
    labels, eos = labels.clone(), processor.config.audio_codebook_size + 1
    for row, dialogue in enumerate(dialogues):
        start = 0
        for turn in dialogue.turns[: dialogue.first_trained]:
            own = delay_labels(torch.from_numpy(turn.codes.astype("int64")), eos, IGNORED).T  # [L, K]
            labels[row, start + after : start + len(own)] = own[after:]
            start += len(own)
    return labels


def pad_behind(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moves the padding of every row of tokens from the left to the right, where being causal hides it."""
    attended = inputs["attention_mask"]  # [B, T]
    num_pads = (1 - attended).sum(1, keepdim=True)  # [B, 1]
    order = (torch.arange(attended.shape[1]) + num_pads) % attended.shape[1]  # [B, T]
    moved = {name: inputs[name].gather(1, order) for name in ("input_ids", "attention_mask", "labels")}
    return inputs | moved
