"""Draws conversations from prepared clips: by name, after a reference, among several speakers."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from higgs_audio.data.phones import PHONES
from higgs_audio.data.shards import EncodedClip
from higgs_audio.prompt.prompt import MULTI_SPEAKER, SINGLE_SPEAKER
from higgs_audio.train_lm.examples import Dialogue

SAME_VOICE = "Generate audio following instruction with the same voice."
# The system text of the Hugging Face examples for several speakers; that of the original ones is MULTI_SPEAKER.
SEVERAL_SPEAKERS = (
    "As an AI assistant, your task is to convert written text into spoken words.\n"
    "    If the user's input begins with a [SPEAKER*] tag, omit the tag and create speech based on the following "
    "content using the designated voice.\n"
    "    Without a speaker tag, choose the most suitable voice for the text.\n"
)
QUIET_ROOM = "Audio is recorded from a quiet room."

# (share, system text, scene) of the prompts in which references are heard; None as `to_messages` chooses.
Forms = tuple[tuple[float, str | None, str | None], ...]
CLONE_FORMS: Forms = (
    (0.4, SAME_VOICE, QUIET_ROOM),
    (0.15, SAME_VOICE, None),
    (0.25, None, None),
    (0.2, SINGLE_SPEAKER, QUIET_ROOM),
)
SEVERAL_FORMS: Forms = (
    (0.6, SEVERAL_SPEAKERS, None),
    (0.15, MULTI_SPEAKER, None),
    (0.15, None, None),
    (0.1, SINGLE_SPEAKER, QUIET_ROOM),
)
NUM_SPEAKERS = (0.75, 0.17, 0.08)  # shares of two, three and four in a conversation
MAX_TURN_FRAMES = 200  # of two sentences that are said as one turn
TRIES, MANY_CLIPS = 6, 50  # a clip is drawn so many times; where there are few, all are looked at after that


@dataclass(frozen=True)
class ExampleMix:
    """Shares of the kinds of conversation, and how long references are.

    Args:
        reference: of a named speaker's samples, those after a reference of their own, half of them without the name.
        plain: of the default speaker's samples, those with neither name nor reference.
        several: of all samples, those among two to four speakers, each of whom is heard before.
        cast: of a named speaker's samples, those among named speakers, with tags.
        joined: of all samples, those with another sentence of the speaker before them, in one turn.
        reference_frames: least and most; several clips make one reference where one is too short.
        more_turns: shares of conversations with no turn, one, two ... between what must be heard and the last one;
            they are trained as well, so a reference is read once for several answers.
        switch: of the turns among several speakers, those that cannot be of the speaker before: a model that goes on
            in the voice that it heard last is right too often otherwise.
        unread: of all conversations, those whose last text is hidden: what a model says without having read can be
            taken from what it says, see `text_guidance_scale` of `generate`.
    """

    reference: float = 0.15
    plain: float = 0.3
    several: float = 0.0
    cast: float = 0.0
    joined: float = 0.0
    reference_frames: tuple[int, int] = (1, 60)
    more_turns: tuple[float, ...] = (0.6, 0.4)
    switch: float = 0.0
    unread: float = 0.0


class Composer:
    """Draws a conversation for each sample.

    Args:
        samples: all prepared clips.
        profiles: speaker -> profile text, of the voices that are called by name; other speakers are only ever heard
            after a reference of their own.
        default: the named speaker that speaks where nothing is asked for.
        mix: shares of the kinds.
    """

    def __init__(
        self, samples: Sequence[EncodedClip], profiles: Mapping[str, str], default: str, mix: ExampleMix
    ) -> None:
        self._samples, self._profiles, self._default, self._mix = samples, profiles, default, mix
        self._clips: dict[str, list[int]] = defaultdict(list)
        for number, sample in enumerate(samples):
            self._clips[sample.speaker].append(number)
        self._named = [speaker for speaker in self._clips if speaker in profiles]
        wanted = {sample.reference for sample in samples if sample.reference}
        self._places = {sample.id: number for number, sample in enumerate(samples) if sample.id in wanted}

    def __len__(self) -> int:
        return len(self._samples)

    def compose(self, number: int, generator: torch.Generator) -> Dialogue:
        """The conversation whose last turn is, or ends with, sample `number`. No clip occurs in it twice."""
        draft = _Draft(self._samples, self._clips, self._places, self._mix, generator, number)
        return draft.hidden(draft.compose(self._profiles, self._default, self._named))


class _Draft:
    """One conversation being drawn; `used` are the numbers of the clips that it has already.

    `places` are the numbers of the samples that others ask to be heard after, by their ids.
    """

    def __init__(
        self,
        samples: Sequence[EncodedClip],
        clips: Mapping[str, list[int]],
        places: Mapping[str, int],
        mix: ExampleMix,
        generator: torch.Generator,
        number: int,
    ) -> None:
        self._samples, self._clips, self._places = samples, clips, places
        self._mix, self._generator = mix, generator
        self._used = {number}
        self._target = samples[number]

    def compose(self, profiles: Mapping[str, str], default: str, named: Sequence[str]) -> Dialogue:
        """Chooses the kind of conversation."""
        mix = self._mix
        speaker = self._target.speaker
        profile = profiles.get(speaker)
        if self._chance(mix.joined) and len(self._clips[speaker]) > 2:  # one is left to be the reference
            self._lengthen()
        if self._chance(mix.several) and (dialogue := self._several()):
            return dialogue
        if profile and self._chance(mix.cast) and len(named) > 1:
            return self._cast(profiles, named)
        if profile is None or self._target.reference in self._places or self._chance(mix.reference):
            kept = profile if self._chance(0.5) else None
            if dialogue := self._clone(kept):
                return dialogue
        scene = self._target.scene or None
        if speaker == default and self._chance(mix.plain):
            return Dialogue((self._target,), scene=scene)
        return Dialogue((self._target,), profile, scene=scene)

    def hidden(self, dialogue: Dialogue) -> Dialogue:
        """The same, its last text hidden where that is drawn."""
        return replace(dialogue, unread=True) if self._chance(self._mix.unread) else dialogue

    def _lengthen(self) -> None:
        """Puts another sentence of the speaker before the target's, where both are short enough for one turn."""
        other = self._clip(self._target.speaker, MAX_TURN_FRAMES - self._target.num_frames)
        if other is not None:
            self._target = join([other, self._target])

    def _clone(self, profile: str | None) -> Dialogue | None:
        """The target after the clip it asks for or a reference of its speaker; None where there is no other clip."""
        reference = self._asked_for() or self._reference(self._target.speaker, *self._mix.reference_frames)
        if reference is None:
            return None
        said, _ = self._more([self._target.speaker])
        system, scene = (None, None) if profile else self._form(CLONE_FORMS)
        return Dialogue((reference, *said, self._target), profile, system=system, scene=self._target.scene or scene)

    def _several(self) -> Dialogue | None:
        """The target after references of two to four speakers, its own among them, in any order."""
        frames = self._mix.reference_frames
        count = 2 + self._choose(NUM_SPEAKERS)
        others = [speaker for speaker in self._clips if speaker != self._target.speaker]
        others = [others[i] for i in self._permutation(len(others))[: count - 1]]
        most = frames[1] if count == 2 else max(frames[0], frames[1] // 2)
        cast = [self._target.speaker, *others]
        cast = [cast[i] for i in self._permutation(len(cast))]
        if cast[-1] == self._target.speaker and self._chance(self._mix.switch):
            cast = [cast[-1], *cast[:-1]]
        used_before = set(self._used)
        heard = [self._reference(speaker, frames[0], most) for speaker in cast]
        references = [reference for reference in heard if reference is not None]
        if len(references) < len(cast) or len(cast) < 2:
            self._used = used_before
            return None
        said, speakers = self._more(cast, len(cast) - 1)
        system, scene = self._form(SEVERAL_FORMS)
        tags = (*range(len(cast)), *speakers, cast.index(self._target.speaker))
        return Dialogue((*references, *said, self._target), speakers=tags, system=system, scene=scene)

    def _cast(self, profiles: Mapping[str, str], named: Sequence[str]) -> Dialogue:
        """Named speakers in turn, the target last; all of them are trained."""
        others = [speaker for speaker in named if speaker != self._target.speaker]
        cast = [self._target.speaker, others[self._permutation(len(others))[0]]]
        cast = [cast[i] for i in self._permutation(len(cast))]
        said, speakers = self._more(cast)
        lines = {place: profiles[speaker] for place, speaker in enumerate(cast)}
        tags = (*speakers, cast.index(self._target.speaker))
        return Dialogue((*said, self._target), speakers=tags, profiles=lines, system=MULTI_SPEAKER)

    def _more(self, cast: Sequence[str], before: int | None = None) -> tuple[list[EncodedClip], list[int]]:
        """Turns more by any of the cast: clips and their speakers' places; `before` is the place heard last."""
        count = self._choose(self._mix.more_turns)
        said: list[tuple[int, EncodedClip]] = []
        for place in torch.randint(len(cast), (count,), generator=self._generator).tolist():
            place = self._switched(place, before, len(cast))
            clip = self._clip(cast[place], MAX_TURN_FRAMES)
            if clip is not None:
                said.append((place, clip))
                before = place
        if said and cast[said[-1][0]] == self._target.speaker and len(cast) > 1 and self._chance(self._mix.switch):
            said.pop()  # the target follows
        return [clip for _, clip in said], [place for place, _ in said]

    def _switched(self, place: int, before: int | None, count: int) -> int:
        """Another place than `before` where that is drawn, each other one as likely."""
        if place != before or count < 2 or not self._chance(self._mix.switch):
            return place
        return (place + 1 + self._permutation(count - 1)[0]) % count

    def _asked_for(self) -> EncodedClip | None:
        """The clip that the target is to be heard after, where it is among the samples and not heard yet."""
        place = self._places.get(self._target.reference)
        if place is None or place in self._used:
            return None
        self._used.add(place)
        return self._samples[place]

    def _reference(self, speaker: str, least: int, most: int) -> EncodedClip | None:
        """Clips of the speaker, joined until they are as long as drawn; shorter ones are drawn more often."""
        wanted = least + (most - least) * float(torch.rand((), generator=self._generator)) ** 1.5
        clips: list[EncodedClip] = []
        length = 0
        while length < wanted and (clip := self._clip(speaker, most - length)) is not None:
            clips.append(clip)
            length += clip.num_frames
        clip = None if clips else self._any_clip(speaker)  # a long reference is better than none
        return join([*clips, *([clip] if clip else [])]) if clips or clip else None

    def _any_clip(self, speaker: str) -> EncodedClip | None:
        """A clip of the speaker of any length that the conversation does not have."""
        pool = self._clips[speaker]
        unused = [pool[i] for i in self._permutation(len(pool)) if pool[i] not in self._used]
        self._used.update(unused[:1])
        return self._samples[unused[0]] if unused else None

    def _clip(self, speaker: str, most: int) -> EncodedClip | None:
        """A clip of the speaker of at most `most` frames that the conversation does not have."""
        pool = self._clips[speaker]
        drawn = torch.randint(len(pool), (TRIES,), generator=self._generator).tolist()
        for place in (*drawn, *(self._permutation(len(pool)) if len(pool) < MANY_CLIPS else ())):
            if pool[place] not in self._used and self._samples[pool[place]].num_frames <= most:
                self._used.add(pool[place])
                return self._samples[pool[place]]
        return None

    def _form(self, forms: Forms) -> tuple[str | None, str | None]:
        return forms[self._choose([share for share, *_ in forms])][1:]

    def _chance(self, share: float) -> bool:
        return share > 0 and float(torch.rand((), generator=self._generator)) < share

    def _choose(self, shares: Sequence[float]) -> int:
        return int(torch.multinomial(torch.tensor(shares), 1, generator=self._generator))

    def _permutation(self, count: int) -> list[int]:
        return torch.randperm(count, generator=self._generator).tolist()


def usable(samples: Sequence[EncodedClip], profiles: Mapping[str, str]) -> list[EncodedClip]:
    """The samples whose voice a prompt can ask for: by name, or by a reference, which is another clip."""
    counts = Counter(sample.speaker for sample in samples)
    return [sample for sample in samples if sample.speaker in profiles or counts[sample.speaker] > 1]


def join(samples: Sequence[EncodedClip]) -> EncodedClip:
    """Clips of one speaker said one after another, as one clip."""
    if len(samples) == 1:
        return samples[0]
    counts = [sum(p in PHONES for p in sample.phonemes) for sample in samples]
    phones = [sample.phones + start for sample, start in zip(samples, np.cumsum([0, *counts]), strict=False)]
    return EncodedClip(
        id="+".join(sample.id for sample in samples),
        text=" ".join(sample.text for sample in samples),
        phonemes=" ".join(sample.phonemes for sample in samples),
        speaker=samples[0].speaker,
        codes=np.concatenate([sample.codes for sample in samples], axis=1),
        phones=np.concatenate(phones),
        scene=samples[-1].scene,
        reference=samples[-1].reference,
    )
