# SPDX-License-Identifier: Apache-2.0
"""Everything that differs between releases of vLLM, and nothing else.

Tested with vLLM 0.28.0 to 0.32.0, each release of them; others are warned of at the start. What a release has is found out
by looking for it, not from its number, so that builds between releases work.
"""

import importlib.util
import json
import logging
import os
import re
import sys
import threading
import types

from vllm.distributed.kv_transfer.kv_connector.v1 import base as _base
from vllm.distributed.kv_transfer.kv_connector.v1.base import (  # noqa: F401 (for the others)
    KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole, KVConnectorWorkerMetadata,
    SupportsHMA)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (  # noqa: F401
    KVConnectorPromMetrics, KVConnectorStats)
from vllm.v1.core import kv_cache_utils as _kv_cache_utils
from vllm.v1 import kv_cache_interface as _specs

TESTED = ((0, 28), (0, 32))

log = logging.getLogger("vllm.kvtier")

# From 0.30 on failed loads are reported by request; before, by block, for one KV group alone.
TransferResults = getattr(_base, "KVConnectorTransferResults", None)


def vllm_version():
    import vllm
    return vllm.__version__


def check_version():
    found = re.match(r"(\d+)\.(\d+)", vllm_version())
    version = (int(found[1]), int(found[2])) if found else None
    if version is None or not TESTED[0] <= version <= TESTED[1]:
        log.warning("KVTier: vLLM %s is outside of the tested range %d.%d to %d.%d; unknown KV "
                    "layouts are refused, but compare outputs with and without the connector",
                    vllm_version(), *TESTED[0], *TESTED[1])


# ---- hashes ------------------------------------------------------------------------------------

WEAK_HASHES = ("xxhash", "xxhash_cbor")


def hash_root():
    """The root of the chain of block hashes in this process; None before the engine made it."""
    root = getattr(_kv_cache_utils, "NONE_HASH", None)
    return bytes(root) if root is not None else None


def hash_root_is_shared(algorithm):
    """Whether another process with the same settings has the same root."""
    if os.getenv("PYTHONHASHSEED") is not None:
        return True
    return hasattr(_kv_cache_utils, "get_none_hash_seed") and algorithm not in WEAK_HASHES


def check_hashes(algorithm, settings):
    """Refuses what could give a request another's KV; warns of what only costs hits."""
    if algorithm in WEAK_HASHES and not settings.allow_weak_hash:
        raise ValueError(
            f"KVTier: --prefix-caching-hash-algo {algorithm} is not collision-resistant, so a "
            "prompt could be made that gets another's KV; use sha256_cbor or sha256 (or set "
            "allow_weak_hash to true in KVTier's settings if all users trust each other)")
    if not hash_root_is_shared(algorithm):
        log.warning("KVTier: this vLLM draws a random root for its block hashes in every process, "
                    "so no other process, and not this one after a restart, will find what it "
                    "stores; set PYTHONHASHSEED to the same number for every engine")
    elif os.getenv("PYTHONHASHSEED") is not None:
        log.info("KVTier: PYTHONHASHSEED is part of the block hashes; engines where it is unset or "
                 "another number share nothing with this one")


def hash_block_tokens(vllm_config, kv_cache_config):
    """Tokens per entry of request.block_hashes."""
    tokens = getattr(kv_cache_config, "hash_block_size", None)
    if tokens is None:
        tokens = getattr(vllm_config.cache_config, "hash_block_size", None)
    if tokens is None:
        tokens = min(g.kv_cache_spec.block_size for g in kv_cache_config.kv_cache_groups)
    return tokens


def adapter_hash_name(lora):
    """What block hashes know of an adapter: its name, and since 0.31 its path."""
    known = getattr(_kv_cache_utils, "_gen_lora_extra_hash_keys", None)
    return repr(known(types.SimpleNamespace(lora_request=lora))) if known else lora.lora_name


# ---- groups ------------------------------------------------------------------------------------

