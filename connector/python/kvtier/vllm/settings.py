# SPDX-License-Identifier: Apache-2.0
"""What kv_connector_extra_config may say. docs/engines.md has the same table."""

import dataclasses
import difflib


@dataclasses.dataclass(frozen=True)
class Settings:
    socket: str = ""                # "": $KVTIER_SOCKET, else the agent's default
    chunk_tokens: int = 256         # rounded up to whole engine blocks
    model: str = ""                 # "": the engine's model name
    revision: str = ""              # "": made from weights and config
    tenant: str = ""                # part of the namespace: engines of other tenants share nothing
    lookup_timeout_ms: int = 100    # then the request goes on without KVTier
    lease_ms: int = 5000            # what a lookup found stays for so long
    load_timeout_ms: int = 5000     # then the request's KV is computed
    save_timeout_ms: int = 1000     # how long a save may wait for room
    min_load_tokens: int = 0        # smaller hits are not worth a load
    save_decode: bool = True        # also KV of generated tokens
    max_pinned_share: float = 0.25  # of the engine's blocks, for saves under way
    copy_threads: int = 1
    allow_weak_hash: bool = False   # xxhash: not collision-resistant

    @classmethod
    def read(cls, extra):
        """Raises ValueError that names every mistake at once."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        wrong, values = [], {}
        for name, value in (extra or {}).items():
            if name not in fields:
                near = difflib.get_close_matches(name, fields, 1)
                wrong.append(f"{name}: no such setting" + (f", {near[0]}?" if near else ""))
                continue
            wanted = type(fields[name].default)
            if wanted is float and type(value) is int:
                value = float(value)
            if type(value) is not wanted:
                wrong.append(f"{name}: {value!r} is not of type {wanted.__name__}")
            else:
                values[name] = value
        made = cls(**values)
        for name in ("lookup_timeout_ms", "load_timeout_ms", "save_timeout_ms", "chunk_tokens",
                     "lease_ms", "copy_threads"):
            if getattr(made, name) < 1:
                wrong.append(f"{name}: must be at least 1")
        if made.min_load_tokens < 0:
            wrong.append("min_load_tokens: must not be negative")
        if not 0 < made.max_pinned_share <= 1:
            wrong.append("max_pinned_share: must be above 0 and at most 1")
        if wrong:
            raise ValueError("kv_connector_extra_config of KVTierConnector: " + "; ".join(wrong))
        return made
