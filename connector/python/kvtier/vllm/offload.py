# SPDX-License-Identifier: Apache-2.0
"""vLLM's OffloadingConnector with KVTier as a tier behind its CPU cache; see docs/engines.md.

Everything is vLLM's own but for what its tiers are not told: which model, weights and hashes a
chunk belongs to, and how the workers' pages are laid out. The workers say that once, with the
handshake at the start of the engine.
"""

import copy
import dataclasses
import functools

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

from . import compat, keys
from .compat import KVConnectorRole
from .layout import LayoutError
from .namespace import group_pages
from .tier import KVTierSecondaryTier

TIER = "kvtier"
WHERE = "kv_connector_extra_config of KVTierOffloadingConnector"

if TIER not in SecondaryTierFactory._registry:
    SecondaryTierFactory.register_tier(TIER, KVTierSecondaryTier.__module__,
                                       KVTierSecondaryTier.__name__)


@dataclasses.dataclass(frozen=True)
class Rows(KVConnectorHandshakeMetadata):
    """What one worker's part of a row means, for each KV group."""
    layouts: tuple[str, ...]
    dtypes: tuple[str, ...]


def describe(vllm_config, kv_cache_config, kv_caches):
    """Rows of this worker. Raises LayoutError where vLLM does not copy whole pages."""
    groups = group_pages(vllm_config, kv_cache_config, kv_caches)
    for group in groups:
        for name, page in zip(group.names, group.pages):
            if len(page.offsets) != 1:
                raise LayoutError(
                    f"KV cache of layer {name}: a block's page is in {len(page.offsets)} pieces "
                    f"({page.axes}), which vLLM's CPU offloading does not copy right; "
                    f"{compat.layout_advice()}, or use KVTierConnector")
    return Rows(tuple(group.layout for group in groups), tuple(group.dtype for group in groups))


def completed(extra, facts):
    """kv_connector_extra_config with our tier in it, and the facts in the tier's settings. Raises
    ValueError."""
    spec = extra.get("spec_name", "TieringOffloadingSpec")
    if spec == "CPUOffloadingSpec" or not isinstance(spec, str):
        raise ValueError(
            f"{WHERE}: spec_name {spec!r} makes no CPU cache with tiers behind it, so nothing "
            "would reach KVTier; leave spec_name out (TieringOffloadingSpec), or set kv_connector to "
            "\"OffloadingConnector\"")
    tiers = extra.get("secondary_tiers", [])
    if not isinstance(tiers, (list, tuple)) or not all(isinstance(tier, dict) for tier in tiers):
        raise ValueError(
            f"{WHERE}: secondary_tiers is {tiers!r}, which is not a list of settings by name; "
            'write [{"type": "kvtier"}], or leave it out')
    tiers = [dict(tier) for tier in tiers]
    if not any(tier.get("type") == TIER for tier in tiers):
        tiers.append({"type": TIER})
    for tier in tiers:
        if tier.get("type") == TIER:
            tier.update(facts)
    return {**extra, "spec_name": spec, "secondary_tiers": tiers}


def completed_config(vllm_config, facts):
    """A copy for one connector, as MultiConnector makes them."""
    made = copy.copy(vllm_config)
    made.kv_transfer_config = copy.copy(vllm_config.kv_transfer_config)
    made.kv_transfer_config.kv_connector_extra_config = completed(
        vllm_config.kv_transfer_config.kv_connector_extra_config, facts)
    return made


class KVTierOffloadingConnector(OffloadingConnector):
    # Up to 0.28 an engine asks; pages of all layers in one tensor would be one more layout.
    prefer_cross_layer_blocks = False

    def __init__(self, vllm_config, role, kv_cache_config):
        compat.check_version()
        facts = {"vllm_config": vllm_config, "kv_cache_config": kv_cache_config} \
            if role == KVConnectorRole.SCHEDULER else {}
        config = completed_config(vllm_config, facts)
        super().__init__(config, role, kv_cache_config)
        self._rows = None
        self._tiers = []
        self._adapters = keys.Adapters(compat.adapter_hash_name)
        if role == KVConnectorRole.SCHEDULER:
            manager, spec = self.connector_scheduler.manager, \
                config.kv_transfer_config.kv_connector_extra_config["spec_name"]
            self._tiers = [tier for tier in getattr(manager, "secondary_tiers", ())
                           if isinstance(tier, KVTierSecondaryTier)]
            if not self._tiers:
                self.shutdown()
                raise ValueError(
                    f"{WHERE}: the {type(manager).__name__} that spec_name {spec!r} made has no tier "
                    "of KVTier's, so nothing would reach it; leave spec_name out "
                    "(TieringOffloadingSpec)")

    # ---- worker ----------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches):
        self._rows = describe(self._vllm_config, self._kv_cache_config, kv_caches)
        super().register_kv_caches(kv_caches)

    def get_handshake_metadata(self):
        return self._rows

    # ---- scheduler -------------------------------------------------------------------------

    def set_xfer_handshake_metadata_pp_aware(self, metadata):
        found = {rank: rows for rank, rows in metadata.items() if isinstance(rows, Rows)}
        if len(found) < len(metadata):
            compat.log.error("KVTier: another connector took the workers' handshake, of which "
                             "MultiConnector passes on one alone; nothing is stored or loaded: use "
                             "KVTierOffloadingConnector without a connector that needs it (NIXL)")
        for tier in self._tiers:
            tier.describe(found)

    def on_new_request(self, request):
        domain, trusted = keys.domain_of(request, self._adapters)
        usable = functools.partial(self._usable, trusted, getattr(request, "lora_request", None))
        for tier in self._tiers:
            tier.announce(request.request_id, domain, usable)
        super().on_new_request(request)

    def _usable(self, trusted, lora):
        """trusted: when the request came. vLLM's CPU cache, as its hashes, knows an adapter by name:
        see keys.Adapters."""
        return trusted and (lora is None or (self._adapters.trusted(lora) and
                                             not self._adapters.mixed(lora)))

    def reset_cache(self):
        done = super().reset_cache()
        for tier in self._tiers:
            tier.reset()
        return done

    @classmethod
    def build_prom_metrics(cls, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        return super().build_prom_metrics(completed_config(vllm_config, {}), metric_types, labelnames,
                                          per_engine_labelvalues)
