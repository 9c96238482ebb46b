"""Encoded clips on disk: numbered parts of codes and phones, each with an index of one line per clip.

`part-NNNN.safetensors` contains `codes [K, frames]` and `phones [frames]` (uint16; indices into the clip's phone
string, `[0]` without alignment); its metadata contains the fingerprint of the audio tokenizer. `part-NNNN.jsonl` has a
line for each clip, including dropped ones. It is written last, so a part with an index is complete. Parts are
memory-mapped: a folder may exceed the memory.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.data.manifest import KEPT, json_lines
from higgs_audio.errors import RecipeError
from higgs_audio.files import remove_leftovers, replacing, write_atomic

FINGERPRINT_KEY = "audio_tokenizer"  # key in the metadata
# Tensors of an audio tokenizer that do not affect codes: the decoders, and state that only training reads.
DECODER_PREFIXES = ("acoustic_decoder.", "decoder_semantic.", "fc1.", "fc2.")
TRAINING_SUFFIXES = ("cluster_size", "embed_avg", "inited", "masked_spec_embed")

Fingerprint = Mapping[str, str]


@dataclass(frozen=True)
class EncodedClip:
    """One encoded clip.

    Attributes:
        id, text, speaker, scene, reference: as in `Clip`.
        phonemes: the phonemes of the text, the input of the language model; without alignment, the text itself.
        codes: `[K, F]`.
        phones: `[F]`, `frames` of the `Alignment`; empty without alignment.
    """

    id: str
    text: str
    phonemes: str
    speaker: str
    codes: np.ndarray
    phones: np.ndarray
    scene: str = ""
    reference: str = ""

    @property
    def num_frames(self) -> int:
        """Number of frames, F."""
        return int(self.codes.shape[1])


@dataclass(frozen=True)
class Part:
    """One part: the lines of its index, its arrays, and the fingerprint of its audio tokenizer ({} if it has none)."""

    lines: Sequence[dict[str, Any]]
    codes: np.ndarray
    phones: np.ndarray
    fingerprint: Fingerprint

    def clips(self) -> Iterator[EncodedClip]:
        """Yields the kept clips; their arrays are views of the part's arrays."""
        for line in self.lines:
            if line[KEPT] == KEPT:
                span = slice(line["offset"], line["offset"] + line["frames"])
                fields = {name: line[name] for name in ("id", "text", "phonemes", "speaker")}
                optional = {name: line[name] for name in ("scene", "reference") if name in line}
                yield EncodedClip(**fields, **optional, codes=self.codes[:, span], phones=self.phones[span])


