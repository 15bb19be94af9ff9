"""What a user's mistake, or the machine's fault, raises: a sentence that names what is wrong and the mend."""

from __future__ import annotations

import importlib
from types import ModuleType


class DoubleheadError(Exception):
    """A mistake in the input, told in one sentence. The command line prints it and exits with code 2."""


class Fault(DoubleheadError):
    """What happened to the machine - memory, disk, network, a process - and no mistake of the user's: try again."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which pip command adds it.

    Raises:
        DoubleheadError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DoubleheadError(
            f"this needs {module.split('.')[0]}, which is not installed: pip install 'doublehead[{extra}]'"
        ) from error
