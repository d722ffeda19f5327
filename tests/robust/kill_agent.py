# SPDX-License-Identifier: Apache-2.0
"""Kills the agent at random moments under load, KVT_KILLS times, and judges what it holds after.

Two kinds of store take turns: one with room for everything, where a chunk whose durable store was
answered must be there after every restart; and a small one that evicts all the time, where only
the bytes are judged.
"""

import os
import time

import kvt

KILLS = int(os.environ.get("KVT_KILLS", "40"))
ROUNDS_PER_STORE = 8
CHAIN, CHUNK_BYTES = 8, 256 << 10
WINDOW = 32  # prompts to store between two kills
CHUNKS = ROUNDS_PER_STORE * WINDOW * CHAIN
ROOMY = f"{CHUNKS * (CHUNK_BYTES + 4096) + 96 * kvt.MIB}"


def agent_killed_under_load(folder):
    rng = kvt.seeded("agent_killed_under_load")
    starts, lost, totals = [], 0, {}
    with kvt.Agent(folder) as agent:
        for store in range((KILLS + ROUNDS_PER_STORE - 1) // ROUNDS_PER_STORE):
            roomy = store % 2 == 0
            agent.wipe()
            agent.set(nvme__bytes=ROOMY if roomy else "64MiB",
                      nvme__engine="threads" if store % 4 == 3 else "auto")
            agent.start()
            with kvt.Client(agent, chunks=CHUNKS, chain=CHAIN, chunk_bytes=CHUNK_BYTES,
                            model=f"kill-{store}", seed=rng.randrange(1 << 32)) as client:
                for round_ in range(min(ROUNDS_PER_STORE, KILLS - store * ROUNDS_PER_STORE)):
                    client.connect()
                    assert client.ask(f"run {round_ * WINDOW} {WINDOW}") == "ok"
                    time.sleep(rng.random() * 0.35)
                    agent.kill()
                    counts = client.stop()
                    starts.append(agent.start())
                    client.connect()
                    found = client.verify()
                    kvt.check(found["wrong"] == 0, f"wrong bytes after kill {len(starts)}")
                    if roomy:
                        kvt.check(found["lost"] == 0, f"{found} after kill {len(starts)}: "
                                                      f"{client.complaints()}\n{agent.log_tail()}")
                    else:
                        lost += found["lost"]
                        client.ask("forget")
                for key, value in counts.items():
                    totals[key] = totals.get(key, 0) + value
                client.process.stdin.close()
                client.process.wait(30)
            agent.stop()
    kvt.check(len(starts) == KILLS, f"{len(starts)} of {KILLS} kills")
    kvt.check(totals["durable"] > 0 and totals["loaded"] > 0, f"the load did nothing: {totals}")
    kvt.note(f"{KILLS} kills, slowest start {max(starts):.2f} s, {totals}, "
             f"evicted from the small store: {lost}")


kvt.run(agent_killed_under_load)
