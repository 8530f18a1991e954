"""The runner of the commands in the documents finds blocks, runs them and reports differences."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.console import Block, Command, Substitutions, blocks, matches, missing_tools, run

NOTHING = Substitutions({})


def console(*lines: str) -> str:
    return "\n".join(("```console", *lines, "```"))


def only(document: str) -> Block:
    (block,) = blocks(document)
    return block


async def faults(document: str, substitutions: Substitutions = NOTHING, directory: Path = Path()) -> list[str]:
    results = [
        await run(block, substitutions, directory=directory, env=dict(os.environ), python=sys.executable)
        for block in blocks(document)
    ]
    return [result.fault for of_block in results for result in of_block]


def test_session_has_commands_with_their_output() -> None:
    document = "# Title\n\nText.\n\n" + console("$ echo a", "a", "$ true", "$ printf 'b\\n\\nc\\n'", "b", "", "c")
    assert only(document) == Block(
        "console",
        5,
        (Command("echo a", 6, ("a",)), Command("true", 8, ()), Command("printf 'b\\n\\nc\\n'", 9, ("b", "", "c"))),
    )


def test_command_continues_after_a_backslash() -> None:
    assert only(console("$ echo a \\", "    b", "a b")).commands == (Command("echo a \\\n    b", 2, ("a b",)),)


@pytest.mark.parametrize("end", ["EOF", "'EOF'", '"EOF"'])
def test_command_continues_to_the_end_of_its_here_document(end: str) -> None:
    assert only(console(f"$ cat <<{end}", "$ not a command", "EOF", "$ not a command")).commands == (
        Command(f"cat <<{end}\n$ not a command\nEOF", 2, ()),
        Command("not a command", 5, ()),
    )


def test_here_document_may_begin_after_a_backslash() -> None:
    assert only(console("$ cat \\", "  <<EOF", "a \\", "b", "EOF", "a b")).commands == (
        Command("cat \\\n  <<EOF\na \\\nb\nEOF", 2, ("a b",)),
    )


def test_script_is_one_command_that_must_succeed() -> None:
    assert only("```bash\ncd /\n\npwd\n```").commands == (Command("cd /\n\npwd\n", 2, None),)


def test_program_may_be_followed_by_its_output() -> None:
    document = "```python\nprint(1)\n```\n\nIt prints:\n\n```text\n1\n```\n\n```text\n2\n```"
    assert only(document) == Block("python", 1, (Command("print(1)\n", 2, ("1",)),))


def test_other_blocks_are_not_run() -> None:
    assert blocks("```\n$ rm -rf /\n```\n```toml\n[grpc]\n```\n~~~\n$ true\n~~~\n    $ true\n") == []


def test_longer_fence_may_contain_a_shorter_one() -> None:
    assert only("````console\n$ echo '```'\n```\n````").commands == (Command("echo '```'", 2, ("```",)),)


def test_comment_skips_a_block() -> None:
    block = only("<!-- test: skip it takes an hour -->\n" + console("$ sleep 3600"))
    assert (block.skip, block.background) == ("it takes an hour", False)


def test_comment_marks_a_background_command() -> None:
    block = only("<!-- test: background -->\n\n" + console("$ make run"))
    assert (block.skip, block.background) == ("", True)


def test_comment_applies_to_the_next_block_only() -> None:
    document = "<!-- test: background -->\n" + console("$ make run") + "\n" + console("$ true")
    assert [block.background for block in blocks(document)] == [True, False]
    assert not only("<!-- test: background -->\nText.\n" + console("$ true")).background


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (console("a", "$ echo a"), "line 2: output without a command"),
        (console("$ echo \\"), "line 2: the command is incomplete"),
        (console("$ cat <<EOF", "a"), "line 2: the command is incomplete"),
        ("Text.\n```console\n$ true\n", "line 2: the block is not closed"),
        ("<!-- test: skip -->\n" + console("$ true"), "line 2: `test: skip` before this block is neither"),
        ("<!-- test: backround -->\n" + console("$ true"), "line 2: `test: backround` before this block is neither"),
        ("<!-- test: background now -->\n" + console("$ true"), "line 2: `test: background now`"),
        ("<!-- test: skip for now -->\n```toml\n```", "line 2: a `test:` comment before a block that is not run"),
    ],
)
def test_format_error_is_reported_with_its_line(document: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        blocks(document)


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("", ""),
        ("a", "a"),
        ("a\nb", "a\nb"),
        ("a", "a  \n\n"),
        ("...", ""),
        ("...", "a\nb\n"),
        ("a\n...", "a"),
        ("a\n...\nd", "a\nd"),
        ("a\n...\nd", "a\nb\nc\nd"),
        ("{\n  ...\n}", '{\n  "a": {\n  }\n}'),
        ("took ... s", "took 0.1 s"),
        ("a ... d", "a b\nc d"),
        ('{"at": "2026-11-24T06:06:09.089Z"}', '{"at": "2031-01-01T00:00:00Z"}'),
        ("at 2026-11-24T06:06:09+01:00", "at 2026-11-24T06:06:09.123456789Z"),
        ('"cursor": "czEuYjBi"', '"cursor":  ""'),
        ('"revision": "1"', '"revision": "231"'),
        ('"revision":1}', '"revision":231}'),
        ('"a": 1', '"a":  1'),
        ("a.b (c) [d] * + ? \\ ^ $", "a.b (c) [d] * + ? \\ ^ $"),
    ],
)
def test_matching_output_is_accepted(expected: str, printed: str) -> None:
    assert matches(expected.splitlines(), printed.splitlines())


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("", "a"),
        ("a", ""),
        ("a", "a\nb"),
        ("b", "a\nb"),
        ("a", "ab"),
        ("a", "A"),
        ("a", " a"),
        ("a\n\nb", "a\nb"),
        ("a\n...\nd", "a\nb"),
        ("a...", "b"),
        ("took ... s", "took 0.1 ms"),
        ("a.b", "a-b"),
        ('"total_size": 1', '"total_size": 2'),
        ('"name": "a b"', '"name": "a  b"'),
        ('"revision": "1"', '"revision": ""'),
        ("2026-11-24", "2026-11-25"),
        ("2026-11-24T06:06:09.089Z", "never"),
    ],
)
def test_different_output_is_rejected(expected: str, printed: str) -> None:
    assert not matches(expected.splitlines(), printed.splitlines())


@pytest.mark.parametrize(
    "document",
    [
        console("$ echo a", "a", "$ cat <<'EOF'", "$HOME", "EOF", "$HOME", "$ true"),
        console("$ echo a | \\", "    tr a b", "b"),
        console("$ echo wrong >&2; exit 3", "wrong"),
        "```bash\nset -e\ncd /\necho whatever\n```",
        "```python\nprint('a')\n```",
        "```python\nprint('a')\n```\nIt prints:\n```text\na\n```",
    ],
)
async def test_correct_document_passes(document: str) -> None:
    assert set(await faults(document)) == {""}


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        (console("$ echo a", "b"), "-b\n+a"),
        (console("$ echo a"), "+a"),
        (console("$ true", "a"), "-a"),
        (console("$ exit 3"), "exit status 3:"),
        ("```bash\necho why\nfalse\n```", "exit status 1:\nwhy"),
        ("```python\nraise SystemExit('why')\n```", "exit status 1:\nwhy"),
        ("```python\nprint('a')\n```\nIt prints:\n```text\nb\n```", "-b\n+a"),
    ],
)
async def test_wrong_document_is_reported(document: str, fault: str) -> None:
    (reported,) = await faults(document)
    assert reported.endswith(fault)


async def test_commands_run_in_the_given_directory(tmp_path: Path) -> None:
    assert await faults(console("$ touch here", "$ ls", "here"), directory=tmp_path) == ["", ""]


async def test_commands_have_empty_input() -> None:
    assert await faults(console("$ cat")) == [""]


async def test_substitutions_apply_to_commands_and_revert_in_output() -> None:
    substitutions = Substitutions({"localhost:1": "127.0.0.1:23456", ".data": "/tmp/data-7"})
    command = "echo localhost:1/a .data/b '.data' \"localhost:1\" | tee /dev/stderr | grep -c 23456.*/tmp/data-7"
    printed = "localhost:1/a .data/b .data localhost:1"
    assert await faults(console(f"$ {command}", "...", printed, "..."), substitutions) == [""]


@pytest.mark.parametrize("text", ["localhost:12", "x.data", "a/.data", "-.data", ".database", ".data-1"])
def test_only_whole_words_are_replaced(text: str) -> None:
    assert Substitutions({"localhost:1": "h:2", ".data": "/d"}).apply(text) == text


@pytest.mark.parametrize(
    ("command", "tools"),
    [
        ("grpcurl -plaintext localhost:50051 list", ["grpcurl"]),
        ("curl -s http://h | jq .", ["curl", "jq"]),
        ("cat <<EOF\nall; curl\nEOF", []),
        ("echo curl", []),
        ("true && .venv/bin/redis-cli ping", [".venv/bin/redis-cli"]),
        ("echo $(curl h)", ["curl"]),
        ("echo a | \\\n  jq .", ["jq"]),
    ],
)
def test_tools_of_a_block_are_found(command: str, tools: list[str]) -> None:
    document = console(f"$ {command}")
    assert only(document).tools() == tools


def test_missing_tools_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tool = tmp_path / "bin" / "redis-cli"
    tool.parent.mkdir()
    tool.touch(mode=0o755)
    block = only(console("$ grpcurl a | .venv/bin/redis-cli b"))
    assert missing_tools(block, NOTHING) == [".venv/bin/redis-cli", "grpcurl"]
    assert missing_tools(block, Substitutions({".venv/bin": str(tool.parent)})) == ["grpcurl"]
