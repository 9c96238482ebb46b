"""Says whether the C code runs, and why not."""

import os
import warnings

from higgs_audio.native.library import NATIVE_ENV, find_compiler, library_path, native_library


def native_status() -> str:
    """Loads the library and returns "on" with its origin, or "off" with the reason."""
    if os.environ.get(NATIVE_ENV) == "0":
        return f"off: {NATIVE_ENV}=0; unset it"
    compiler = find_compiler()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        was_cached = compiler is not None and _is_cached(compiler)
        library = native_library()
    if library is None:
        reasons = [" ".join(str(warning.message).split()) for warning in caught]
        return f"off: {reasons[-1] if reasons else 'refused by an earlier call of this process'}"
    assert compiler is not None
    origin = "from the cache" if was_cached else f"compiled now by {compiler}"
    return f"on, {origin}: {library_path(compiler)}; {library.higgs_panel_size() // 2} floats per vector"


def _is_cached(compiler: str) -> bool:
    try:
        return library_path(compiler).exists()
    except RuntimeError:  # there is no home folder
        return False
