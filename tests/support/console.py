"""Runs the commands of a Markdown document and compares their output with the output in the document.

These fenced blocks are run, in the order of the document:

- ``console``: a line that begins with ``$ `` is a command. It continues on the next line after a backslash, and to the
  end of a here-document. The lines up to the next command are its complete output, errors included. A command without
  output in the document must succeed.
- ``bash``: one script. It must succeed, and may print anything.
- ``python``: one program. It must succeed. A ``text`` block that follows the words "It prints:" is its output.

Every command runs in a separate shell in the root of the checkout: ``cd`` and variables do not affect later commands.

``...`` in expected output matches any text; on a separate line it matches any number of lines, including none. Times,
ages and cursors may differ, and in JSON also revisions and the spaces after colons.

A comment before a block controls it: ``<!-- test: skip REASON -->`` skips the block; ``<!-- test: background -->``
marks a command that keeps running, such as a server: the caller has already started it, and passes its addresses in
``Substitutions``.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import unified_diff
from pathlib import Path
from typing import Final, Literal

from tests.support.processes import run_to_end

TIMEOUT_SECONDS: Final = 60.0
TOOLS: Final = ("curl", "docker", "grpcurl", "jq", "make", "nc", "npm", "python", "python3", "redis-cli", "uv")
"""A block that calls one of these programs is skipped if it is not installed."""

Language = Literal["bash", "console", "python"]

_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>[\w-]*)\s*$")
_MARK = re.compile(r"^<!-- test: (?P<mark>.*?) -->$")
_HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"]?)(?P<end>\w+)\1")
_PROMPT = "$ "
_PRINTS = "It prints:"

_LOOSE: Final = (
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"), "TIME"),
    # Go's protojson randomly writes one or two spaces after a colon, so that programs do not rely on its output.
    (re.compile(r'(?<=":) +'), " "),
    (re.compile(r'(?<="cursor": )"[^"]*"'), '"CURSOR"'),
    (re.compile(r'(?<="revision": )"\d+"'), '"REVISION"'),
    (re.compile(r'(?<="revision":)\d+'), "REVISION"),
    # Output of the command line: times of events, ages and durations, cursors.
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "CLOCK"),
    (re.compile(r"\b(?:\d+[ydhms]){1,2}\b( ago)? *"), r"AGE\1 "),
    (re.compile(r"\b[\d.]+ ms\b *"), "DURATION "),
    (re.compile(r"(?<=--cursor )\w+"), "CURSOR"),
    (re.compile(r'(?<="cursor":)"[^"]*"'), '"CURSOR"'),
)


@dataclass(frozen=True)
class Command:
    """A shell command or a Python program of a document."""

    text: str
    line: int
    """Its line in the document, from 1."""
    expected: tuple[str, ...] | None = None
    """The lines of its output; None if it may print anything and must succeed."""


@dataclass(frozen=True)
class Block:
    """A fenced block of commands."""

    language: Language
    line: int
    commands: tuple[Command, ...]
    skip: str = ""
    """The reason for not running it; empty to run it."""
    background: bool = False

    def tools(self) -> list[str]:
        """Return the programs of ``TOOLS`` that it calls, by name or by path."""
        if self.language == "python":
            return []
        called = (_words(command.text) for command in self.commands)
        return sorted({word for words in called for word in words if word.rpartition("/")[2] in TOOLS})


@dataclass(frozen=True)
class Result:
    """The output and the exit status of a command."""

    command: Command
    printed: tuple[str, ...]
    status: int

    @property
    def fault(self) -> str:
        """A description of the difference from the document; empty if there is none."""
        if not self.command.expected and self.status:
            return "\n".join((f"exit status {self.status}:", *self.printed))
        if self.command.expected is None:
            return ""
        if matches(self.command.expected, self.printed):
            return ""
        expected, printed = loosened(self.command.expected), loosened(self.printed)
        return "\n".join(unified_diff(expected, printed, "in the document", "printed", lineterm=""))


@dataclass(frozen=True)
class Substitutions:
    """Texts of the document, and the texts that replace them during the test."""

    values: Mapping[str, str]

    def apply(self, text: str) -> str:
        """Replace the texts of the document by those of the test."""
        for documented, actual in self.values.items():
            # re.sub would interpret a backslash in the replacement.
            new = actual.replace("\\", r"\\")
            text = re.sub(rf"(?:(?<=://)|(?<![\w./-])){re.escape(documented)}(?![\w-])", new, text)
        return text

    def undo(self, text: str) -> str:
        """Replace the texts of the test by those of the document."""
        for documented, actual in self.values.items():
            text = text.replace(actual, documented)
        return text


def blocks(document: str) -> list[Block]:
    """Return the blocks of commands in a document, including skipped ones.

    Raises:
        ValueError: The document violates the format; the message contains the line.
    """
    found: list[Block] = []
    mark, paragraph = "", ""
    lines = iter(enumerate(document.splitlines(), 1))
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            if line.strip():
                mark = match["mark"] if (match := _MARK.match(line.strip())) else ""
                paragraph = line
            continue
        content = list(_content(lines, fence["fence"], number))
        match fence["language"]:
            case "console":
                found.append(_marked(Block("console", number, tuple(_session(content))), mark))
            case "bash" | "python" as language:
                program = Command("\n".join(text for _, text in content) + "\n", number + 1)
                found.append(_marked(Block(language, number, (program,)), mark))
            case "text" if paragraph.rstrip().endswith(_PRINTS) and found and found[-1].language == "python":
                expected = tuple(text for _, text in content)
                found[-1] = replace(found[-1], commands=(replace(found[-1].commands[0], expected=expected),))
            case _ if mark:
                raise ValueError(f"line {number}: a `test:` comment before a block that is not run")
            case _:
                pass
        mark = paragraph = ""
    return found


def missing_tools(block: Block, substitutions: Substitutions) -> list[str]:
    """Return the programs that a block needs and that are not installed."""
    return [tool for tool in block.tools() if shutil.which(substitutions.apply(tool)) is None]


async def run(
    block: Block, substitutions: Substitutions, *, directory: Path, env: Mapping[str, str], python: str
) -> list[Result]:
    """Run the commands of a block, one after another.

    Args:
        block: The commands.
        substitutions: Texts to replace, such as the address of the server.
        directory: Working directory.
        env: Environment.
        python: The interpreter for ``python`` blocks.

    Raises:
        TimeoutError: A command did not end in time.
    """
    results = []
    for command in block.commands:
        text = substitutions.apply(command.text)
        arguments = (python, "-c", text) if block.language == "python" else (_shell(), "-c", text)
        code, output = await run_to_end(*arguments, max_seconds=TIMEOUT_SECONDS, cwd=directory, env=env)
        results.append(Result(command, tuple(substitutions.undo(output).splitlines()), code))
    return results


def matches(expected: Iterable[str], printed: Iterable[str]) -> bool:
    """Return whether the printed lines match the expected ones."""
    pattern = "".join(map(_pattern, loosened(expected)))
    text = "".join(f"{line}\n" for line in loosened(printed))
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def loosened(lines: Iterable[str]) -> list[str]:
    """Replace each text that may differ by a fixed word, and strip trailing white space and empty lines."""
    text = "\n".join(line.rstrip() for line in lines).rstrip("\n")
    for pattern, word in _LOOSE:
        text = pattern.sub(word, text)
    return text.splitlines()


def _pattern(line: str) -> str:
    if line.strip() == "...":
        return r"(?:[^\n]*\n)*?"
    return ".*?".join(map(re.escape, line.split("..."))) + "\n"


def _content(lines: Iterator[tuple[int, str]], fence: str, opened: int) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if line.rstrip() == fence:
            return
        yield number, line
    raise ValueError(f"line {opened}: the block is not closed")


def _session(content: Sequence[tuple[int, str]]) -> Iterator[Command]:
    lines = iter(content)
    command: Command | None = None
    expected: list[str] = []
    for number, line in lines:
        if line.startswith(_PROMPT):
            if command is not None:
                yield replace(command, expected=tuple(expected))
            command, expected = Command(_whole(line.removeprefix(_PROMPT), lines, number), number), []
        elif command is None:
            raise ValueError(f"line {number}: output without a command; a command begins with `{_PROMPT}`")
        else:
            expected.append(line)
    if command is not None:
        yield replace(command, expected=tuple(expected))


def _whole(command: str, lines: Iterator[tuple[int, str]], number: int) -> str:
    """Append the continuation lines of a command."""
    here_document = _HERE_DOCUMENT.search(command)
    last = command
    while last.endswith("\\") or (here_document and last.strip() != here_document["end"]):
        try:
            _, last = next(lines)
        except StopIteration:
            raise ValueError(f"line {number}: the command is incomplete") from None
        command += f"\n{last}"
        here_document = here_document or _HERE_DOCUMENT.search(last)
    return command


def _marked(block: Block, mark: str) -> Block:
    kind, _, reason = mark.partition(" ")
    match kind:
        case "":
            return block
        case "skip" if reason:
            return replace(block, skip=reason)
        case "background" if not reason:
            return replace(block, background=True)
        case _:
            raise ValueError(
                f"line {block.line}: `test: {mark}` before this block is neither `skip REASON` nor `background`"
            )


def _words(command: str) -> list[str]:
    """Return the words that may be names of programs: the first one, and those after a shell operator."""
    return [match[1] for match in re.finditer(r"(?:^|[|&;(])[\s\\]*([\w./-]+)", command.partition("<<")[0])]


def _shell() -> str:
    return shutil.which("bash") or "/bin/sh"
