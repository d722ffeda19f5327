# SPDX-License-Identifier: Apache-2.0
"""KVTier for vLLM; see docs/engines.md.

    --kv-transfer-config '{"kv_connector": "KVTierConnector",
        "kv_connector_module_path": "kvtier.vllm", "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute"}'
"""

_MODULES = {"KVTierConnector": "connector", "KVTierOffloadingConnector": "offload"}
__all__ = [*_MODULES, "register"]


def register():
    """Entry point of group vllm.general_plugins: kv_connector_module_path is not needed then."""
    from .compat import register_connector
    for name, module in _MODULES.items():
        register_connector(name, f"{__name__}.{module}", name)


def __getattr__(name):
    if name in _MODULES:
        from importlib import import_module
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
