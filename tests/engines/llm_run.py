# SPDX-License-Identifier: Apache-2.0
"""What runs in an engine's process: takes steps from a pipe, answers with what came of them.

A step is {"prompts": [[ids]], "max_tokens": n, "salts": [...], "lora": {...}, "reset": forget the
engine's own cache first, "strike": a signal to the agent or to one of the engine's processes in the
middle of a load or store}. The answer has tokens, logprobs, seconds, and all counters of the
connector so far.
"""

import os
import signal
import sys
import time

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig
from vllm.lora.request import LoRARequest

SETTLE_S = 15


def counters(llm):
    """The connector's, without their prefix, and how often vLLM preempted."""
    out = {}
    for metric in llm.get_metrics():
        name = metric.name.removeprefix("vllm:").removesuffix("_total")
        if name.startswith("kvtier_") or name == "num_preemptions":
            name = name.removeprefix("kvtier_")
            out[name] = out.get(name, 0) + int(metric.value)
    return out


def settle(llm):
    """In one process nothing steps the engine when it is idle; saves under way are reported in a
    step. A core of its own steps by itself."""
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    if core is None:
        return
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end and (
            core.scheduler.has_requests() or
            (core.scheduler.connector is not None and
             core.scheduler.connector.has_pending_push_work())):
        llm.llm_engine.step()
        time.sleep(0.001)


def reset(llm):
    """Forgets the engine's own cache. True: every block is free, so none was left behind."""
    settle(llm)
    end = time.monotonic() + SETTLE_S
    while not llm.reset_prefix_cache():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def strike(worker, at, pid, before=None, after=None):
    """Signals pid around the submission of the worker's next load or store: the op is under way
    then. pid may be "worker" or "core": the one of that process."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group
    port = get_kv_transfer_group()._half._port
    submit = getattr(port, at)
    pid = {"worker": os.getpid(), "core": os.getppid()}.get(pid, pid)

    def once(*args):
        setattr(port, at, submit)
        if before:
            os.kill(pid, getattr(signal, before))
        op = submit(*args)
        if after:
            os.kill(pid, getattr(signal, after))
        return op
    setattr(port, at, once)


def run_step(llm, step):
    clean = reset(llm) if step.get("reset") else True
    if step.get("strike"):
        llm.collective_rpc(strike, kwargs=step["strike"])
    salts = step.get("salts") or [None] * len(step["prompts"])
    prompts = [{"prompt_token_ids": p, **({"cache_salt": s} if s else {})}
               for p, s in zip(step["prompts"], salts)]
    sampling = SamplingParams(max_tokens=step.get("max_tokens", 4), temperature=0, logprobs=1,
                              detokenize=False, ignore_eos=True)
    lora = LoRARequest(**step["lora"]) if step.get("lora") else None
    began = time.monotonic()
    outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
    took = time.monotonic() - began
    settle(llm)
    return {"tokens": [list(o.outputs[0].token_ids) for o in outputs],
            "logprobs": [[entry[t].logprob for t, entry in
                          zip(o.outputs[0].token_ids, o.outputs[0].logprobs)] for o in outputs],
            "reasons": [o.outputs[0].finish_reason for o in outputs],
            "cached": [o.num_cached_tokens for o in outputs],
            "clean": clean, "seconds": took, "counters": counters(llm)}


def main(pipe, job, log, env):
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(env, VLLM_ALLOW_INSECURE_SERIALIZATION="1")  # of strike()
    options = dict(model=job["model"], skip_tokenizer_init=True, dtype="float32",
                   enforce_eager=True, max_model_len=2048, block_size=32, max_num_seqs=8,
                   gpu_memory_utilization=0.2, disable_log_stats=False)
    options.update(job["options"])
    if job["transfer"]:
        options["kv_transfer_config"] = KVTransferConfig(**job["transfer"])
    llm = LLM(**options)
    pipe.send("ready")
    while (step := pipe.recv()) is not None:
        pipe.send(run_step(llm, step))
    pipe.send(reset(llm))
    sys.stdout.flush()
