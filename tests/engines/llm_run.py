# SPDX-License-Identifier: Apache-2.0
"""One engine process: reads a job as JSON on stdin, answers with one line of JSON.

job: model, socket ("": no connector), options (of LLM), extra (of the connector), steps; each step
is {"prompts": [[ids]], "max_tokens": n, "salts": [...], "between": what to do before it}. The
answer has, per step, tokens, logprobs, cached tokens, seconds to the first token and all counters
of the connector so far.
"""

import json
import os
import sys
import time

MARK = "RESULT "


def connector_config(job):
    config = {"kv_connector": "KVTierConnector", "kv_connector_module_path": "kvtier.vllm",
              "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
              "kv_connector_extra_config": {"socket": job["socket"], **job.get("extra", {})}}
    if job.get("multi"):
        config = {"kv_connector": "MultiConnector", "kv_role": "kv_both",
                  "kv_load_failure_policy": "recompute",
                  "kv_connector_extra_config": {"connectors": [config, job["multi"]]}}
    return config


def counters(llm):
    out = {}
    for metric in llm.get_metrics():
        if metric.name.startswith("vllm:kvtier_"):
            name = metric.name[len("vllm:kvtier_"):].removesuffix("_total")
            out[name] = out.get(name, 0) + int(metric.value)
    return out


def settle(llm):
    """In one process nothing steps the engine when it is idle; saves under way are reported in a
    step. With a core of its own that steps by itself."""
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    end = time.monotonic() + 10
    if core is None:
        time.sleep(0.5)
        return
    while core.scheduler.has_requests() and time.monotonic() < end:
        llm.llm_engine.step()
        time.sleep(0.001)


def run_step(llm, step):
    from vllm import SamplingParams
    salts = step.get("salts") or [None] * len(step["prompts"])
    prompts = [{"prompt_token_ids": p, **({"cache_salt": s} if s else {})}
               for p, s in zip(step["prompts"], salts)]
    sampling = SamplingParams(max_tokens=step.get("max_tokens", 4), temperature=0, logprobs=1,
                              detokenize=False, ignore_eos=True)
    lora = None
    if step.get("lora"):
        from vllm.lora.request import LoRARequest
        lora = LoRARequest(step["lora"]["name"], step["lora"].get("id", 1), step["lora"]["path"])
    began = time.monotonic()
    outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
    took = time.monotonic() - began
    settle(llm)
    return {"tokens": [list(o.outputs[0].token_ids) for o in outputs],
            "logprobs": [[entry[t].logprob for t, entry in
                          zip(o.outputs[0].token_ids, o.outputs[0].logprobs)] for o in outputs],
            "cached": [o.num_cached_tokens for o in outputs],
            "reasons": [o.outputs[0].finish_reason for o in outputs],
            "seconds": took, "counters": counters(llm)}


def main():
    job = json.loads(sys.stdin.readline())
    from vllm import LLM
    from vllm.config import KVTransferConfig
    options = dict(model=job["model"], skip_tokenizer_init=True, dtype="float32",
                   enforce_eager=True, max_model_len=2048, block_size=32, max_num_seqs=8,
                   gpu_memory_utilization=0.2, disable_log_stats=False)
    options.update(job.get("options", {}))
    if job["socket"]:
        options["kv_transfer_config"] = KVTransferConfig(**connector_config(job))
    llm = LLM(**options)
    print(MARK + json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        step = json.loads(line)
        if step.get("end"):
            break
        if step.get("reset"):
            llm.reset_prefix_cache()
        print(MARK + json.dumps(run_step(llm, step)), flush=True)
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    left = None
    if core is not None:
        pool = core.scheduler.kv_cache_manager.block_pool
        left = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
    print(MARK + json.dumps({"blocks_left": left}), flush=True)


if __name__ == "__main__":
    main()
