#!/usr/bin/env python3
"""Checks the prose of this repository: the width of lines, and the words that CONTRIBUTING.md, Rules, asks to avoid.

usage: scripts/prose.py [--count] [FILE...]     no FILE: every file that git knows
"""
import re
import subprocess
import sys

WIDTH = 120
SOURCES = (".rs", ".py", ".sh", ".toml", ".md", ".service")
# A relative clause or nobody in particular as the subject of a sentence: the reader looks for a thing and finds none.
CLAUSE = re.compile(r"(?:^|[.:;!?]\s+|\*\*\s*|^\s*[-|]\s+)((?:What|Who|Whoever|Whatever|How many|How much|Which of)\s+(?!follows)\w+)")
QUESTION = re.compile(r"^[^.:;]*\?")
WORDS = re.compile(r"\b(nobody|somebody|whoever|no one(?!-)|so many|so much|everybody)\b", re.IGNORECASE)
COMMENT = {".rs": re.compile(r"^\s*//[/!]?\s?(.*)$|\s//\s(.*)$"), ".md": re.compile(r"^(?!#)(.*)$")}
HASH = re.compile(r"^\s*#(?!!)\s?(.*)$|\s#\s(.*)$")
# Text for people in Rust sources: at least four words in quotes.
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def texts(path, lines):
    """The prose of a file: (number of its first line, text), comment blocks joined."""
    comment = COMMENT.get(path[path.rfind("."):], HASH)
    block, start, fenced = [], 0, False
    for number, line in enumerate([*lines, ""], 1):
        found = comment.match(line) if comment.pattern.startswith("^") else None
        text = next((group for group in found.groups() if group is not None), "") if found else ""
        if text.lstrip().startswith("```"):
            fenced, text = not fenced, ""
        if fenced or not text.strip():
            if block:
                yield start, " ".join(block)
            block = []
        elif text.lstrip().startswith(("- ", "* ", "|")) and block:
            yield start, " ".join(block)
            block, start = [text.strip()], number
        else:
            if not block:
                start = number
            block.append(text.strip())
        if path.endswith(".rs") and not text:
            for string in STRING.findall(line):
                if string.count(" ") >= 3:
                    yield number, string


def faults(path):
    try:
        lines = open(path, encoding="utf-8").read().split("\n")
    except (UnicodeDecodeError, IsADirectoryError, FileNotFoundError):
        return
    if path.endswith((".rs", ".sh", ".py", ".toml")):
        for number, line in enumerate(lines, 1):
            if len(line) > WIDTH and not ('"' in line and re.search(r'"[^" ]{60,}"', line)) and "http" not in line:
                yield number, "width", f"{len(line)} columns"
    for number, text in texts(path, lines):
        if QUESTION.match(text):
            continue
        for found in CLAUSE.findall(text):
            yield number, "subject", found
        for found in WORDS.findall(text):
            yield number, "word", found


def main():
    arguments = sys.argv[1:]
    counting = "--count" in arguments
    files = [argument for argument in arguments if not argument.startswith("--")]
    if not files:
        listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")
        files = [path for path in listed if path.endswith(SOURCES) or path.startswith(".ci/")]
        files = [path for path in files if path != "scripts/prose.py"]
    total = {}
    for path in files:
        for number, kind, found in faults(path):
            total[kind] = total.get(kind, 0) + 1
            if not counting:
                print(f"{path}:{number}: {kind}: {found}")
    if counting:
        print(", ".join(f"{kind}: {count}" for kind, count in sorted(total.items())) or "no faults")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
