"""Composes training conversations from prepared clips: with a profile, with a reference, with several speakers."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from higgs_audio.data.phones import PHONES
from higgs_audio.data.shards import EncodedClip
from higgs_audio.prompt.prompt import MULTI_SPEAKER, SINGLE_SPEAKER
from higgs_audio.train_lm.draws import Draws
from higgs_audio.train_lm.examples import Dialogue

SAME_VOICE = "Generate audio following instruction with the same voice."
# System text of the transformers examples for several speakers; MULTI_SPEAKER is from the original examples.
SEVERAL_SPEAKERS = (
    "As an AI assistant, your task is to convert written text into spoken words.\n"
    "    If the user's input begins with a [SPEAKER*] tag, omit the tag and create speech based on the following "
    "content using the designated voice.\n"
    "    Without a speaker tag, choose the most suitable voice for the text.\n"
)
QUIET_ROOM = "Audio is recorded from a quiet room."

# (share, system text, scene) of prompts with reference turns; for None, `to_messages` uses its default.
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
NUM_SPEAKERS = (0.75, 0.17, 0.08)  # shares of conversations with two, three and four speakers
MAX_TURN_FRAMES = 200  # of two sentences joined into one turn
NUM_TRIES = 6  # random clips tried before all clips of a speaker are searched
MAX_SEARCHED_CLIPS = 50  # only speakers with fewer clips are searched


@dataclass(frozen=True)
class ExampleMix:
    """Shares of the kinds of conversation, and the length of references.

    Args:
        reference: share of the samples of speakers with a profile that follow a reference of the same speaker; half of
            them keep the profile.
        plain: share of the default speaker's samples that have neither profile nor reference.
        several: share of all samples in conversations of two to four speakers, each introduced by a reference.
        cast: share of the samples of speakers with a profile in tagged dialogues of speakers with profiles.
        joined: share of all samples that are joined with another sentence of the speaker into one turn.
        reference_frames: minimum and maximum; several clips are joined if one is too short.
        more_turns: shares of conversations with zero, one, two ... turns between the references and the last turn.
            They are trained too, so that several turns use one reference.
        switch: share of the turns in conversations of several speakers that would continue the previous speaker and are
            given to another. Without it, a model that always continues in the last voice is correct too often.
        unread: share of all conversations whose last text is dropped, so that the model learns the unconditional
            prediction of classifier-free guidance; see `text_guidance_scale` of `generate`.
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
    """Composes a random conversation for each sample.

    Args:
        samples: all prepared clips.
        profiles: speaker -> profile text. Other speakers occur only with a reference.
        default_speaker: the speaker of prompts without a voice.
        mix: shares of the kinds of conversation.
    """

    def __init__(
        self, samples: Sequence[EncodedClip], profiles: Mapping[str, str], default_speaker: str, mix: ExampleMix
    ) -> None:
        self._profiles, self._default_speaker = profiles, default_speaker
        self._pool = _Pool(samples)
        self._mix = mix
        self._with_profile = [speaker for speaker in self._pool.by_speaker if speaker in profiles]

    def __len__(self) -> int:
        return len(self._pool.samples)

    def compose(self, index: int, generator: torch.Generator) -> Dialogue:
        """Returns a conversation whose last turn is, or ends with, sample `index`. No clip occurs twice."""
        draft = _Draft(self._pool, self._mix, Draws(generator), index)
        return draft.with_dropped_text(draft.compose(self._profiles, self._default_speaker, self._with_profile))


