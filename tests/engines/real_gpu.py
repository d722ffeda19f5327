# SPDX-License-Identifier: Apache-2.0
"""KV in the memory of a real GPU, as an engine has it: it queues its work on a stream of its own
and is ahead of it. fake_gpu.py is the same where there is no GPU.
"""

import torch

DEVICE = torch.device("cuda", 0)
LATE_CYCLES = 500_000  # some tenths of a millisecond


class RealGpu:
    def __init__(self):
        torch.cuda.set_stream(torch.cuda.Stream(DEVICE))

    def moved(self, caches):
        """(KV caches that the engine's side uses, the same for the connector)"""
        seen, regions = {}, {}
        for name, view in caches.items():
            storage = view.untyped_storage()
            if storage.data_ptr() not in regions:
                regions[storage.data_ptr()] = torch.tensor([], dtype=torch.uint8).set_(
                    storage, 0, (storage.nbytes(),)).to(DEVICE)
            seen[name] = regions[storage.data_ptr()].view(view.dtype).as_strided(
                view.size(), view.stride(), view.storage_offset())
        return seen, seen

    def compute(self):
        """What follows on the engine's stream comes late: who does not wait for it moves KV that
        was not written yet."""
        torch.cuda._sleep(LATE_CYCLES)
