# SPDX-License-Identifier: Apache-2.0
"""The class that vLLM loads: hands every call to the half that this process has, if it has anything
to do. Most calls come with every step of the engine, which leaves nothing of them in the caches."""

from . import compat
from .compat import KVConnectorBase_V1, KVConnectorRole, SupportsHMA
from .port import Port
from .scheduler import SchedulerHalf
from .settings import Settings
from .stats import PromMetrics, Stats
from .worker import WorkerHalf


class KVTierConnector(KVConnectorBase_V1, SupportsHMA):
    """Loads and saves whole chunks asynchronously, beside the engine's steps."""

    # A dropped save is a later miss and nothing else.
    requires_kv_delivery = False
    # Up to 0.28 an engine asks; blocks of all layers in one tensor would be one more layout.
    prefer_cross_layer_blocks = False

    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config, role, kv_cache_config)
        compat.check_version()
        transfer = vllm_config.kv_transfer_config
        self._meta = None  # of the step that the worker is in
        settings = Settings.read(transfer.kv_connector_extra_config)
        is_worker = role == KVConnectorRole.WORKER
        port = Port(settings.socket, "vllm worker" if is_worker else "vllm scheduler",
                    settings.copy_threads)
        half = WorkerHalf if is_worker else SchedulerHalf
        try:
            self._half = half(vllm_config, kv_cache_config, settings, port)
        except BaseException:
            port.close()
            raise
        if not is_worker and transfer.kv_load_failure_policy != "recompute":
            compat.log.warning(
                "KVTier: with kv_load_failure_policy %s a request fails when KV that was found "
                "cannot be loaded; set it to recompute", transfer.kv_load_failure_policy)

    # ---- worker ----------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches):
        self._half.register_kv_caches(kv_caches)

    def handle_preemptions(self, kv_connector_metadata):
        """Nothing to wait for, in either generation of this call: blocks of saves are pinned."""

    def bind_connector_metadata(self, connector_metadata):
        self._meta = connector_metadata

    def clear_connector_metadata(self):
        self._meta = None

    def start_load_kv(self, forward_context, **kwargs):
        if self._meta.loads:
            self._half.start_load_kv(self._meta)

    def has_connector_metadata(self):
        """Asked before the two hooks of each layer, which are not needed: they would be called 16
        to 160 times a step."""
        return False

    def wait_for_layer_load(self, layer_name):
        """Loads are over before a request runs."""

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        """Whole blocks are saved after the step: this is not called under CUDA graphs."""

    def wait_for_save(self):
        if self._meta.saves:
            self._half.wait_for_save(self._meta)

    def get_finished(self, finished_req_ids):
        return None, self._half.take_results(finished_req_ids)[0]

    if compat.TransferResults is not None:
        def get_transfer_results(self, finished_req_ids):
            if not self._half.is_busy:
                return compat.TransferResults()
            came, failed = self._half.take_results(finished_req_ids)
            return compat.TransferResults(finished_recving=came, failed_recving=failed)

    def get_block_ids_with_load_errors(self):
        return self._half.take_bad_blocks() if self._half.is_busy else set()

    def build_connector_worker_meta(self):
        return self._half.take_meta() if self._half.is_busy else None

    # ---- scheduler -------------------------------------------------------------------------

    def bind_gpu_block_pool(self, gpu_block_pool):
        self._half.bind_pool(gpu_block_pool)

    def on_new_request(self, request):
        self._half.on_new_request(request)

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        return self._half.get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        self._half.update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output):
        return self._half.build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output):
        if connector_output.kv_connector_worker_meta is not None or \
                connector_output.finished_recving:
            self._half.update_connector_output(connector_output)

    def request_finished(self, request, block_ids):
        """Blocks may be freed: those of saves under way are pinned one by one."""
        self._half.request_finished(request)
        return False, None

    def request_finished_all_groups(self, request, block_ids):
        return self.request_finished(request, block_ids)

    def has_pending_push_work(self):
        return self._half.has_pending_work()

    def has_pending_block_frees(self):
        return self._half.has_pending_block_frees()

    def take_events(self):
        return self._half.take_events() if self._half.events else ()

    def reset_cache(self):
        return self._half.reset()

    # ---- both ------------------------------------------------------------------------------

    def get_kv_connector_stats(self):
        stats = self._half.stats
        return stats.take() if stats.data else None

    def shutdown(self):
        self._half.shutdown()

    @classmethod
    def build_kv_connector_stats(cls, data=None):
        return Stats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        return PromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
