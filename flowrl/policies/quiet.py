"""diffusers and transformers without their progress bars and notices, which would tear a run's own display apart."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Inside, only the libraries' errors are shown; their settings are restored afterwards.

    FutureWarnings are hidden as well: ``torch_dtype`` is the one spelling that all supported diffusers accept.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, verbosity, progress_bar in before:
            library.set_verbosity(verbosity)
            if progress_bar:
                library.enable_progress_bar()
