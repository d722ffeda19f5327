/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeps every place for threads on the GPU taken until the host says so, or for limit_ns.
 * counters, in memory of the host: [0] leave now, [1] blocks that run, [2] blocks that ended.
 */
extern "C" __global__ void __launch_bounds__(1024)
    kvt_occupy(volatile unsigned *counters, unsigned long long limit_ns)
{
    if (threadIdx.x == 0) {
        unsigned long long begin, now;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
        atomicAdd_system(const_cast<unsigned *>(counters + 1), 1u);
        do { /* seldom: the copies need the same link */
            __nanosleep(500000);
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        } while (counters[0] == 0 && now - begin < limit_ns);
        atomicAdd_system(const_cast<unsigned *>(counters + 2), 1u);
    }
    __syncthreads();
}
