"""Prepared clips on disk: numbered parts of codes and phones, and of each an index with one line a clip.

`part-NNNN.safetensors` holds `codes [K, frames]` and `phones [frames]` (uint16; the index into the clip's phone string,
`[0]` where nothing was aligned), and in its metadata which audio tokenizer made the codes. `part-NNNN.jsonl` has a line
for each clip, for dropped ones too; it is written last, so that a part with lines is whole. Parts are mapped into
memory, not read: a folder may be larger than memory is.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.errors import RecipeError
from higgs_audio.files import write_atomic

KEPT, STAMP = "kept", "audio_tokenizer"
# Parts of an audio tokenizer that no code depends on: those that decode, and what only training reads.
DECODING = ("acoustic_decoder.", "decoder_semantic.", "fc1.", "fc2.")
UNUSED = ("cluster_size", "embed_avg", "inited", "masked_spec_embed")

Stamp = Mapping[str, str]


@dataclass(frozen=True)
class EncodedClip:
    """One prepared clip: `phonemes` as the language model reads them, `codes [K, F]`, `phones [F]` as in Alignment.

    Where nothing was aligned, `phonemes` is the text and `phones` empty. `scene` and `reference` as in `Clip`.
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
        return int(self.codes.shape[1])


@dataclass(frozen=True)
class Part:
    """One part: the lines of its index, its arrays, and the stamp of the audio tokenizer ({} where nothing tells)."""

    lines: Sequence[dict[str, Any]]
    codes: np.ndarray
    phones: np.ndarray
    stamp: Stamp

    def samples(self) -> Iterator[EncodedClip]:
        """The clips that were kept, views of the part's arrays."""
        for line in self.lines:
            if line[KEPT] == KEPT:
                span = slice(line["offset"], line["offset"] + line["frames"])
                fields = {name: line[name] for name in ("id", "text", "phonemes", "speaker")}
                more = {name: line[name] for name in ("scene", "reference") if name in line}
                yield EncodedClip(**fields, **more, codes=self.codes[:, span], phones=self.phones[span])


def stamp_of(tokenizer: HiggsAudioTokenizer) -> dict[str, str]:
    """What tells an audio tokenizer from another whose codes mean something else; their decoders may differ."""
    config, digest = tokenizer.config, hashlib.sha256()
    digest.update(f"{config.acoustic_padding} {config.downsample_factor}".encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        if not name.startswith(DECODING) and not name.endswith(UNUSED):
            digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    sizes = ("num_codebooks", "codebook_size", "frame_rate", "sample_rate")
    return {"codec": digest.hexdigest()[:16], **{name: f"{getattr(config, name):g}" for name in sizes}}


def metadata_of(stamp: Stamp) -> dict[str, str]:
    """The stamp as a part's metadata: one entry, because safetensors writes several in any order."""
    return {STAMP: json.dumps(stamp, sort_keys=True)}


def write_part(
    path: Path, lines: Sequence[Mapping[str, Any]], codes: np.ndarray, phones: np.ndarray, stamp: Stamp
) -> None:
    """One part: the arrays first, the lines last. Raises RecipeError where they cannot be written."""
    temporary = Path(f"{path}.safetensors.part")
    try:
        save_file({"codes": codes, "phones": phones}, temporary, metadata_of(stamp))
        os.replace(temporary, f"{path}.safetensors")
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        write_atomic(path.with_suffix(".jsonl"), text + "\n")
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise RecipeError(
            f"{path.name} cannot be written to {str(path.parent)!r}: {error}. The parts before are whole: make room "
            "and run it again"
        ) from error


def open_part(path: Path) -> Part:
    """The part whose index is at `path`. Raises ValueError, in words, where it is damaged."""
    file = path.with_suffix(".safetensors")
    try:
        with safe_open(file, framework="numpy") as tensors:  # compares the header with the length of the file
            stamp = json.loads((tensors.metadata() or {}).get(STAMP, "{}"))
        arrays = _mapped(file)
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        spans = [(line["offset"], line["frames"]) for line in lines if line[KEPT] == KEPT]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    part = Part(lines, arrays["codes"], arrays["phones"], stamp)
    ends = np.cumsum([0, *(frames for _, frames in spans)]).tolist()
    if [offset for offset, _ in spans] != ends[:-1] or part.codes.shape[1:] != (ends[-1],):
        raise ValueError(f"has codes of the shape {list(part.codes.shape)} and an index of {ends[-1]} frames")
    if part.phones.shape not in {(ends[-1],), (0,)}:
        raise ValueError(f"has {len(part.phones)} phones for {ends[-1]} frames")
    return part


def _mapped(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file of uint16, in memory only where they are looked at; no file stays open."""
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


def read_encoded_clips(folder: str | Path, stamp: Stamp | None = None) -> list[EncodedClip]:
    """All prepared clips of a folder, in order.

    Args:
        folder: what `prepare` wrote.
        stamp: of the audio tokenizer that the codes have to be of, as `stamp_of` makes it, or a part of that.

    Raises:
        RecipeError: no clips, damaged parts, which are named, or codes of another audio tokenizer.
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
        check_stamp(path, part, {**parts[0][1].stamp, **(stamp or {})})
    samples = [sample for _, part in parts for sample in part.samples()]
    if not samples:
        raise RecipeError(f"no prepared clips in {str(folder)!r}: run `higgs-audio train prepare` first")
    return samples


def check_stamp(path: Path, part: Part, stamp: Stamp) -> None:
    """Raises RecipeError where the part's codes are of another audio tokenizer, as far as its stamp tells."""
    theirs = {**part.stamp, "num_codebooks": str(len(part.codes))}
    for name in ("num_codebooks", "codebook_size", "frame_rate", "sample_rate", "codec"):
        if name in stamp and theirs.get(name, stamp[name]) != stamp[name]:
            raise RecipeError(
                f"{str(path.with_suffix(''))!r} has codes of another audio tokenizer: {name} is {theirs[name]} there "
                f"and {stamp[name]} here. Prepare the clips with this one, into another folder"
            )
