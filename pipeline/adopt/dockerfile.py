"""The stages of an image as a plain Dockerfile, for who leaves Cresset.

It is not written a second time by hand: the lazy calls that the pipeline would send to an engine
are written out one by one, so that the two cannot drift apart. The SDK has no public way to look at
a lazy object, which is why `_calls` reads a private one.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import CressetError

SYNTAX = "docker/dockerfile:1"
WHEELS = "wheels"

_FILES = "/files"
_WIDTH = 96


@dataclass(frozen=True)
class Copied:
    """A file that lies beside the Dockerfile."""

    content: bytes
    mode: int = 0o644


@dataclass
class _State:
    """What holds in a container at one call, beside what is in its layers."""

    mounts: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    folder: str = ""


class Writer:
    """Writes stages out, each once, and collects the files that they copy."""

    def __init__(self) -> None:
        self.files: dict[str, Copied] = {}
        self._blocks: list[str] = []
        self._known: dict[tuple[int, ...], str] = {}
        self._names: set[str] = set()

    def text(self) -> str:
        """Return the Dockerfile."""
        return f"# syntax={SYNTAX}\n\n" + "\n\n".join(self._blocks) + "\n"

    def stage(self, lazy: Any, name: str) -> str:  # noqa: ANN401 - a Container or a Directory
        """Write out the container, or that which a directory is from; return its stage's name."""
        return self._stage(_container(_calls(lazy)), name)

    def _stage(self, calls: Sequence[Any], name: str) -> str:
        key = tuple(map(id, calls))
        if key in self._known:
            return self._known[key]
        name = self._free(name)
        done = max(
            (it for it in self._known if key[: len(it)] == it), key=len, default=(),
        )  # fmt: skip
        state = _State()
        below = self._known.get(done, "scratch")
        for index in range(len(done)):
            self._apply(calls, index, state)
        lines: list[str] = []
        for index in range(len(done), len(calls)):
            if calls[index].name == "from":
                below = f"--platform=linux/amd64 {calls[index].args['address']}"
                continue
            lines += self._apply(calls, index, state)
        self._blocks.append("\n".join([f"FROM {below} AS {name}", *_joined(lines)]))
        self._known[key] = name
        return name

    def _free(self, name: str) -> str:
        names = (f"{name}{number or ''}" for number in range(99))
        free = next(it for it in names if it not in self._names)
        self._names.add(free)
        return free

    def _apply(self, calls: Sequence[Any], index: int, state: _State) -> list[str]:  # noqa: PLR0911, PLR0912 - one case a call
        """Return the instructions of one call; what only holds for a while goes into the state."""
        call = calls[index]
        args = call.args
        match call.name:
            case (
                "container"
                | "from"
                | "withoutMount"
                | "withoutEnvVariable"
                | "withoutSecretVariable"
            ):
                state.mounts.pop(args.get("path", ""), None)
                state.variables.pop(args.get("name", ""), None)
                return []
            case "withMountedCache":
                sharing = getattr(args.get("sharing"), "value", args.get("sharing")) or "SHARED"
                state.mounts[args["path"]] = f"type=cache,sharing={str(sharing).lower()}"
                return []
            case "withMountedFile" | "withMountedDirectory":
                state.mounts[args["path"]] = self._bind(args["source"])
                return []
            case "withSecretVariable":
                # The one secret that is given: the public index of PyTorch's wheels.
                state.variables[args["name"]] = _calls(args["secret"])[-1].args["plaintext"]
                return []
            case "withEnvVariable":
                if _taken_out(calls, index, "withoutEnvVariable", "name"):
                    state.variables[args["name"]] = args["value"]
                    return []
                return [f"ENV {args['name']}={_quoted(args['value'])}"]
            case "withWorkdir":
                if _taken_out(calls, index, "withoutWorkdir"):
                    state.folder = args["path"]
                    return []
                return [f"WORKDIR {args['path']}"]
            case "withoutWorkdir":
                state.folder = ""
                return []
            case "withExec":
                return [_run(args["args"], state)]
            case "withDirectory":
                return [self._copy(args["source"], args["path"])]
            case "withoutFile":
                return [f"RUN rm -f {shlex.quote(args['path'])}"]
            case "withSymlink":
                return [f"RUN ln -s {shlex.quote(args['target'])} {shlex.quote(args['linkName'])}"]
            case "withNewFile":
                return [f"COPY <<'EOF' {args['path']}\n{args['contents'].rstrip()}\nEOF"]
            case "withLabel":
                return [f"LABEL {args['name']}={_quoted(args['value'])}"]
            case "withAnnotation":
                # Of the manifest, for which a Dockerfile has no word; each is a label too.
                return []
            case "withEntrypoint":
                return [f"ENTRYPOINT {json.dumps(args['args'])}"]
            case "withDefaultArgs":
                return [f"CMD {json.dumps(args['args'])}"]
            case other:
                raise CressetError(f"no Dockerfile can be written: {other} has no words there")

    def _bind(self, source: Any) -> str:  # noqa: ANN401 - a File or a Directory
        """Return the mount of a file or folder: of another stage, or beside the Dockerfile."""
        calls = _calls(source)
        first, last = calls[0], calls[-1]
        if last.type_name == "Container":
            name = self._stage(calls[:-1], "tools")
            return f"type=bind,from={name},source={last.args['path']}"
        if first.name == "host" and last.name == "directory":
            return self._folder(Path(last.args["path"]), last.args.get("include", ()))
        if first.name == "host":
            path = Path(last.args["path"])
            return f"type=bind,source={self._beside(f'pins/{path.name}', path.read_bytes())}"
        name = self._beside(f"pins/{last.args['name']}", str(last.args["contents"]).encode())
        return f"type=bind,source={name}"

    def _folder(self, folder: Path, include: Sequence[str]) -> str:
        if folder.name == WHEELS:
            (pattern,) = include
            name = f"compiled-{pattern.partition('-')[0]}"
            if name not in self._names:
                self._names.add(name)
                self._blocks.append(f"FROM scratch AS {name}\nCOPY {WHEELS}/{pattern} /")
            return f"type=bind,from={name},source=/"
        for file in include:
            self._beside(f"{folder.name}/{file}", (folder / file).read_bytes())
        return f"type=bind,source={folder.name}"

    def _copy(self, source: Any, path: str) -> str:  # noqa: ANN401 - a Directory
        calls = _calls(source)
        if calls[-1].type_name != "Container":
            return f"COPY --from={self._files(source)} {_FILES}/ {path}"
        stage = self._stage(_container(calls), "tools")
        return f"COPY --from={stage} {calls[-1].args['path']} {path}"

    def _files(self, directory: Any) -> str:  # noqa: ANN401 - a Directory
        """Write out a stage with the files of a new directory; return its name.

        In a stage of their own they become one layer, with modes that a checkout would not keep.
        """
        key = tuple(map(id, _calls(directory)))
        if key in self._known:
            return self._known[key]
        below = next(iter(self._known.values()))
        lines: list[str] = []
        copies: dict[tuple[int, str], list[str]] = {}
        for call in _calls(directory):
            args = call.args
            path = str(args.get("path", ""))
            mode = int(args.get("permissions", 0o644))
            if call.name == "withDirectory":
                lines.append(self._copy(args["source"], f"{_FILES}{path}"))
            elif call.name == "withNewFile":
                self._beside(f"files{path}", args["contents"].encode(), mode)
                copies.setdefault((mode, str(Path(path).parent)), []).append(f"files{path}")
            elif call.name == "withNewDirectory":
                lines.append(f"RUN mkdir -p {_FILES}{path} && chmod {mode:o} {_FILES}{path}")
        lines += [
            _wrapped(["COPY", f"--chmod={mode:o}", *paths, f"{_FILES}{folder}/"])
            for (mode, folder), paths in copies.items()
        ]
        name = self._free("files")
        self._blocks.append("\n".join([f"FROM {below} AS {name}", *lines]))
        self._known[key] = name
        return name

    def _beside(self, name: str, content: bytes, mode: int = 0o644) -> str:
        # Its mode in the image is set by COPY; here nothing is to be in the way of an editor.
        self.files[name] = Copied(content, 0o755 if mode & 0o111 else 0o644)
        return name


