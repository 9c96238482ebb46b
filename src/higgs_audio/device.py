"""Where things are computed: one reader of the devices that people name."""

from typing import Any

import torch

from higgs_audio.errors import OptionError, first_line


def read_device(device: Any, option: str = "device") -> torch.device:
    """A device that is there and has memory.

    Args:
        device: "cpu", "cuda", "cuda:1", ..., or a `torch.device`; a GPU if torch finds one where it is None or "auto".
        option: what the caller calls it, for the message.

    Raises:
        OptionError: no such device, or none in this machine.

    >>> read_device("cpu")
    device(type='cpu')
    """
    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except Exception as error:  # each kind of device that is not there is another error of torch
        raise OptionError(
            f"{option}={str(device)!r} cannot be used here ({first_line(error)}); use 'cpu', 'cuda', 'cuda:0' or None "
            "for a GPU where there is one"
        ) from error
    return place
