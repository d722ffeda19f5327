# SPDX-License-Identifier: Apache-2.0
"""What engines share with each other and what they do not, under vLLM's real scheduler without a
model; see rig.py.

Usage: isolation_test.py KVTIERD MODEL_FOLDER [unittest arguments]
"""

import faulthandler
import os
import signal
import sys
import threading
import time
import types
import unittest
from unittest import mock

import rig_test
from rig_test import TOKENS, EngineCase, adapter, family

from vllm.v1.core import kv_cache_utils

from kvtier.vllm import compat, keys, namespace
from kvtier.vllm.settings import Settings


class IsolationTest(EngineCase):
    def test_salts_do_not_meet(self):
        rig = self.rig(caching=True)
        for salt in ("a", "b", None):
            rig.add(TOKENS, salt=salt, max_tokens=1)
            rig.run()
        self.assertNotIn("hit_tokens", rig.stats)
        other = self.rig()
        for salt in ("a", "b", None):
            other.add(TOKENS, salt=salt, max_tokens=1)
            other.run()
        self.assertEqual(other.stats["loaded_tokens"], 3 * 320)

    def lora_run(self, rig, lora, tokens=TOKENS):
        """@return chunks it stored."""
        rig.scheduler.lora_config = None
        before = rig.stats.get("stored_chunks", 0)
        rig.add(tokens, lora=lora, max_tokens=1)
        rig.run()
        self.assertEqual(rig.leaks(), 0)
        return rig.stats.get("stored_chunks", 0) - before

    def test_an_adapter_of_the_same_name_with_other_weights(self):
        for content in ("one", "two", "one but with another alpha"):
            rig = self.rig()
            lora = adapter(self.agent.folder, content)
            self.assertEqual(self.lora_run(rig, lora), 20)
            self.assertNotIn("hit_tokens", rig.stats, content)
            rig = self.rig()
            self.assertEqual(self.lora_run(rig, lora), 0)
            self.assertEqual(rig.stats["loaded_tokens"], 320)

    def test_a_name_that_gets_other_weights_while_the_engine_runs(self):
        """vLLM's own cache then has the KV of both under one name."""
        engine = self.rig()
        engine.wrong_hits = True
        self.assertEqual(self.lora_run(engine, adapter(self.agent.folder, "one"), TOKENS[:160]), 10)
        two = adapter(self.agent.folder, "two", number=2)
        self.assertEqual(self.lora_run(engine, two), 0)  # 160 tokens are those of one
        self.assertEqual(self.lora_run(engine, two, family(1, 160)), 10)  # it computes all of it
        self.assertNotIn("hit_tokens", engine.stats)
        engine = self.rig()
        self.assertEqual(self.lora_run(engine, two), 20)
        self.lora_run(engine, two, family(1, 160))
        self.assertEqual(engine.stats["loaded_tokens"], 160)

    def test_a_number_that_gets_other_weights(self):
        """The worker has the files of either: nobody knows."""
        engine = self.rig()
        engine.wrong_hits = True
        one = adapter(self.agent.folder, "one")
        engine.add(TOKENS[:20], lora=one, max_tokens=60)
        while (saved := engine.stats.get("save_chunks", 0)) == 0:
            engine.step()
        two = adapter(self.agent.folder, "two")  # runs with one's files, or both with two's
        two.weights = "one"
        with self.assertLogs(compat.log, "WARNING") as logs:
            engine.add(TOKENS, lora=two, max_tokens=1)
        for text in ("adapter x", "number 1", self.agent.folder, "as a new adapter"):
            self.assertIn(text, logs.output[0])
        engine.run()
        self.assertEqual(self.lora_run(engine, one, family(2, 160)), 0)
        self.assertEqual(engine.stats["save_chunks"], saved)
        two = adapter(self.agent.folder, "two", number=2)
        engine = self.rig()
        self.assertEqual(self.lora_run(engine, two), 20)
        self.assertNotIn("hit_tokens", engine.stats)

    def test_a_large_adapter_stalls_nobody(self):
        """Its requests go without KVTier until a thread has read it."""
        go, read = threading.Event(), keys.adapter_digest
        self.addCleanup(go.set)
        lora = adapter(self.agent.folder, "one" + " " * (5 << 20))
        with mock.patch.object(keys, "adapter_digest",
                               lambda path: go.wait(60) and read(path)):
            rig = self.rig()
            began = time.monotonic()
            with self.assertNoLogs(compat.log, "WARNING"):
                self.assertEqual(self.lora_run(rig, lora, TOKENS[:160]), 0)
            self.assertLess(time.monotonic() - began, 30)
            go.set()
            adapters = rig.scheduler.connector._half._adapters
            while adapters.being_read(lora):
                time.sleep(0.001)
        self.assertEqual(self.lora_run(rig, lora), 20)
        rig = self.rig()
        self.lora_run(rig, lora, TOKENS[:16])
        adapters = rig.scheduler.connector._half._adapters
        while adapters.being_read(lora):
            time.sleep(0.001)
        self.assertEqual(self.lora_run(rig, lora), 0)
        self.assertEqual(rig.stats["loaded_tokens"], 304)

    def test_a_large_adapter_that_changes_while_it_is_read(self):
        lora = adapter(self.agent.folder, "one" + " " * (5 << 20))
        go, done, read = threading.Event(), threading.Event(), keys.adapter_digest
        self.addCleanup(go.set)

        def slow(path):
            go.wait(60)
            digest = read(path)
            done.set()
            return digest

        rig = self.rig()
        rig.wrong_hits = True
        with mock.patch.object(keys, "adapter_digest", slow):
            self.lora_run(rig, lora, TOKENS[:160])
            two = adapter(self.agent.folder, "two" + " " * (5 << 20))
            go.set()
            self.assertTrue(done.wait(60))
            for _ in range(3):
                self.assertEqual(self.lora_run(rig, two), 0)
                time.sleep(0.05)

    def test_an_adapter_without_files(self):
        lora = adapter(self.agent.folder, "one")
        lora.lora_path = "org/name-that-nobody-loaded"
        for _ in range(2):
            self.assertEqual(self.lora_run(self.rig(), lora), 0)

    def test_salt_and_adapter_of_the_same_name(self):
        names = {keys.request_domain(*a) for a in
                 (("x", "", "", b""), ("", "x", "", b""), ("x", "x", "", b""), ("", "x", "y", b""),
                  ("", "x", "", b"y"), ("xx", "", "", b""))}
        self.assertEqual(len(names), 6)

    def test_another_hash_root_shares_nothing(self):
        self.cold()
        os.environ["PYTHONHASHSEED"] = "7"
        self.addCleanup(os.environ.__setitem__, "PYTHONHASHSEED", "0")
        rig = self.cold()
        self.assertNotIn("hit_tokens", rig.stats)

    def test_a_random_root_is_warned_of_and_a_weak_hash_refused(self):
        del os.environ["PYTHONHASHSEED"]
        self.addCleanup(os.environ.__setitem__, "PYTHONHASHSEED", "0")
        with self.assertRaisesRegex(ValueError, "collision-resistant.*sha256_cbor"):
            compat.check_hashes("xxhash", Settings())
        with self.assertLogs(compat.log, "WARNING") as logs:
            compat.check_hashes("xxhash", Settings(allow_weak_hash=True))
        self.assertIn("PYTHONHASHSEED", logs.output[0])
        if not hasattr(kv_cache_utils, "get_none_hash_seed"):
            with self.assertLogs(compat.log, "WARNING"):
                compat.check_hashes("sha256", Settings())

    def test_ranks_share_nothing_but_the_one_copy_of_mla(self):
        def run(tokens, tp=(0, 2), pp=(0, 1), mla=False):
            """@return tokens loaded and chunks stored by a worker of this rank."""
            with mock.patch.object(compat, "ranks", lambda config: (*tp, *pp)):
                rig = self.cold(tokens, mla=mla)
            return rig.stats.get("loaded_tokens", 0), rig.stats.get("stored_chunks", 0)

        for rank in ({"tp": (0, 2)}, {"tp": (1, 2)}, {"pp": (0, 2)}, {"pp": (1, 2)}):
            self.assertEqual(run(TOKENS, **rank), (0, 20), rank)
            self.assertEqual(run(TOKENS, **rank), (320, 0), rank)
        self.assertEqual(run(family(1, 320), (1, 2), mla=True), (0, 0))  # rank 0 stores it
        self.assertEqual(run(family(1, 320), (0, 2), mla=True), (0, 20))
        for tp in ((1, 2), (0, 1), (7, 8)):
            self.assertEqual(run(family(1, 320), tp, mla=True), (320, 0))
        self.assertEqual(run(family(1, 320), pp=(1, 2), mla=True), (0, 20))

    def test_engines_without_prefix_caching_are_refused(self):
        """vLLM turns it off for models whose KV depends on more than the tokens before; without it,
        and without a processor cache, it numbers images instead of hashing them."""
        def load(config):
            config.cache_config.enable_prefix_caching = False

        for how in ({"caching": False}, {"load": load}):
            with self.assertRaisesRegex(ValueError, "no-enable-prefix-caching"):
                self.rig(**how)
        model = type(self.rig().config.model_config)
        with mock.patch.object(model, "is_prefix_caching_supported", False), \
                self.assertRaisesRegex(ValueError, "not supported for this model"):
            self.rig()

    def identities(self, change, *values):
        """@return how many namespaces engines are in whose model configuration differs so."""
        model = self.rig().config.model_config
        found = set()
        for value in values:
            change(model, value)
            found.add(tuple(namespace.identity(
                types.SimpleNamespace(**{**vars(self.rig().config), "model_config": model}),
                Settings()).items()))
        return len(found)

    def test_what_of_the_length_changes_kv(self):
        def length(model, value):
            model.max_model_len = value

        def rope(kind):
            def change(model, value):
                model.hf_config.rope_parameters = {
                    "rope_type": kind, "original_max_position_embeddings": 4096}
                model.max_model_len = value
            return change

        def llama4(model, value):
            model.hf_config.text_config = {"model_type": "llama4"}
            model.max_model_len = value

        self.assertEqual(self.identities(length, 1000, 5000, 100000), 1)
        self.assertEqual(self.identities(rope("llama3"), 1000, 4096, 5000, 100000), 1)
        self.assertEqual(self.identities(rope("longrope"), 1000, 4096, 5000, 100000), 2)
        self.assertEqual(self.identities(llama4, 1000, 4096, 5000, 100000), 2)

    def test_a_branch_that_moved_and_other_settings(self):
        def quantization(model, value):
            model.quantization_config = value

        def branch(model, value):
            model.revision, model.hf_config._commit_hash = "main", value

        def images(model, value):
            model.multimodal_config = types.SimpleNamespace(mm_processor_kwargs=value)

        self.assertEqual(self.identities(quantization, None, {"a": 1}, {"a": 2}), 3)
        self.assertEqual(self.identities(branch, "one", "two"), 2)
        self.assertEqual(self.identities(images, None, {"max_pixels": 1}, {"max_pixels": 2}), 3)

    def test_a_model_that_changes_its_configuration_while_it_is_loaded(self):
        def load(config):
            config.model_config.hf_config.attn_temperature_tuning = True

        self.cold(load=load)
        self.assertEqual(self.cold(load=load).stats["hit_tokens"], 320)

    def test_chunks_of_more_than_an_agent_takes_are_refused(self):
        with self.assertRaisesRegex(ValueError, "set chunk_tokens to at most 524288"):
            self.rig(extra={"chunk_tokens": 524289})

    def test_every_mistake_in_the_settings_is_named(self):
        with self.assertRaises(ValueError) as caught:
            Settings.read({"chunk_token": 5, "lease_ms": "x", "copy_threads": 0})
        for name in ("chunk_tokens?", "lease_ms", "copy_threads"):
            self.assertIn(name, str(caught.exception))

    def test_reset_forgets_all(self):
        rig = self.cold()
        self.assertTrue(rig.scheduler.connector.reset_cache())
        rig.scheduler.kv_cache_manager.reset_prefix_cache()
        rig.add(TOKENS, max_tokens=1)
        rig.run()
        self.assertNotIn("hit_tokens", rig.stats)
        rig.scheduler.kv_cache_manager.reset_prefix_cache()
        rig.add(TOKENS, max_tokens=1)
        rig.run()
        self.assertEqual(rig.stats["loaded_tokens"], 320)

    def test_any_number_of_resets(self):
        """Engines that are trained reset with each step."""
        rig = self.cold()
        for _ in range(2000):
            rig.scheduler.connector.reset_cache()
            rig.step()
        for hits in (0, 320):
            rig.scheduler.kv_cache_manager.reset_prefix_cache()
            rig.add(TOKENS, max_tokens=1)
            rig.run()
            self.assertEqual(rig.stats.get("loaded_tokens", 0), hits)

    def test_what_ran_while_all_was_reset_is_not_stored(self):
        rig = self.rig()
        rig.add(TOKENS, max_tokens=40)
        for _ in range(4):
            rig.step()
        stored = rig.stats.get("save_chunks", 0)
        rig.scheduler.connector.reset_cache()
        rig.run()
        self.assertEqual(rig.stats.get("save_chunks", 0), stored)


def main():
    rig_test.KVTIERD, rig_test.MODEL = sys.argv[1:3]
    faulthandler.register(signal.SIGALRM, chain=True)
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])


if __name__ == "__main__":
    main()
