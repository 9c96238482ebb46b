"""Training of an audio tokenizer's decoder only. Codes do not change, so language models trained on them stay valid.

The input of the decoder is the same in every step. Each clip is therefore encoded once, and a step takes a third of the
time of a full step.
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
from higgs_audio.data.clips import Clip, read_samples, to_float, to_int16
from higgs_audio.errors import RecipeError
from higgs_audio.train_codec.pitch import pitch_losses, random_phase, track_pitch
from higgs_audio.train_codec.recipe import GAIN_DB, TokenizerRecipe
from higgs_audio.train_codec.semantic import consistency_loss, consistency_target
from higgs_audio.train_codec.spectral import spectral_losses
from higgs_audio.train_codec.trainer import CodecTrainer
from higgs_audio.training.run import seed_step


@dataclass(frozen=True)
class Crops:
    """Parts of clips: `waveform [B, S]`, `codes [B, K, F]` and, for a harmonic head, the pitch `[B, T]`."""

    waveform: Tensor
    codes: Tensor
    pitch: Pitch | None


class EncodedClipAudio:
    """Waveforms, codes and pitch of clips. Each clip is encoded when it is first drawn, then kept in memory.

    Args:
        clips: the clips; those shorter than a crop are omitted.
        tokenizer: encodes the clips.
        recipe: the recipe of the run; a clip's gain is a function of the recipe's seed and the clip's index.

    Raises:
        RecipeError: no clip is as long as a crop.
    """

    def __init__(self, clips: Sequence[Clip], tokenizer: HiggsAudioTokenizer, recipe: TokenizerRecipe) -> None:
        self._tokenizer, self._seed = tokenizer, recipe.seed
        frame_rate = tokenizer.config.frame_rate
        self._hop, self._num_frames = tokenizer.config.hop_length, recipe.crop_frames(frame_rate)
        self._clips = [clip for clip in clips if clip.seconds * frame_rate >= self._num_frames + 1]
        self._encoded: dict[int, Crops] = {}
        if num_short := len(clips) - len(self._clips):
            print(f"{num_short} of {len(clips)} clips are shorter than a crop and omitted", file=sys.stderr)
        if not self._clips:
            raise RecipeError(f"no clip is longer than crop_seconds={recipe.crop_seconds}; give a smaller value")

    def __len__(self) -> int:
        return len(self._clips)

    def whole(self, index: int) -> Crops:
        """Returns a whole clip as a batch of one; `waveform` and `codes` are int16."""
        if index not in self._encoded:
            self._encoded[index] = self._encode(index)
        return self._encoded[index]

    def random_crops(self, count: int, generator: torch.Generator) -> Crops:
        """Draws `count` crops of whole frames from random clips.

        Raises:
            RecipeError: a clip is shorter than a crop, because its duration in the manifest is wrong.
        """
        crops = [self._random_crop(generator) for _ in range(count)]
        waveform, codes = (torch.cat([getattr(crop, name) for crop in crops]) for name in ("waveform", "codes"))
        pitches = [crop.pitch for crop in crops if crop.pitch is not None]
        if not pitches:
            return Crops(waveform, codes, None)
        hz, voiced = (torch.cat([getattr(pitch, name) for pitch in pitches]) for name in ("hz", "voiced"))
        return Crops(waveform, codes, Pitch(hz, voiced))

    def _random_crop(self, generator: torch.Generator) -> Crops:
        index = int(torch.randint(len(self._clips), (), generator=generator))
        clip = self.whole(index)
        num_frames = clip.codes.shape[2]
        if num_frames < self._num_frames:
            name, seconds = self._clips[index].id, self._clips[index].seconds
            raise RecipeError(f"{name} has {num_frames} frames, but {seconds} s in the manifest: correct the manifest")
        first = int(torch.randint(num_frames - self._num_frames + 1, (), generator=generator))
        frames, samples = (slice(n * first, n * (first + self._num_frames)) for n in (1, self._hop))
        pitch = clip.pitch
        if pitch is not None:
            hops = pitch.hz.shape[1] // num_frames  # per frame
            span = slice(hops * first, hops * (first + self._num_frames))
            pitch = Pitch(pitch.hz[:, span], pitch.voiced[:, span])
        return Crops(to_float(clip.waveform[:, samples]), clip.codes[..., frames].long(), pitch)

    @torch.no_grad()
    def _encode(self, index: int) -> Crops:
        tokenizer, sample_rate = self._tokenizer, self._tokenizer.config.sample_rate
        waveform = read_samples(self._clips[index], sample_rate)
        gain = 10 ** (np.random.default_rng((self._seed, index)).uniform(*GAIN_DB) / 20)
        waveform = (gain * waveform[: len(waveform) // self._hop * self._hop]).clamp(-1, 1)[None]  # [1, S]
        codes = tokenizer.encode(waveform[:, None].to(tokenizer.device)).audio_codes
        assert codes is not None
        hop = tokenizer.pitch_hop
        pitch = None if hop is None else track_pitch(waveform, hop, sample_rate)
        return Crops(to_int16(waveform), codes.short().cpu(), pitch)


def train_decoder(recipe: TokenizerRecipe, tokenizer: HiggsAudioTokenizer, clips: Sequence[Clip]) -> Path:
    """Trains the decoder; writes a checkpoint to `output/model` and returns that path.

    Args:
        recipe: the recipe of the run.
        tokenizer: the audio tokenizer; modified in place.
        clips: the training clips.

    Raises:
        RecipeError: no usable clip, or impossible values.
        NumericsError: a loss is not finite.
        CheckpointError: a checkpoint cannot be read or written.
    """
    tokenizer.requires_grad_(False)
    for part in (tokenizer.acoustic_decoder, tokenizer.fc2):
        part.requires_grad_(True)
    trainer = CodecTrainer(recipe, tokenizer)
    audio = EncodedClipAudio(clips, tokenizer, recipe)
    while not trainer.is_finished:
        generator = seed_step(recipe.seed, trainer.step)
        crops = audio.random_crops(recipe.batch, generator)
        recorded = crops.waveform.to(trainer.device)
        decoded, losses = decode(tokenizer, crops, generator)
        mel, convergence = spectral_losses(decoded, recorded, tokenizer.config.sample_rate)
        losses |= {"mel": mel, "convergence": convergence}
        if recipe.heard_weight:
            target = consistency_target(tokenizer, recorded, recipe.heard_share)
            losses["heard"] = consistency_loss(tokenizer, decoded, target, recipe.heard_share)
        trainer.train_step(losses, recorded, decoded, {})
        trainer.save_if_due()
    return trainer.export()


def decode(
    tokenizer: HiggsAudioTokenizer, crops: Crops, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Decodes the codes of `crops` to waveforms `[B, S]`; returns them and the losses of a harmonic head.

    A harmonic head decodes at the pitch of the recording; the losses are those of its predicted pitch.
    """
    device, pitch, phase = tokenizer.device, crops.pitch, None
    if pitch is not None:
        pitch = Pitch(pitch.hz.to(device), pitch.voiced.to(device))
        phase = random_phase(len(crops.codes), generator, device)
    features = tokenizer.acoustic_features(crops.codes.to(device))
    waveform, predicted = tokenizer.decode_with_pitch(features, pitch, phase)
    return waveform[:, 0], {} if predicted is None or pitch is None else pitch_losses(predicted, pitch)
