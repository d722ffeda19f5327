# SPDX-License-Identifier: Apache-2.0
"""A whole vLLM in a process of its own, and how tests talk to it."""

import multiprocessing
import os
import random
import signal
import tempfile

START_S, STEP_S, END_S = 150, 120, 60

# How an engine's halves are spread over processes.
ONE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
APART = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
TP2 = {**APART, "VLLM_CPU_OMP_THREADS_BIND": "0|1"}

# Every engine is a fork of one process that has imported vLLM and made nothing with it.
FORKS = multiprocessing.get_context("forkserver")


def prompt(seed, n):
    source = random.Random(seed)
    return [source.randrange(5, 31000) for _ in range(n)]


def prepare():
    """Call before the first engine: what the imports read, the fork server must have."""
    os.environ.update({"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"})
    FORKS.set_forkserver_preload(["llm_run"])


def _child(*args):
    import llm_run
    llm_run.main(*args)


class Engine:
    """options are LLM's; socket "": without a connector; extra, role, multi: see
    transfer_config()."""

    def __init__(self, model, socket="", env=ONE, extra=None, role="kv_both", multi=None,
                 **options):
        job = {"model": model, "options": options, "transfer": transfer_config(
            socket, {"chunk_tokens": 64, **(extra or {})}, role, multi) if socket else None}
        self.log = tempfile.NamedTemporaryFile("w+", prefix="kvtier-engine-log-")
        self._pipe, theirs = FORKS.Pipe()
        self._process = FORKS.Process(
            target=_child, args=(theirs, job, self.log.name, {
                "PYTHONHASHSEED": "0", "VLLM_CPU_KVCACHE_SPACE": "1", **env}))
        self._process.start()
        theirs.close()
        try:
            self.answer(START_S)
        except BaseException:
            self.close()
            raise

    def answer(self, timeout_s=STEP_S):
        try:
            if not self._pipe.poll(timeout_s):
                raise AssertionError(f"no answer within {timeout_s} s")
            return self._pipe.recv()
        except (EOFError, AssertionError, ConnectionError) as err:
            self.log.seek(0)
            raise AssertionError(f"engine: {err!r}\n{self.log.read()[-8000:]}") from None

    def start(self, *prompts, **step):
        """Like run(), but the answer is to be read by answer()."""
        self._pipe.send({"prompts": prompts, **step})

    def run(self, *prompts, **step):
        self.start(*prompts, **step)
        return self.answer()

    def end(self):
        """(whether no block was left behind, exit status)"""
        self._pipe.send(None)
        clean = self.answer()
        self._process.join(END_S)
        status = self._process.exitcode
        self.close()
        return clean, status

    def close(self):
        if self._process.is_alive():
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has not made its group yet
                self._process.kill()
            self._process.join()
        self._pipe.close()
        self.log.close()


def transfer_config(socket, extra=None, role="kv_both", multi=None):
    """What --kv-transfer-config says where vLLM finds the package's entry point. extra: the
    connector's settings; multi: another connector's configuration, beside ours."""
    ours = {"kv_connector": "KVTierConnector", "kv_role": role,
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"socket": socket, **(extra or {})}}
    if not multi:
        return ours
    return {"kv_connector": "MultiConnector", "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"connectors": [ours, multi]}}
