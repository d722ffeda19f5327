# SPDX-License-Identifier: Apache-2.0
"""KVTier: a storage tier for the KV cache of LLM engines. `kvtier.Client` is a session."""

from pkgutil import extend_path

from ._lib import BATCH_MAX, KEY_BYTES
from ._version import __version__
from .client import Client, Keys, Op, strerror
from .errors import (AgainError, AgentTimeoutError, ClosedError, InvalidError, KVTierError,
                     NoMemoryError, NotFoundError, Status, UnreachableError, VersionError)
from .layouts import EXTENT, LAYOUT, Layouts, Memory, Pages
from .namespace import Namespace

__all__ = ["__version__", "BATCH_MAX", "KEY_BYTES", "Client", "Keys", "Op", "strerror",
           "AgainError", "AgentTimeoutError", "ClosedError", "InvalidError", "KVTierError",
           "NoMemoryError", "NotFoundError", "Status", "UnreachableError", "VersionError",
           "EXTENT", "LAYOUT", "Layouts", "Memory", "Pages", "Namespace"]

# kvtier.v1, which users generate from control.proto, may lie in another folder of sys.path.
__path__ = extend_path(__path__, __name__)
