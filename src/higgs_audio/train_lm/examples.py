"""The training example of the language model: a conversation of prepared clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from higgs_audio.data.shards import EncodedClip
from higgs_audio.prompt.prompt import Prompt, Turn, to_messages

# Positions that are neither phonemes nor frames: the special tokens of a turn; the system turn with scene and profiles.
TURN_POSITIONS = 22
SYSTEM_POSITIONS = 27


@dataclass(frozen=True)
class Dialogue:
    """One training example, rendered by the processor like a prompt.

    A turn is trained if its voice is determined by the preceding context: a profile or an earlier turn of the speaker.
    The last turn is always trained.

    Args:
        turns: the clips in order; the last one is the turn to generate.
        profile: the profile of the only speaker.
        speakers: number of each turn's speaker; empty for one speaker.
        profiles: speaker number -> profile, for speakers with a profile.
        system, scene: as in `Prompt`.
        drops_text: whether to replace the last text by padding, for classifier-free guidance; see `mask_last_text`.
    """

    turns: tuple[EncodedClip, ...]
    profile: str | None = None
    speakers: tuple[int, ...] = ()
    profiles: Mapping[int, str] = field(default_factory=dict)
    system: str | None = None
    scene: str | None = None
    drops_text: bool = False

    @property
    def first_trained(self) -> int:
        """Index of the first turn from which on every voice is determined."""
        speakers = self.speakers or (0,) * len(self.turns)
        named = {0} if self.profile else set(self.profiles)
        first_turns = [speakers.index(speaker) + 1 for speaker in set(speakers) - named]
        return min(max(first_turns, default=0), len(self.turns) - 1)

    @property
    def num_positions(self) -> int:
        """Upper bound estimate of the number of positions of the prompt."""
        content = sum(sample.num_frames + len(sample.phonemes) for sample in self.turns)
        return content + SYSTEM_POSITIONS + TURN_POSITIONS * len(self.turns)

    def messages(self, with_phonemes: bool = False) -> list[dict[str, Any]]:
        """Returns chat messages with the codes and the text of every turn, or with `with_phonemes` its phonemes."""
        names: Sequence[str | None] = [f"SPEAKER{number}" for number in self.speakers] or [None] * len(self.turns)
        texts = [sample.phonemes if with_phonemes else sample.text for sample in self.turns]
        turns = tuple(Turn(t, name, s.codes) for t, s, name in zip(texts, self.turns, names, strict=True))
        numbered = {0: self.profile} if self.profile else self.profiles
        profiles = {f"SPEAKER{number}": profile for number, profile in numbered.items()}
        return to_messages(Prompt(turns, self.scene, profiles, self.system))
