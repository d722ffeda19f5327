# SPDX-License-Identifier: Apache-2.0
"""KVTier for vLLM; see docs/engines.md.

    --kv-transfer-config '{"kv_connector": "KVTierConnector",
        "kv_connector_module_path": "kvtier.vllm", "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute"}'
"""

NAME = "KVTierConnector"
__all__ = [NAME, "register"]


def register():
    """Entry point of group vllm.general_plugins: kv_connector_module_path is not needed then."""
    from .compat import register_connector
    register_connector(NAME, "kvtier.vllm.connector", NAME)


def __getattr__(name):
    if name == NAME:
        from .connector import KVTierConnector
        return KVTierConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
