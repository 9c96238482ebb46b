"""Device arguments: names of devices -> devices that exist on this machine."""

import torch

from higgs_audio.errors import OptionError, first_line

__all__ = ["resolve_device"]


def resolve_device(device: str | torch.device | None, option: str = "device") -> torch.device:
    """Resolves a device argument and checks that a tensor can be allocated on it.

    Args:
        device: "cpu", "cuda", "cuda:1", ..., or a `torch.device`. None and "auto" choose a GPU if torch finds one, else
            the CPU.
        option: name of the argument, for the error message.

    Raises:
        OptionError: the device does not exist, or this machine does not have it.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except Exception as error:  # torch raises a different type for each kind of missing device
        raise OptionError(
            f"{option}={str(device)!r} cannot be used here ({first_line(error)}); use 'cpu', 'cuda', 'cuda:0', or None "
            "for a GPU if there is one"
        ) from error
    return resolved
