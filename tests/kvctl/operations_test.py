# SPDX-License-Identifier: Apache-2.0
"""Does what docs/operations.md says, command by command, and compares what comes with what it says
would come.

Usage: operations_test.py KVCTL KVTIERD KVBENCH DOCUMENT [STORY...]

A story is a section `## ...`. Its blocks ```console have commands behind "$ " and what they print.
Each story has a machine of its own: a folder that stands for /etc/kvtier, /run/kvtier and
/var/lib/kvtier, a config in it (a block ```yaml replaces that), and `systemctl` and `journalctl`
for the agent in it. Comments `<!-- test: COMMAND -->` are run too: what happened before the
operator came; `engine MODEL TOKENS_FILE` is an engine that stores the chunks of a prompt.

Numbers in the document are examples: 0 stands for 0, another number for any but 0, twelve or more
hexadecimal digits for as many. "..." stands for anything in a line, a line of it for any lines.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

ENGINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prompt_engine.py")
WAIT_S = 120
MARK = "==operations=="
PORT = "9455"  # of metrics, which another agent may have
FOLDERS = ("/etc/kvtier", "/run/kvtier", "/var/lib/kvtier")
CONFIG = """socket: {path: /run/kvtier/kvtierd.sock}
host: {bytes: 128MiB, slab_bytes: 32MiB, huge_pages: 'off'}
nvme: {path: /var/lib/kvtier/store, bytes: 160MiB, slab_bytes: 32896KiB}
metrics: {listen: ''}
"""

SHELL = r"""
export PATH="$ROOT/bin:$PATH" LC_ALL=C.UTF-8 KVTIER_SOCKET="$ROOT/run/kvtier/kvtierd.sock"
log="$ROOT/log" agent=""
agent_start() {
    local ready
    mkfifo "$ROOT/ready"
    kvtierd --config "$ROOT/etc/kvtier/kvtierd.yaml" --ready-fd 9 9>"$ROOT/ready" 2>>"$log" &
    agent=$!
    ready=$(timeout 60 cat "$ROOT/ready")
    rm "$ROOT/ready"
    if [[ $ready != ready ]]; then
        wait "$agent"
        agent=""
        echo "Job for kvtierd.service failed because the control process exited with error code."
        return 1
    fi
}
agent_stop() {
    [[ -z $agent ]] && return
    kill "${1:--TERM}" "$agent" 2>/dev/null
    wait "$agent" 2>/dev/null
    agent=""
}
systemctl() {
    case $1 in
    start) agent_start ;;
    stop) agent_stop ;;
    restart) agent_stop; agent_start ;;
    reload) kill -HUP "$agent" ;;
    kill) agent_stop -KILL ;;
    is-active) if [[ -n $agent ]]; then echo active; else echo inactive; return 3; fi ;;
    esac
}
journalctl() { # -u kvtierd -n N
    tail -n "$4" "$log"
}
engine() {
    python3 "$ENGINE" "$KVTIER_SOCKET" "$@"
}
trap agent_stop EXIT
cd "$ROOT/work"
"""


def stories(document):
    """[(title, [(kind, text)])]: kind is "console", "yaml" or "test"."""
    found = []
    for section in re.split(r"(?m)^## ", document)[1:]:
        title, _, text = section.partition("\n")
        blocks = [(m[1] or "test", m[2] or m[3]) for m in re.finditer(
            r"(?ms)^```(console|yaml)\n(.*?)^```$|^<!-- test: (.*?) -->$", text)]
        found.append((title, blocks))
    return found


def commands(block):
    """[(command, [line of output])] of a console block."""
    found = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append([line[2:], []])
        elif line.startswith("> ") and not found[-1][1]:
            found[-1][0] += "\n" + line[2:]
        else:
            found[-1][1].append(line)
    return found


def pattern(line):
    """What a line of the document stands for."""
    parts = []
    for part in re.split(r"(\.\.\.|\b[0-9a-f]{12,}\b|\d+(?:\.\d+)?|\s+)", line.rstrip()):
        if part == "...":
            parts.append(".*")
        elif re.fullmatch(r"[0-9a-f]{12,}", part):
            parts.append(r"[0-9a-f]{%d}" % len(part))
        elif re.fullmatch(r"\d+(\.\d+)?", part):
            parts.append(r"0(?:\.0+)?" if float(part) == 0 else r"(?!0+(?:\.0+)?(?![\d.]))\d+(?:\.\d+)?")
        elif part.isspace():
            parts.append(r"\s+")
        else:
            parts.append(re.escape(part))
    return "".join(parts)


def same(expected, actual):
    """Whether lines are what the document says. A line "..." is any lines."""
    if not expected:
        return not actual
    if expected[0].strip() == "...":
        return any(same(expected[1:], actual[i:]) for i in range(len(actual) + 1))
    return bool(actual) and re.fullmatch(pattern(expected[0]), actual[0].rstrip()) is not None and \
        same(expected[1:], actual[1:])


class Machine:
    """A folder, and a shell in it."""

    def __init__(self, root):
        self.root = root
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = str(server.getsockname()[1])
        for folder in ("/bin", "/work", *FOLDERS):
            os.makedirs(root + folder)
        for name, path in PROGRAMS.items():
            os.symlink(path, os.path.join(root, "bin", name))
        self.config(CONFIG)
        env = {n: v for n, v in os.environ.items() if not n.startswith("KVTIER")}
        self.shell = subprocess.Popen(["bash", "--norc"], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                      env={**env, "ROOT": root, "ENGINE": ENGINE})
        self.send(SHELL)

    def config(self, text):
        with open(self.root + "/etc/kvtier/kvtierd.yaml", "w", encoding="utf-8") as file:
            file.write(self.here(text))

    def here(self, text):
        text = text.replace(PORT, self.port)
        return re.sub("|".join(FOLDERS), lambda found: self.root + found[0], text)

    def run(self, command):
        """Lines that a command of the document prints."""
        return self.send(self.here(command))

    def send(self, command):
        self.shell.stdin.write(f"{command}\nprintf '\\n%s\\n' {MARK}\n")
        self.shell.stdin.flush()
        lines = []
        for line in self.shell.stdout:
            if line.rstrip() == MARK:
                break
            lines.append(line.rstrip("\n").replace(self.root, ""))
        else:
            raise AssertionError("the shell ended:\n" + "\n".join(lines))
        if lines and not lines[-1]:  # of the mark
            lines.pop()
        return lines

    def close(self):
        self.shell.stdin.close()
        self.shell.wait(WAIT_S)
        self.shell.stdout.close()


class Operations(unittest.TestCase):
    def story(self, blocks):
        root = tempfile.mkdtemp(prefix="kvt-op-", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, root, ignore_errors=True)
        machine = Machine(root)
        self.addCleanup(machine.close)
        for kind, text in blocks:
            if kind == "yaml":
                machine.config(text)
            elif kind == "test":
                machine.run(text)
            else:
                for command, expected in commands(text):
                    actual = machine.run(command)
                    self.assertTrue(same(expected, actual), "\n".join(
                        [f"$ {command}", "-- document:", *expected, "-- here:", *actual]))


if __name__ == "__main__":
    KVCTL, KVTIERD, KVBENCH = map(os.path.abspath, sys.argv[1:4])
    PROGRAMS = {"kvctl": KVCTL, "kvtierd": KVTIERD, "kvbench": KVBENCH}
    with open(sys.argv[4], encoding="utf-8") as document_file:
        STORIES = stories(document_file.read())
    for number, (story_title, story_blocks) in enumerate(STORIES, 1):
        def test(self, blocks=story_blocks):
            self.story(blocks)
        test.__doc__ = story_title
        setattr(Operations, f"test_{number:02}", test)
    unittest.main(argv=[sys.argv[0], *sys.argv[5:]], verbosity=2)
