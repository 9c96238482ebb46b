"""Collation of conversations into batches of tensors and labels."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from higgs_audio.delay import delay_labels
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_lm.examples import Dialogue
from higgs_audio.train_lm.targets import alignment_targets, speaker_labels, turn_speakers

# Tensor fields of a batch in addition to the model's inputs.
TARGETS = ("attention_targets", "phone_labels", "turn_labels", "turn_speakers", "speaker_labels")


@dataclass(frozen=True)
class Batch:
    """The model inputs and training targets of one micro-batch.

    Attributes:
        inputs: keyword arguments of the model, including labels.
        attention_targets: `[B, T]`, the target text position of the supervised attention heads.
        phone_labels: `[B, T]`, the target of the phone classifier.
        turn_labels: `[B, F, K]`, audio labels of the trained turns only; `inputs` may also label references.
        turn_speakers: `[B, T, 2]`, at audio positions the number of the turn, from 1, and of its speaker; 0 elsewhere.
        speaker_labels: `[B, T]`, the target of the speaker classifier.
        num_frames: frames of the trained turns.
    """

    inputs: dict[str, Tensor]
    attention_targets: Tensor
    phone_labels: Tensor
    turn_labels: Tensor
    turn_speakers: Tensor
    speaker_labels: Tensor
    num_frames: int

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on `device`."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, **{name: getattr(self, name).to(device) for name in TARGETS})

    def arrays(self) -> dict[str, Any]:
        """Converts every tensor to an array of small integers, for another process; see `from_arrays`."""
        tensors = {name: getattr(self, name) for name in TARGETS} | self.inputs
        short = {name: (t.int() if t.dtype == torch.int64 else t).numpy() for name, t in tensors.items()}
        return short | {"num_frames": self.num_frames}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "Batch":
        """Converts the result of `arrays` back to a batch."""
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
    """Collates conversations into a batch, padded on the right, with labels and the targets of the guide.

    Args:
        dialogues: the conversations.
        processor: renders them.
        reference_labels_after: the first labeled column of turns whose voice is determined by neither a profile nor an
            earlier turn; 0 does not label them. By that column the turn itself has revealed the voice, and the rest is
            as useful for training as another turn.
        speakers: speaker -> class of the speaker classifier.
    """
    has_phonemes = processor.text_frontend == "phonemes" and all(len(s.phones) for d in dialogues for s in d.turns)
    if has_phonemes:  # phonemizing a text takes longer than everything else here
        processor = without_frontend(processor)
    conversations = [dialogue.messages(with_phonemes=has_phonemes) for dialogue in dialogues]
    starts = [len(m) - 2 * (len(d.turns) - d.first_trained) for m, d in zip(conversations, dialogues, strict=True)]
    prompts = processor.encode_conversations(conversations, add_generation_prompt=False, start_index=starts)
    prompts = [
        replace(prompt, input_ids=processor.mask_last_text(prompt)) if dialogue.drops_text else prompt
        for prompt, dialogue in zip(prompts, dialogues, strict=True)
    ]
    inputs = dict(processor.collate(prompts, padding_side="right"))  # causal attention hides padding on the right
    ids = inputs["input_ids"]
    turn_labels = inputs["audio_labels"]
    if reference_labels_after:
        inputs["audio_labels"] = with_reference_labels(turn_labels, dialogues, processor, reference_labels_after)
    attention_targets, phone_labels = alignment_targets(ids, prompts, dialogues, processor.tokenizer)
    return Batch(
        inputs=inputs,
        attention_targets=attention_targets,
        phone_labels=phone_labels,
        turn_labels=turn_labels,
        turn_speakers=turn_speakers(ids, prompts, dialogues),
        speaker_labels=speaker_labels(ids, prompts, dialogues, speakers or {}),
        num_frames=sum(s.num_frames for d in dialogues for s in d.turns[d.first_trained :]),
    )


def without_frontend(processor: HiggsAudioProcessor) -> HiggsAudioProcessor:
    """Returns a copy of the processor for texts that are already phonemes."""
    other = copy.copy(processor)
    other.config = replace(processor.config, text_frontend="none")
    return other


def with_reference_labels(
    labels: Tensor, dialogues: Sequence[Dialogue], processor: HiggsAudioProcessor, after: int
) -> Tensor:
    """Returns `labels [B, F, K]` with labels for the turns before `first_trained` too, each from column `after` on."""
    labels, eos = labels.clone(), processor.config.audio_codebook_size + 1
    for row, dialogue in enumerate(dialogues):
        start = 0
        for turn in dialogue.turns[: dialogue.first_trained]:
            columns = delay_labels(torch.from_numpy(turn.codes.astype("int64")), eos).T  # [L, K]
            labels[row, start + after : start + len(columns)] = columns[after:]
            start += len(columns)
    return labels