def codec_fingerprint(tokenizer: HiggsAudioTokenizer) -> dict[str, str]:
    """Returns the fingerprint of an audio tokenizer: hash and sizes. It does not depend on the decoder."""
    config, digest = tokenizer.config, hashlib.sha256()
    digest.update(f"{config.acoustic_padding} {config.downsample_factor}".encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        if not name.startswith(DECODER_PREFIXES) and not name.endswith(TRAINING_SUFFIXES):
            digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    sizes = ("num_codebooks", "codebook_size", "frame_rate", "sample_rate")
    return {"codec": digest.hexdigest()[:16], **{name: f"{getattr(config, name):g}" for name in sizes}}


def metadata_of(fingerprint: Fingerprint) -> dict[str, str]:
    """Returns the fingerprint as one metadata entry, because safetensors writes several entries in random order."""
    return {FINGERPRINT_KEY: json.dumps(fingerprint, sort_keys=True)}


def write_part(
    path: Path, lines: Sequence[Mapping[str, Any]], codes: np.ndarray, phones: np.ndarray, fingerprint: Fingerprint
) -> None:
    """Writes the arrays, then the index. Raises RecipeError if they cannot be written."""
    tensors, index = path.with_suffix(".safetensors"), path.with_suffix(".jsonl")
    try:
        for file in (tensors, index):
            remove_leftovers(path.parent, file.name)
        with replacing(tensors) as output:
            output.write(save({"codes": codes, "phones": phones}, metadata_of(fingerprint)))
        write_atomic(index, json_lines(lines))
    except (OSError, SafetensorError) as error:
        raise RecipeError(
            f"{path.name} cannot be written to {str(path.parent)!r}: {error}. Earlier parts are complete: free disk "
            "space and run the command again"
        ) from error


def open_part(path: Path) -> Part:
    """Opens the part with the index at `path`.

    Raises:
        ValueError: the part is damaged; the message continues a sentence that begins with its name.
    """
    file = path.with_suffix(".safetensors")
    try:
        with safe_open(file, framework="numpy") as tensors:  # checks the header against the file size
            fingerprint = json.loads((tensors.metadata() or {}).get(FINGERPRINT_KEY, "{}"))
        arrays = _mapped(file)
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        spans = [(line["offset"], line["frames"]) for line in lines if line[KEPT] == KEPT]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    part = Part(lines, arrays["codes"], arrays["phones"], fingerprint)
    ends = np.cumsum([0, *(frames for _, frames in spans)]).tolist()
    if [offset for offset, _ in spans] != ends[:-1] or part.codes.shape[1:] != (ends[-1],):
        raise ValueError(f"has codes of the shape {list(part.codes.shape)} and an index of {ends[-1]} frames")
    if part.phones.shape not in {(ends[-1],), (0,)}:
        raise ValueError(f"has {len(part.phones)} phones for {ends[-1]} frames")
    return part


def _mapped(file: Path) -> dict[str, np.ndarray]:
    """Maps the uint16 arrays of a safetensors file into memory without keeping the file open."""
    raw = torch.from_file(str(file), size=file.stat().st_size, dtype=torch.uint8).numpy()
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:start].tobytes())
    arrays = {}
    for name in ("codes", "phones"):
        entry = header[name]
        if entry["dtype"] != "U16":
            raise ValueError(f"{name} is {entry['dtype']}, not U16")
        first, last = entry["data_offsets"]
        arrays[name] = raw[start + first : start + last].view("<u2").reshape(entry["shape"])
    return arrays


def read_encoded_clips(folder: str | Path, fingerprint: Fingerprint | None = None) -> list[EncodedClip]:
    """Reads the encoded clips of a folder, in order.

    Args:
        folder: output folder of `prepare`.
        fingerprint: fingerprint of the required audio tokenizer, or some entries of it.

    Raises:
        RecipeError: no clips, damaged parts (the message lists all of them), or codes of another audio tokenizer.
    """
    parts, damaged = [], []
    for path in sorted(Path(folder).glob("part-*.jsonl")):
        try:
            parts.append((path, open_part(path)))
        except ValueError as error:
            damaged.append(f"{path.stem} {error}")
    if damaged:
        raise RecipeError(f"{str(folder)!r}: {'; '.join(damaged)}. Run `higgs-audio train prepare` again")
    for path, part in parts:
        check_fingerprint(path, part, {**parts[0][1].fingerprint, **(fingerprint or {})})
    clips = [clip for _, part in parts for clip in part.clips()]
    if not clips:
        raise RecipeError(f"no prepared clips in {str(folder)!r}: run `higgs-audio train prepare` first")
    return clips


def check_fingerprint(path: Path, part: Part, fingerprint: Fingerprint) -> None:
    """Raises RecipeError if a part has codes of another audio tokenizer; compares the entries of both fingerprints."""
    actual = {**part.fingerprint, "num_codebooks": str(len(part.codes))}
    for name in ("num_codebooks", "codebook_size", "frame_rate", "sample_rate", "codec"):
        if name in fingerprint and actual.get(name, fingerprint[name]) != fingerprint[name]:
            raise RecipeError(
                f"{str(path.with_suffix(''))!r} has codes of another audio tokenizer: {name} is {actual[name]} there "
                f"and {fingerprint[name]} here. Prepare the clips with this audio tokenizer, into another folder"
            )
