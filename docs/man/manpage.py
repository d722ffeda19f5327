# SPDX-License-Identifier: Apache-2.0
"""Makes a man page from a text and what a program says of itself.

Usage: manpage.py SCDOC TEXT OUTPUT PROGRAM...

TEXT is in scdoc(5) format. A line `@help NAME [ARGUMENT]...` in it stands for the sections that
`NAME ARGUMENT... --help` makes, `@verbs NAME` for a section per verb of that help, `@keys NAME` for
the list that `NAME --keys` prints. So options, verbs and keys are described in one place, the
program, and pages cannot fall behind.
"""

import os
import re
import subprocess
import sys


def escape(text):
    """Plain text for scdoc, which takes some characters for marks."""
    return re.sub(r"([\\_*#`\[\]])", r"\\\1", text)


def said(program, *arguments):
    return subprocess.run([program, *arguments], check=True, stdout=subprocess.PIPE,
                          encoding="utf-8", timeout=60).stdout


def term(text):
    """`-o, --output FORMAT` with what is typed in bold."""
    words = []
    for word in text.split(" "):
        tail = "," if word.endswith(",") else ""
        name = word.rstrip(",")
        if re.fullmatch(r"[A-Z][A-Z=,.\[\]|N]*", name.replace("...", "")):
            words.append(f"_{escape(name)}_{tail}")
        else:
            words.append(f"*{escape(name)}*{tail}" if name else tail)
    return " ".join(words)


def definitions(lines):
    """Indented lines `  term   text` with continuations, as scdoc's definitions."""
    items = []
    for line in lines:
        found = re.match(r"  (\S.*?)(?:  +(\S.*))?$", line)
        if found and not line.startswith("   "):
            items.append([found[1], [found[2]] if found[2] else []])
        elif items:
            items[-1][1].append(line.strip())
    for name, texts in items:
        if not texts:
            sys.exit(f"manpage.py: the help says nothing about {name}")
        yield term(name)
        yield "\t" + escape(" ".join(texts))
        yield ""


def blocks(text):
    """Paragraphs: runs of lines between empty ones, split where indentation begins or ends."""
    block = []
    for line in [*text.splitlines(), ""]:
        ends = not line or (block and line.startswith("  ") != block[-1].startswith("  "))
        if block and ends:
            yield block
            block = []
        if line:
            block.append(line)


def body(text, level="#"):
    """All of a help text but its usage lines."""
    for block in blocks(text):
        head = re.match(r"Exit (?:status|codes):\s*(.*)", block[0])
        if head:
            yield f"{level} EXIT STATUS"
            yield ""
            rest = " ".join([head[1], *block[1:]]).strip()
            for item in re.split(r";\s*", rest) if rest else []:
                number, _, meaning = item.rstrip(".").partition(" ")
                yield from (f"*{number}*", "\t" + escape(meaning), "")
        elif block[0].startswith("  "):
            yield from definitions(block)
        elif len(block) == 1 and block[0].endswith(":"):
            yield f"{level} {re.sub(r' *[(].*', '', block[0].rstrip(':')).upper()}"
            yield ""
        else:
            yield escape(" ".join(block))
            yield ""


def usage(text):
    """(arguments of the usage lines, the rest)."""
    lines = text.splitlines()
    found = re.match(r"Usage: \S+ ?(.*)", lines[0])
    return found[1], "\n".join(lines[1:])


def help_sections(name, program, arguments):
    synopsis, rest = usage(said(program, *arguments, "--help"))
    return ["# SYNOPSIS", "", f"*{name}* {escape(synopsis)}", "", "# DESCRIPTION", "", *body(rest)]


def subsections(name, program, arguments):
    """The help of one command inside a page."""
    synopsis, rest = usage(said(program, *arguments, "--help"))
    return ["", f"*{name}* {escape(synopsis)}", "", *body(rest, "##")]


def verbs(name, program):
    shared = None
    for verb in re.findall(r"^  ([a-z][a-z-]*)(?: |$)",
                           said(program, "--help").split("\nOptions")[0], re.M):
        synopsis, rest = usage(said(program, verb, "--help"))
        text, _, options = rest.partition("\nOptions:\n")
        options = options.splitlines(keepends=True)
        if shared is None:  # the first verb has none but the common options
            shared = len(options)
        yield f"## {name} {synopsis}".replace(" [OPTION]...", "")  # takes no marks
        yield ""
        yield from body(text)
        yield from definitions(line.rstrip("\n") for line in options[shared:])


def keys(program):
    for item in re.findall(r"^(\S+)\n((?:    .*\n)+)", said(program, "--keys"), re.M):
        texts = [line.strip() for line in item[1].splitlines()]
        yield f"*{escape(item[0])}*"
        yield "\t" + escape(texts[0][0].upper() + texts[0][1:] + ".")
        for text in texts[1:]:
            yield "\t" + escape(text[0].upper() + text[1:] + ".")
        yield ""


def expand(line, programs):
    found = re.match(r"@(help|command|verbs|keys) (\S+)(.*)", line)
    if not found:
        return [line]
    kind, name, arguments = found[1], found[2], found[3].split()
    program = programs[name]
    if kind == "help":
        return help_sections(name, program, arguments)
    if kind == "command":
        return subsections(name, program, arguments)
    return list(verbs(name, program) if kind == "verbs" else keys(program))


def main():
    scdoc, source, output, *paths = sys.argv[1:]
    programs = {os.path.basename(path): path for path in paths}
    with open(source, encoding="utf-8") as file:
        lines = [made for line in file.read().splitlines() for made in expand(line, programs)]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines) + "\n")
    page = subprocess.run([scdoc], input=text, check=True, stdout=subprocess.PIPE,
                          encoding="utf-8", timeout=60).stdout
    with open(output, "w", encoding="utf-8") as file:
        file.write(page)


if __name__ == "__main__":
    main()
