#!/usr/bin/env python3
"""Refuses modules of one crate that import each other.

The imports are those of `use` items and of paths from `crate::`, `self::` and `super::`. A re-export is followed to the
module that has the item, and is no import by itself: a parent may re-export what its children import from each other.
Tests may import anything.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def modules(source):
    """The files of a crate by the path of their module."""
    found = {}
    for file in source.rglob("*.rs"):
        parts = file.relative_to(source).with_suffix("").parts
        if parts[-1] in ("mod", "lib", "main"):
            parts = parts[:-1]
        found[parts] = file
    return found


def expand(tree):
    """The paths of a `use` tree."""
    group = re.match(r"^(.*?)\{(.*)\}$", tree.strip(), re.S)
    if not group:
        return [re.sub(r"\s+as\s+\w+", "", tree.strip())]
    prefix, body = group.groups()
    parts, depth, current = [], 0, ""
    for letter in body + ",":
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [path for part in parts if part.strip() for path in expand(prefix + part.strip())]


def resolve(module, path, known):
    """The path from the root of the crate; None for one into another crate."""
    parts = [part.strip() for part in path.split("::")]
    if parts[0] == "crate":
        return tuple(parts[1:])
    if parts[0] == "self":
        return module + tuple(parts[1:])
    if parts[0] == "super":
        while parts and parts[0] == "super":
            module, parts = module[:-1], parts[1:]
        return module + tuple(parts)
    return module + tuple(parts) if module + (parts[0],) in known else None


def text_of(file):
    text = re.sub(r"//.*", "", file.read_text())
    return text.split("#[cfg(test)]\nmod tests {")[0]


def imports(source):
    """The modules that each module of a crate imports."""
    known = modules(source)
    exported, paths = {}, defaultdict(list)
    for module, file in known.items():
        text = text_of(file)
        for tree in re.findall(r"\bpub(?:\([^)]*\))?\s+use\s+([^;]+);", text):
            for path in expand(tree):
                target = resolve(module, path, known)
                if target:
                    exported[module, target[-1]] = target
        if any(part.endswith("tests") for part in module):
            continue
        text = re.sub(r"\bpub(?:\([^)]*\))?(\s+use\s+[^;]+;)?", "", text)
        for tree in re.findall(r"\buse\s+([^;]+);", text):
            paths[module] += expand(tree)
        paths[module] += re.findall(r"\b(?:crate|super)(?:::\w+)+", re.sub(r"\buse\s+[^;]+;", "", text))

    def is_exported(path, at):
        return (path[:at], path[at]) in exported and path[: at + 1] not in known

    edges = defaultdict(set)
    for module, named in paths.items():
        for path in named:
            target = resolve(module, path, known)
            while target:
                at = next((n for n in range(len(target)) if is_exported(target, n)), None)
                if at is None:
                    break
                target = exported[target[:at], target[at]] + target[at + 1 :]
            while target and target not in known:
                target = target[:-1]
            if target and target != module:
                edges[module].add(target)
    return edges


def cycle(edges):
    """A cycle of imports, or None."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :] + [module]
        if module in done:
            return None
        path.append(module)
        for target in sorted(edges.get(module, ())):
            found = visit(target)
            if found:
                return found
        path.pop()
        done.add(module)
        return None

    return next((found for module in sorted(edges) if (found := visit(module))), None)


def main():
    failed = False
    for manifest in sorted(ROOT.rglob("Cargo.toml")):
        source = manifest.parent / "src"
        if not source.is_dir() or "target" in manifest.relative_to(ROOT).parts:
            continue
        found = cycle(imports(source))
        if found:
            failed = True
            way = " -> ".join("::".join(module) or "the root" for module in found)
            print(f"{manifest.parent.relative_to(ROOT)}: modules import each other: {way}", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