class _Pool:
    """The samples, indexed by speaker, and by id if they are the reference of another sample."""

    def __init__(self, samples: Sequence[EncodedClip]) -> None:
        self.samples = samples
        self.by_speaker: dict[str, list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            self.by_speaker[sample.speaker].append(index)
        references = {sample.reference for sample in samples if sample.reference}
        self.references = {sample.id: index for index, sample in enumerate(samples) if sample.id in references}


class _Draft:
    """A conversation while it is composed; `_used` contains the indices of its clips."""

    def __init__(self, pool: _Pool, mix: ExampleMix, draws: Draws, index: int) -> None:
        self._samples, self._by_speaker, self._references = pool.samples, pool.by_speaker, pool.references
        self._mix, self._draws = mix, draws
        self._used = {index}
        self._target = pool.samples[index]

    def compose(self, profiles: Mapping[str, str], default_speaker: str, with_profile: Sequence[str]) -> Dialogue:
        """Draws the kind of conversation and composes it."""
        mix, chance = self._mix, self._draws.chance
        speaker = self._target.speaker
        profile = profiles.get(speaker)
        if chance(mix.joined) and len(self._by_speaker[speaker]) > 2:  # one clip is left as a reference
            self._lengthen_target()
        if chance(mix.several) and (dialogue := self._several()):
            return dialogue
        if profile and chance(mix.cast) and len(with_profile) > 1:
            return self._cast(profiles, with_profile)
        if profile is None or self._target.reference in self._references or chance(mix.reference):
            kept = profile if chance(0.5) else None
            if dialogue := self._clone(kept):
                return dialogue
        scene = self._target.scene or None
        if speaker == default_speaker and chance(mix.plain):
            return Dialogue((self._target,), scene=scene)
        return Dialogue((self._target,), profile, scene=scene)

    def with_dropped_text(self, dialogue: Dialogue) -> Dialogue:
        """Returns the conversation; drops its last text with probability `mix.unread`."""
        return replace(dialogue, drops_text=True) if self._draws.chance(self._mix.unread) else dialogue

    def _lengthen_target(self) -> None:
        """Prepends another sentence of the speaker to the target if both are short enough for one turn."""
        other = self._take_clip(self._target.speaker, MAX_TURN_FRAMES - self._target.num_frames)
        if other is not None:
            self._target = join([other, self._target])

    def _clone(self, profile: str | None) -> Dialogue | None:
        """Returns the target after its given reference or a reference of its speaker; None without another clip."""
        reference = self._given_reference() or self._take_reference(self._target.speaker, *self._mix.reference_frames)
        if reference is None:
            return None
        turns, _ = self._more_turns([self._target.speaker])
        system, scene = (None, None) if profile else self._form(CLONE_FORMS)
        return Dialogue((reference, *turns, self._target), profile, system=system, scene=self._target.scene or scene)

    def _several(self) -> Dialogue | None:
        """Returns the target after references of two to four speakers in random order, including its own speaker."""
        min_frames, max_frames = self._mix.reference_frames
        count = 2 + self._draws.weighted_index(NUM_SPEAKERS)
        cast = self._draw_cast(count)
        if count > 2:
            max_frames = max(min_frames, max_frames // 2)
        if cast[-1] == self._target.speaker and self._draws.chance(self._mix.switch):
            cast = [cast[-1], *cast[:-1]]
        used_before = set(self._used)
        taken = [self._take_reference(speaker, min_frames, max_frames) for speaker in cast]
        references = [reference for reference in taken if reference is not None]
        if len(references) < len(cast) or len(cast) < 2:
            self._used = used_before
            return None
        turns, speakers = self._more_turns(cast, previous=len(cast) - 1)
        system, scene = self._form(SEVERAL_FORMS)
        tags = (*range(len(cast)), *speakers, cast.index(self._target.speaker))
        return Dialogue((*references, *turns, self._target), speakers=tags, system=system, scene=scene)

    def _draw_cast(self, count: int) -> list[str]:
        """Draws up to `count` speakers in random order, including the target's speaker."""
        others = [speaker for speaker in self._by_speaker if speaker != self._target.speaker]
        others = [others[i] for i in self._draws.permutation(len(others))[: count - 1]]
        cast = [self._target.speaker, *others]
        return [cast[i] for i in self._draws.permutation(len(cast))]

    def _cast(self, profiles: Mapping[str, str], with_profile: Sequence[str]) -> Dialogue:
        """Returns a dialogue of two speakers with profiles that ends with the target; all turns are trained."""
        others = [speaker for speaker in with_profile if speaker != self._target.speaker]
        cast = [self._target.speaker, others[self._draws.permutation(len(others))[0]]]
        cast = [cast[i] for i in self._draws.permutation(len(cast))]
        turns, speakers = self._more_turns(cast)
        numbered = {number: profiles[speaker] for number, speaker in enumerate(cast)}
        tags = (*speakers, cast.index(self._target.speaker))
        return Dialogue((*turns, self._target), speakers=tags, profiles=numbered, system=MULTI_SPEAKER)

    def _more_turns(self, cast: Sequence[str], previous: int | None = None) -> tuple[list[EncodedClip], list[int]]:
        """Draws turns of random speakers of the cast, before the last turn; returns the clips and speaker numbers.

        `previous` is the speaker number of the turn before.
        """
        count, switch = self._draws.weighted_index(self._mix.more_turns), self._mix.switch
        turns: list[tuple[int, EncodedClip]] = []
        for drawn in self._draws.integers(len(cast), count):
            number = self._draws.switched(drawn, previous, len(cast), switch)
            clip = self._take_clip(cast[number], MAX_TURN_FRAMES)
            if clip is not None:
                turns.append((number, clip))
                previous = number
        if turns and cast[turns[-1][0]] == self._target.speaker and len(cast) > 1 and self._draws.chance(switch):
            turns.pop()  # the target, which follows, has the same speaker
        return [clip for _, clip in turns], [number for number, _ in turns]

    def _given_reference(self) -> EncodedClip | None:
        """Returns the given reference of the target; None if it is not a sample or already used."""
        index = self._references.get(self._target.reference)
        if index is None or index in self._used:
            return None
        self._used.add(index)
        return self._samples[index]

    def _take_reference(self, speaker: str, min_frames: int, max_frames: int) -> EncodedClip | None:
        """Joins clips of the speaker up to a random length; short lengths are more likely. None without a clip."""
        length = min_frames + (max_frames - min_frames) * self._draws.uniform() ** 1.5
        clips: list[EncodedClip] = []
        num_frames = 0
        while num_frames < length and (clip := self._take_clip(speaker, max_frames - num_frames)) is not None:
            clips.append(clip)
            num_frames += clip.num_frames
        clip = None if clips else self._take_any_clip(speaker)  # better too long than no reference
        return join([*clips, *([clip] if clip else [])]) if clips or clip else None

    def _take_any_clip(self, speaker: str) -> EncodedClip | None:
        """Returns an unused clip of the speaker of any length, or None."""
        indices = self._by_speaker[speaker]
        unused = [indices[i] for i in self._draws.permutation(len(indices)) if indices[i] not in self._used]
        self._used.update(unused[:1])
        return self._samples[unused[0]] if unused else None

    def _take_clip(self, speaker: str, max_frames: int) -> EncodedClip | None:
        """Returns an unused clip of the speaker of at most `max_frames` frames, or None."""
        indices = self._by_speaker[speaker]
        drawn = self._draws.integers(len(indices), NUM_TRIES)
        searched = self._draws.permutation(len(indices)) if len(indices) < MAX_SEARCHED_CLIPS else ()
        for place in (*drawn, *searched):
            if indices[place] not in self._used and self._samples[indices[place]].num_frames <= max_frames:
                self._used.add(indices[place])
                return self._samples[indices[place]]
        return None

    def _form(self, forms: Forms) -> tuple[str | None, str | None]:
        """Draws the system text and scene of the prompt."""
        return forms[self._draws.weighted_index([share for share, *_ in forms])][1:]


def usable(samples: Sequence[EncodedClip], profiles: Mapping[str, str]) -> list[EncodedClip]:
    """Returns the samples whose voice a prompt can determine: by a profile, or by another clip of the speaker."""
    counts = Counter(sample.speaker for sample in samples)
    return [sample for sample in samples if sample.speaker in profiles or counts[sample.speaker] > 1]


def join(samples: Sequence[EncodedClip]) -> EncodedClip:
    """Concatenates clips of one speaker into one clip."""
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
