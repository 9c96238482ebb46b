"""Training the decoder of an audio tokenizer alone. Its codes stay, so language models that speak them remain good.

What is decoded does not change from step to step, so every clip is encoded once, and a step costs a third.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.codec.harmonic import Pitch
from higgs_audio.data.clips import Clip, samples, to_float, to_short
from higgs_audio.errors import RecipeError
from higgs_audio.train_codec.pitch import pitch_losses, random_phase, track_pitch
from higgs_audio.train_codec.recipe import TokenizerRecipe
from higgs_audio.train_codec.semantic import heard, heard_error
from higgs_audio.train_codec.spectral import spectral_losses
from higgs_audio.train_codec.trainer import CodecTrainer
from higgs_audio.training.run import seed_step

DECIBELS = (-10.0, 3.0)  # a clip's level against its own


@dataclass(frozen=True)
class Crops:
    """Stretches of clips: sound `[B, S]`, codes `[B, K, F]` and, for a harmonic head, the pitch `[B, T]`."""

    sound: Tensor
    codes: Tensor
    pitch: Pitch | None


class CodedClips:
    """Clips with their codes, made when a clip is first asked for.

    Args:
        clips: those that are shorter than a crop are left out.
        tokenizer: whose codes they are.
        recipe: of the run; a clip's level follows from its seed and the clip's number.

    Raises:
        RecipeError: no clip is as long as a crop, or one is not as long as its manifest says.
    """

    def __init__(self, clips: Sequence[Clip], tokenizer: HiggsAudioTokenizer, recipe: TokenizerRecipe) -> None:
        self._tokenizer, self._seed = tokenizer, recipe.seed
        rate = tokenizer.config.frame_rate
        self._hop, self._num_frames = tokenizer.config.hop_length, round(recipe.crop_seconds * rate)
        self._clips = [clip for clip in clips if clip.seconds * rate >= self._num_frames + 1]
        self._known: dict[int, Crops] = {}
        if short := len(clips) - len(self._clips):
            print(f"{short} of {len(clips)} clips are shorter than a crop and left out", file=sys.stderr)
        if not self._clips:
            raise RecipeError(f"no clip is longer than crop_seconds={recipe.crop_seconds}; give a smaller one")

    def crops(self, count: int, generator: torch.Generator) -> Crops:
        """Random stretches of random clips, whole frames."""
        drawn = [self._crop(generator) for _ in range(count)]
        sound, codes = (torch.cat([getattr(one, name) for one in drawn]) for name in ("sound", "codes"))
        sung = [one.pitch for one in drawn if one.pitch is not None]
        pitch = Pitch(torch.cat([one.hz for one in sung]), torch.cat([one.voiced for one in sung])) if sung else None
        return Crops(sound, codes, pitch)

    def _crop(self, generator: torch.Generator) -> Crops:
        number = int(torch.randint(len(self._clips), (), generator=generator))
        whole = self._coded(number)
        if whole.codes.shape[2] < self._num_frames:
            clip = self._clips[number]
            raise RecipeError(f"{clip.id} has {whole.codes.shape[2]} frames, and its manifest says {clip.seconds} s")
        first = int(torch.randint(whole.codes.shape[2] - self._num_frames + 1, (), generator=generator))
        frames, sound = (slice(k * first, k * (first + self._num_frames)) for k in (1, self._hop))
        pitch = whole.pitch
        if pitch is not None:
            each = pitch.hz.shape[1] // whole.codes.shape[2]  # spectra of a frame
            spectra = slice(each * first, each * (first + self._num_frames))
            pitch = Pitch(pitch.hz[:, spectra], pitch.voiced[:, spectra])
        return Crops(to_float(whole.sound[:, sound]), whole.codes[..., frames].long(), pitch)

    def _coded(self, number: int) -> Crops:
        """A whole clip; its sound and codes in 16 bits."""
        if number not in self._known:
            self._known[number] = self._encode(number)
        return self._known[number]

    @torch.no_grad()
    def _encode(self, number: int) -> Crops:
        tokenizer, config = self._tokenizer, self._tokenizer.config
        sound = samples(self._clips[number], config.sample_rate)
        level = 10 ** (np.random.default_rng((self._seed, number)).uniform(*DECIBELS) / 20)
        sound = (level * sound[: len(sound) // self._hop * self._hop]).clamp(-1, 1)[None]  # [1, S]
        codes = tokenizer.encode(sound[:, None].to(tokenizer.device)).audio_codes
        assert codes is not None
        hop = tokenizer.pitch_hop
        pitch = None if hop is None else track_pitch(sound, hop, config.sample_rate)
        return Crops(to_short(sound), codes.short().cpu(), pitch)


def train_decoder(recipe: TokenizerRecipe, tokenizer: HiggsAudioTokenizer, clips: Sequence[Clip]) -> Path:
    """Trains the decoder; writes a checkpoint to `output/model` and returns that path."""
    tokenizer.requires_grad_(False)
    for part in (tokenizer.acoustic_decoder, tokenizer.fc2):
        part.requires_grad_(True)
    shop = CodecTrainer(recipe, tokenizer)
    coded = CodedClips(clips, tokenizer, recipe)
    while shop.is_open:
        generator = seed_step(recipe.seed, shop.step)
        crops = coded.crops(recipe.batch, generator)
        sound = crops.sound.to(shop.device)
        made, losses = decode(tokenizer, crops, generator)
        mel, convergence = spectral_losses(made, sound, tokenizer.config.sample_rate)
        losses |= {"mel": mel, "convergence": convergence}
        if recipe.heard_weight:
            wanted = heard(tokenizer, sound, recipe.heard_share)
            losses["heard"] = heard_error(tokenizer, made, wanted, recipe.heard_share)
        shop.learn(losses, sound, made, {})
        shop.keep()
    return shop.close()


def decode(
    tokenizer: HiggsAudioTokenizer, crops: Crops, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Codes to sound `[B, S]`; a harmonic head sings at the recording's pitch, and what it said of it are losses."""
    device, pitch, before = tokenizer.device, crops.pitch, None
    if pitch is not None:
        pitch = Pitch(pitch.hz.to(device), pitch.voiced.to(device))
        before = random_phase(len(crops.codes), generator, device)
    sound, said = tokenizer.decode_with_pitch(tokenizer.acoustic_features(crops.codes.to(device)), pitch, before)
    return sound[:, 0], {} if said is None or pitch is None else pitch_losses(said, pitch)
