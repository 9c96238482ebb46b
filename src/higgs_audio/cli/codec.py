"""The commands of the audio tokenizer: `encode` and `decode`."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_audio.cli.common import Device, Model, check_output, load_audio_tokenizer, report


def encode(
    recording: Annotated[
        Path, typer.Argument(metavar="IN.wav", help="Audio file of any format and sample rate.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output file, .safetensors.", show_default=False)],
    model: Model = "nano",
    device: Device = None,
) -> None:
    """Encode a recording as codes."""
    import torch

    from higgs_audio.audio import read
    from higgs_audio.codec.file import save_codes

    check_output(output, ["safetensors"])
    codec = load_audio_tokenizer(model, device)
    samples = torch.from_numpy(read(recording, codec.config.sample_rate).samples)  # [S]
    codes = codec.encode(samples[None, None].to(codec.device)).audio_codes  # [1, K, F]
    assert codes is not None
    save_codes(codes[0].cpu(), output, codec.config)
    report(f"{codes.shape[1]} codebooks, {codes.shape[2]} frames, {codes.shape[2] / codec.config.frame_rate:.2f} s")
    print(output)


def decode(
    codes: Annotated[
        Path, typer.Argument(metavar="CODES.safetensors", help="File written by encode.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Output file: .wav, .flac, .mp3 ...", show_default=False)
    ],
    model: Model = "nano",
    device: Device = None,
) -> None:
    """Decode codes to audio."""
    from higgs_audio.audio import Waveform, write
    from higgs_audio.codec.file import load_codes

    check_output(output)
    codec = load_audio_tokenizer(model, device)
    values = codec.decode(load_codes(codes, codec.config)[None].to(codec.device)).audio_values  # [1, 1, S]
    assert values is not None
    waveform = Waveform(values[0, 0].clamp(-1, 1).cpu().numpy(), codec.config.sample_rate)
    write(waveform, output)
    report(f"{waveform.seconds:.2f} s of audio")
    print(output)