def _calls(lazy: Any) -> list[Any]:  # noqa: ANN401 - whatever the SDK makes
    return list(lazy._ctx.selections)


def _container(calls: Sequence[Any]) -> list[Any]:
    """Return the calls that make a container, without the one that takes a folder out of it."""
    taken = calls[-1].type_name == "Container" and calls[-1].name in {"directory", "file"}
    return list(calls[:-1] if taken else calls)


def _taken_out(calls: Sequence[Any], index: int, name: str, key: str = "") -> bool:
    wanted = calls[index].args.get(key)
    return any(it.name == name and it.args.get(key) == wanted for it in calls[index + 1 :])


def _run(command: Sequence[str], state: _State) -> str:
    mounts = [f"--mount={kind},target={path}" for path, kind in state.mounts.items()]
    assignments = [f"{name}={shlex.quote(value)}" for name, value in state.variables.items()]
    if list(command[:2]) == ["sh", "-ec"]:
        script, args = command[2].strip("\n"), command[4:]
        lines = ["set -e", *(f"export {it}" for it in assignments)]
        lines += [f"cd {state.folder}"] if state.folder else []
        # They are $1, $2 … of the script.
        lines += [_wrapped(["set", "--", *map(shlex.quote, args)])] if args else []
        start = _wrapped(["RUN", *mounts, "<<'EOF'"], each_on_its_own=len(mounts))
        return "\n".join([start, *lines, script, "EOF"])
    words = [*assignments, *map(shlex.quote, command)]
    words = ["cd", state.folder, "&&", *words] if state.folder else words
    return _wrapped(["RUN", *mounts, *words], each_on_its_own=len(mounts))


def _wrapped(words: Sequence[str], *, each_on_its_own: int = 0) -> str:
    """Return words over lines that end in a backslash; the first few options on their own."""
    lines = [" ".join(words[: 1 + min(each_on_its_own, 1)])]
    rest = list(words[1 + min(each_on_its_own, 1) :])
    for number, word in enumerate(rest, 1):
        alone = number <= each_on_its_own
        if alone or len(lines[-1]) + len(word) > _WIDTH:
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _quoted(value: str) -> str:
    escaped = re.sub(r'[\\"$]', r"\\\g<0>", value)
    return f'"{escaped}"'


def _joined(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines, with neighbours that are all ENV or all LABEL as one instruction."""
    for keyword, group in itertools.groupby(lines, lambda line: line.partition(" ")[0]):
        if keyword in {"ENV", "LABEL"}:
            head, *rest = group
            yield " \\\n    ".join([head, *(it.removeprefix(f"{keyword} ") for it in rest)])
        else:
            yield from group


def written(stages: Mapping[str, Any]) -> tuple[str, dict[str, Copied]]:
    """Return the Dockerfile of these stages, the image last, and the files that it copies."""
    writer = Writer()
    for name, lazy in stages.items():
        writer.stage(lazy, name)
    return writer.text(), writer.files
