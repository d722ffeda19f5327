# SPDX-License-Identifier: Apache-2.0
"""vLLM's tiered offloading where there is no GPU.

vLLM refuses to offload from CPUs because its copies between KV blocks and its CPU cache are CUDA's.
Here memcpy stands for them, and all else is vLLM's own: the shared region, the tiering manager,
both halves of OffloadingConnector.
"""

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CopyWorker(OffloadingWorker):
    def __init__(self, kv_caches, blocks_per_chunk, region):
        self.groups = kv_caches.group_data_refs
        self.per = blocks_per_chunk
        self.region = region
        self.blocks = [t.tensor for t in kv_caches.tensors]
        self.rows = [region.create_next_worker_view(t.page_size_bytes * blocks_per_chunk)
                     for t in kv_caches.tensors]
        self.done = []

    def copy(self, job_id, engine, cpu, store):
        ids, rows = iter(engine.block_ids.tolist()), iter(cpu.block_ids.tolist())
        for refs, n, start in zip(self.groups, engine.group_sizes, engine.block_indices):
            row = None
            for i in range(start, start + n):
                if row is None or i % self.per == 0:
                    row = next(rows)
                block = next(ids)
                for ref in refs:
                    size = ref.page_size_bytes
                    page = self.blocks[ref.tensor_idx][block, :size]
                    at = i % self.per * (self.rows[ref.tensor_idx].shape[1] // self.per)
                    kept = self.rows[ref.tensor_idx][row, at:at + size]
                    (kept if store else page).copy_(page if store else kept)
        self.done.append(TransferResult(job_id, True))
        return True

    def submit_store(self, job_id, src_spec, dst_spec):
        return self.copy(job_id, src_spec, dst_spec, True)

    def submit_load(self, job_id, src_spec, dst_spec):
        return self.copy(job_id, dst_spec, src_spec, False)

    def get_finished(self):
        done, self.done = self.done, []
        return done

    def wait(self, job_ids):
        """Jobs are over when they were submitted."""

    def shutdown(self):
        self.rows.clear()
        self.region.cleanup()


class CpuTieringSpec(TieringOffloadingSpec):
    def get_worker(self, kv_caches):
        chunks = {"num_chunks": self.num_chunks, "kv_bytes_per_chunk": self.kv_bytes_per_chunk} \
            if hasattr(self, "num_chunks") else \
            {"num_blocks": self.num_blocks, "kv_bytes_per_block": self.kv_bytes_per_chunk}
        region = SharedOffloadRegion(engine_id=self._engine_id, rank=0,
                                     cpu_page_size=self.cpu_page_size_per_worker, **chunks)
        assert all(t.tensor.dtype == torch.int8 for t in kv_caches.tensors)
        return CopyWorker(kv_caches, self.blocks_per_chunk, region)
