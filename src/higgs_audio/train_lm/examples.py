"""Conversations of prepared clips to batches: the answer is the last turn, the renderer the usual one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from higgs_audio.data.shards import EncodedClip
from higgs_audio.prompt.prompt import Prompt, Turn, to_messages

# Positions that are neither phonemes nor frames: markers and header of a turn; the system turn with scene and profiles.
TURN_POSITIONS = 22
SYSTEM_POSITIONS = 27


@dataclass(frozen=True)
class Dialogue:
    """One training example.

    A turn is trained where a listener to what precedes it knows its voice: by a profile, or by an earlier turn. The
    last turn always is.

    Args:
        turns: what is said, in order; the answer last.
        profile: names the voice of the only speaker.
        speakers: number of each turn's speaker; one speaker when left out.
        profiles: number of a speaker -> profile.
        system, scene: as in `Prompt`.
        unread: the last text is hidden, see `mask_last_text`.
    """

    turns: tuple[EncodedClip, ...]
    profile: str | None = None
    speakers: tuple[int, ...] = ()
    profiles: Mapping[int, str] = field(default_factory=dict)
    system: str | None = None
    scene: str | None = None
    unread: bool = False

    @property
    def first_trained(self) -> int:
        """Number of the first turn from which on every voice is known."""
        speakers = self.speakers or (0,) * len(self.turns)
        known = {0} if self.profile else set(self.profiles)
        heard = [speakers.index(speaker) + 1 for speaker in set(speakers) - known]
        return min(max(heard, default=0), len(self.turns) - 1)

    @property
    def num_positions(self) -> int:
        """About how many positions its prompt has, never fewer."""
        said = sum(sample.num_frames + len(sample.phonemes) for sample in self.turns)
        return said + SYSTEM_POSITIONS + TURN_POSITIONS * len(self.turns)

    def messages(self, with_phonemes: bool = False) -> list[dict]:  # type: ignore[type-arg]
        """Chat messages with the codes of every turn; `with_phonemes` instead of the text, as the model reads it."""
        names: Sequence[str | None] = [f"SPEAKER{number}" for number in self.speakers] or [None] * len(self.turns)
        texts = [sample.phonemes if with_phonemes else sample.text for sample in self.turns]
        turns = tuple(Turn(t, name, s.codes) for t, s, name in zip(texts, self.turns, names, strict=True))
        lines = {0: self.profile} if self.profile else self.profiles
        profiles = {f"SPEAKER{number}": line for number, line in lines.items()}
        return to_messages(Prompt(turns, self.scene, profiles, self.system))
