# SPDX-License-Identifier: Apache-2.0
"""What users may set, for each of the two doors. docs/engines.md has the same tables."""

import dataclasses
import difflib
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class SessionSettings:
    """What both doors share."""
    WHERE: ClassVar[str] = ""
    MAY_BE_0: ClassVar[tuple[str, ...]] = ()

    socket: str = ""                # "": $KVTIER_SOCKET, else the agent's default
    model: str = ""                 # "": the engine's model name
    revision: str = ""              # "": made from weights and config
    tenant: str = ""                # part of the namespace: engines of other tenants share nothing
    lookup_timeout_ms: int = 100    # then the request goes on without KVTier
    lease_ms: int = 5000            # what a lookup found stays for so long
    load_timeout_ms: int = 5000     # then the request's KV is computed
    save_timeout_ms: int = 1000     # how long a save may wait for room
    copy_threads: int = 1
    allow_weak_hash: bool = False   # xxhash: not collision-resistant

    @classmethod
    def read(cls, given):
        """Raises ValueError that names every mistake at once."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        wrong, values = [], {}
        for name, value in (given or {}).items():
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
        for name in fields:
            least = int(name not in cls.MAY_BE_0)
            if type(getattr(made, name)) is int and getattr(made, name) < least:
                wrong.append(f"{name}: must be at least {least}")
        wrong += made.wrong()
        if wrong:
            raise ValueError(f"{cls.WHERE}: " + "; ".join(wrong))
        return made

    def wrong(self):
        """What else is wrong, in words."""
        return []


@dataclasses.dataclass(frozen=True)
class Settings(SessionSettings):
    """Of KVTierConnector."""
    WHERE = "kv_connector_extra_config of KVTierConnector"
    MAY_BE_0 = ("min_load_tokens",)

    chunk_tokens: int = 256         # rounded up to whole engine blocks
    min_load_tokens: int = 0        # smaller hits are not worth a load
    save_decode: bool = True        # also KV of generated tokens
    max_pinned_share: float = 0.25  # of the engine's blocks, for saves under way

    def wrong(self):
        share = self.max_pinned_share
        return [] if 0 < share <= 1 else ["max_pinned_share: must be above 0 and at most 1"]


@dataclasses.dataclass(frozen=True)
class TierSettings(SessionSettings):
    """Of a secondary tier."""
    WHERE = "the tier of type kvtier in secondary_tiers"