def group_kind(spec):
    """"full", a window in tokens, or the reason why the group is not supported."""
    def named(name):
        return getattr(_specs, name, ())

    if isinstance(spec, named("UniformTypeKVCacheSpecs")):
        kinds = {group_kind(s) for s in spec.kv_cache_specs.values()}
        return kinds.pop() if len(kinds) == 1 else "layers of different kinds in one KV group"
    exact = type(spec)
    if exact in (_specs.FullAttentionSpec, _specs.MLAAttentionSpec,
                 getattr(_specs, "SinkFullAttentionSpec", None)):
        return "full"
    if exact is _specs.SlidingWindowSpec:
        return int(spec.sliding_window) + int(getattr(spec, "extra_retained_tokens", 0))
    return f"KV of kind {exact.__name__}"


def layer_spec(group_spec, layer_name):
    specs = getattr(group_spec, "kv_cache_specs", None)
    return specs[layer_name] if specs else group_spec


def is_mla(spec):
    return isinstance(spec, _specs.MLAAttentionSpec)


def spec_heads(spec):
    return (int(getattr(spec, "num_kv_heads", 1)), int(getattr(spec, "head_size", 1)))


def spec_dtype(spec):
    """KV dtype with its quantization, which changes the meaning of the same bytes."""
    text = str(getattr(spec, "dtype", "")).replace("torch.", "")
    mode = getattr(spec, "kv_quant_mode", None)
    return text + (f"/{mode.name}" if getattr(mode, "value", 0) else "")


def spec_is_padded(spec):
    """Bytes that no tensor shows are padding, and not scales that belong to the KV."""
    padded = getattr(spec, "page_size_padded", None) is not None
    return padded and not getattr(getattr(spec, "kv_quant_mode", None), "value", 0)


# ---- layouts -----------------------------------------------------------------------------------

def layout_name(vllm_config, kv_cache_config):
    """(name, axis 0 is the blocks). Since 0.29 an enum names the layout, and views are logical."""
    name = getattr(vllm_config.cache_config, "kv_cache_layout", None)
    name = getattr(kv_cache_config, "kv_cache_layout", None) or name
    if name is None:
        return "legacy", False
    from vllm.v1.kv_cache_layout import KVCacheLayout
    name = getattr(name, "name", str(name))
    name = {"NHD": "LBNHC", "HND": "LBHNC"}.get(name, name)
    if name not in KVCacheLayout.__members__:
        raise ValueError(f"KVTier: KV cache layout {name} is not known; known are "
                         f"{', '.join(KVCacheLayout.__members__)}")
    return name, True


def layout_advice():
    """How to get a layout in which a block's page of a layer is in one piece."""
    names = "LBHNC or LBNHC" if layout_family() == "std" else "HND or NHD"
    return f"set VLLM_KV_CACHE_LAYOUT to {names} or choose another --attention-backend"


def layout_family():
    """How the engine arranges a page where the name of the layout does not tell."""
    return "std" if importlib.util.find_spec("vllm.v1.kv_cache_layout") else "pre29"


def backend_name(vllm_config, layer_name):
    """The attention backend, and on CPUs the instruction set, which packs K and V its own way."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    layer = get_layers_from_vllm_config(vllm_config, AttentionLayerBase, [layer_name]) \
        .get(layer_name)
    if layer is None:
        return "none"
    name = layer.get_attn_backend().get_name()
    if name.startswith("CPU"):
        import torch
        name += ":" + torch.backends.cpu.get_cpu_capability()
        name += ":amx" if torch.cpu._is_amx_tile_supported() else ""
    return name


# ---- memory ------------------------------------------------------------------------------------

def byte_buffer(n, device):
    import torch
    return torch.empty(n, dtype=torch.uint8, device=device)


def current_stream(device):
    """Where the engine queues its work, as a number."""
    import torch
    return torch.cuda.current_stream(device).cuda_stream


# ---- ranks -------------------------------------------------------------------------------------

def ranks(vllm_config):
    """(tp_rank, tp_size, pp_rank, pp_size) of this worker."""
    parallel = vllm_config.parallel_config
    if parallel.tensor_parallel_size == 1 and parallel.pipeline_parallel_size == 1:
        return 0, 1, 0, 1
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group
    tp, pp = get_tp_group(), get_pp_group()
    return tp.rank_in_group, tp.world_size, pp.rank_in_group, pp.world_size


def check_parallel(vllm_config):
    parallel = vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) != 1:
            raise ValueError(f"KVTier: {name} {getattr(parallel, name)} is not supported; set it "
                             "to 1")
    return parallel.world_size


def check_prefix(vllm_config):
    """Refuses engines in which equal hashes are not equal KV: vLLM turns prefix caching off where a
    token's KV or the output depends on more than the tokens before, where its kernels compute
    another result on top of a prefix, and where images are numbered instead of hashed."""
    model = vllm_config.model_config
    if not vllm_config.cache_config.enable_prefix_caching or \
            not getattr(model, "is_prefix_caching_supported", True):
        raise ValueError(
            "KVTier: prefix caching is off, or not supported for this model. Where vLLM says so "
            "itself, what it computed for one request is of no use to another: run it without the "
            "connector. Else leave --no-enable-prefix-caching out")


# ---- the model ---------------------------------------------------------------------------------

def _found(config, name):
    """All values of a name, however deep in a config."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from [value] if key == name else _found(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from _found(value, name)


def length_facts(config, max_model_len):
    """What engines of different max_model_len compute differently: LongRoPE's factors, and Llama 4's
    temperature."""
    limits = []
    if "longrope" in [*_found(config, "rope_type"), *_found(config, "type")]:
        limits += [n for n in _found(config, "original_max_position_embeddings")
                   if isinstance(n, int)]
    if "llama4" in _found(config, "model_type"):
        limits.append(32768)
    return [max_model_len > limit for limit in limits]


def model_identity(vllm_config):
    """(name, path, revision, config, settings): all that the KV of a token depends on."""
    model = vllm_config.model_config
    config = json.loads(json.dumps(model.hf_config.to_dict(), default=str))
    speculative = vllm_config.speculative_config
    inputs = getattr(model, "multimodal_config", None)
    settings = {
        "quantization": [str(model.quantization), str(getattr(model, "quantization_config", None))],
        "dtype": str(model.dtype),
        "cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "draft": str(getattr(speculative, "model", None)) if speculative else "",
        "method": str(getattr(speculative, "method", None)) if speculative else "",
        "length": length_facts(config, model.max_model_len),
        # Hashes of images know what their request says of this, and not what the engine does.
        "inputs": [str(getattr(inputs, name, None))
                   for name in ("mm_processor_kwargs", "media_io_kwargs")],
    }
    if vllm_config.load_config.load_format == "dummy":
        settings["load_format"] = "dummy"
    name = model.model
    if os.path.isdir(name):
        name = os.path.basename(os.path.normpath(name))
    # A branch moves: of the two, the commit says which weights these are.
    revision = f"{model.revision}@{getattr(model.hf_config, '_commit_hash', None)}"
    return name, model.model, revision, config, settings


# ---- tiered offloading -------------------------------------------------------------------------

def tier_arguments(backpressure_detector):
    """What a secondary tier's base class takes since 0.31."""
    return () if backpressure_detector is None else (backpressure_detector,)


def job_rows(job):
    """Of a tier's job; named after chunks since 0.30."""
    return job.chunk_ids if hasattr(job, "chunk_ids") else job.block_ids


def key_position(req_context, key):
    """The last token of an offloaded chunk; None before 0.31, and where vLLM does not say."""
    position = getattr(req_context, "get_offload_key_position", None)
    return position(key) if position is not None else None


def row_facts(spec):
    """What the order of the bytes in a row of vLLM's CPU cache depends on, but for the pages
    themselves. Nothing promises it for more than one release."""
    return (re.match(r"[\d.]+", vllm_version())[0], type(spec).__module__, type(spec).__qualname__,
            spec.blocks_per_chunk, tuple(spec.tokens_per_block), spec.replicated_layout,
            spec.config.canonical_layout)


# ---- events ------------------------------------------------------------------------------------

def block_stored(block_hashes, parent, block_size, group):
    from vllm.distributed.kv_events import BlockStored
    return BlockStored(block_hashes=block_hashes, parent_block_hash=parent, token_ids=[],
                       block_size=block_size, lora_id=None, lora_name=None, medium="KVTIER",
                       group_idx=group)


def event_hash(block_hash):
    from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
    return maybe_convert_block_hash(block_hash)


def events_wanted(vllm_config):
    events = getattr(vllm_config, "kv_events_config", None)
    return bool(events and events.enable_kv_cache_events)


def python_version():
    return sys.version_info[:2]


_registered = threading.Lock()


def register_connector(name, module, cls):
    """May be called more than once per process."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    with _registered:
        if name not in KVConnectorFactory._registry:
            KVConnectorFactory.register_connector(name, module, cls)
