"""``register -f``: file formats, and errors with their location."""

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.program import Program

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

ONE = {"name": "a", "endpoint": "http://a.test", "version": "1.0.0", "healthCheck": {"type": "heartbeat"}}
TWO = {"name": "b", "endpoint": "http://b.test", "version": "1.0.0"}
DOCUMENTS = f"{yaml.safe_dump(ONE)}---\n{yaml.safe_dump(TWO)}---\n"


def write_file(program: Program, name: str, content: str | bytes) -> str:
    file = program.directory / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def registered_names(program: Program) -> list[str]:
    return program.run("list", "-o", "name").out.split()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("two.yaml", DOCUMENTS),
        ("two.yml", yaml.safe_dump([ONE, TWO])),
        ("two.json", json.dumps([ONE, TWO])),
        ("two.json", "\ufeff" + json.dumps([ONE, TWO])),
        ("two", json.dumps([ONE, TWO])),
        ("two", DOCUMENTS),
    ],
)
def test_files_contain_documents_arrays_or_objects(program: Program, name: str, content: str) -> None:
    program.run_ok("register", "-f", write_file(program, name, content))
    assert registered_names(program) == ["a", "b"]


@pytest.mark.parametrize("content", [DOCUMENTS, json.dumps([ONE, TWO])])
def test_standard_input_is_read(program: Program, content: str) -> None:
    program.run_ok("register", "-f", "-", stdin=content)
    assert registered_names(program) == ["a", "b"]


def test_directories_and_several_files_are_read(program: Program) -> None:
    write_file(program, "agents/1.yaml", yaml.safe_dump(ONE))
    write_file(program, "agents/2.json", json.dumps(TWO))
    write_file(program, "agents/README.md", "no service")
    write_file(program, "c.yaml", yaml.safe_dump(TWO | {"name": "c"}))
    done = program.run_ok("register", "-f", "agents", "-f", "c.yaml", "-o", "json")
    assert [each["name"] for each in done.json] == ["a", "b", "c"]


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_output_of_get_and_list_can_be_registered(program: Program, form: str) -> None:
    full = ONE | {
        "capabilities": [{"name": "x", "version": "1.0", "inputs": {"type": "object", "n": 1.5, "l": [None, True]}}],
        "metadata": {"tags": ["t"], "environment": "on", "labels": {"zone": "no", "since": "2026-11-24"}},
        "group": "g",
        "ttlSeconds": 60.5,
        "healthCheck": {
            "type": "http",
            "path": "/h",
            "expectedStatuses": [204],
            "intervalMs": 1500,
            "headers": {"A": "b"},
        },
    }
    program.run_ok("register", "-f", "-", stdin=json.dumps([full, TWO]))
    one, all_ = program.run_ok("get", "a", "-o", form).out, program.run_ok("list", "-o", form).out
    before = program.run_ok("list", "-o", "json").json
    # Identical content changes nothing: revisions remain.
    program.run_ok("register", "-f", write_file(program, f"one.{form}", one))
    program.run_ok("register", "-f", write_file(program, f"all.{form}", all_))
    program.run_ok("register", "-f", "-", stdin=all_)
    assert program.run_ok("list", "-o", "json").json == before

    program.run_ok("unregister", "a", "b")
    program.run_ok("register", "-f", f"all.{form}")
    after = program.run_ok("list", "-o", "json").json
    for each in (*before, *after):
        for key in ("registeredAt", "updatedAt", "revision"):
            del each[key]
        each["health"].pop("statusChangedAt")
    assert after == before


def test_errors_have_locations_and_valid_services_are_registered(program: Program) -> None:
    write_file(
        program,
        "agents.yaml",
        f"""\
{json.dumps(ONE)}
---
name: b
endpoint: file://b.test
version: 1.10
colour: red
healthcheck: {{type: tcp}}
---
- name: c
  endpoint: file://c.test
  version: "1"
  ttlSeconds: 1
- {{name: d, endpoint: "tcp://d.test:1", version: "1", healthCheck: {{type: tcp, path: /x, intervalMs: fast}}}}
- {{name: a, endpoint: "http://other.test", version: "1"}}
- 7
""",
    )
    done = program.run("register", "-f", "agents.yaml")
    assert done.code == 1
    assert registered_names(program) == ["a"]
    assert done.out.startswith("a registered, revision ")
    errors = [line.removeprefix("ossa-registry: agents.yaml, ") for line in done.err.splitlines()]
    second, c, d, duplicate, number = (
        "document 2 (line 3): ",
        "document 3, item 1 (line 9): c: ",
        "document 3, item 2 (line 13): ",
        "document 3, item 3 (line 14): ",
        "document 3, item 4 (line 15): ",
    )
    assert f"{second}version: must be text, not the number 1.1; put it in quotes" in errors
    assert any(line.startswith(f"{second}colour: is not a field; the fields are name, ") for line in errors)
    assert any(line.startswith(f"{second}healthcheck: is not a field; did you mean healthCheck? ") for line in errors)
    assert any(line.startswith(f"{c}endpoint: ") for line in errors)
    assert any(line.startswith(f"{c}ttlSeconds: ") for line in errors)
    assert f"{d}healthCheck.intervalMs: must be a number, not text" in errors
    assert f'{d}healthCheck.path: is only allowed with "type":"http"' in errors
    assert f"{duplicate}name: duplicate of 'a' in agents.yaml, document 1 (line 1)" in errors
    assert f"{number}service: must be an object, not the number 7" in errors
    assert len(errors) == 9


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.yaml", "name: a\n  endpoint: b", "x.yaml: invalid YAML: line 2, column 11: "),
        ("x.yaml", "name: a\nname: b", "x.yaml: invalid YAML: line 2, column 1: duplicate key 'name'"),
        ("x.yaml", "name: !!python/object:os.system x", "x.yaml: invalid YAML: line 1, column 7: could not determine"),
        ("x.yaml", "a: \x01", "x.yaml: invalid YAML: "),
        ("x.yaml", "", "x.yaml: the file is empty"),
        ("x.json", '{"name": "a",\n "b" }', "x.json: invalid JSON: line 2, column 6: "),
        ("x.json", "[" * 100_000, "x.json: nested too deeply"),
        ("x.yaml", b"\xff", "x.yaml: invalid UTF-8: "),
        ("empty/x.md", "", "empty: the directory contains no files with suffix .yaml, .yml, .json"),
    ],
)
def test_unreadable_file_is_one_line_and_exit_code_2(
    program: Program, name: str, content: str | bytes, expected: str
) -> None:
    path = write_file(program, name, content)
    done = program.run("register", "-f", path.partition("/")[0] if "/" in path else path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"ossa-registry: {expected}")
    assert done.err.count("\n") == 1


def test_missing_file_is_reported(program: Program) -> None:
    done = program.run("register", "-f", "no.yaml")
    assert done == (2, "", "ossa-registry: cannot read no.yaml: No such file or directory\n")


def test_yaml_alias_bombs_are_rejected(program: Program) -> None:
    levels = "\n".join(f"l{at}: &l{at} [{', '.join([f'*l{at - 1}'] * 9)}]" for at in range(1, 12))
    bomb = f"l0: &l0 [x]\n{levels}\n".replace("\n", "\n    ")
    text = f"name: a\nendpoint: http://a.test\nversion: '1'\ncapabilities:\n- name: x\n  inputs:\n    {bomb}"
    done = program.run("register", "-f", "-", stdin=text)
    assert done.code == 1
    assert "is too large" in done.err
    loop = "name: a\nendpoint: http://a.test\nversion: '1'\ncapabilities:\n- name: x\n  inputs: &i {i: *i}"
    done = program.run("register", "-f", "-", stdin=loop)
    assert done.code == 1
    assert "is nested more than 32 levels deep" in done.err


def test_dry_run_does_not_call_the_registry(program: Program) -> None:
    write_file(program, "two.yaml", DOCUMENTS)
    done = program.run("register", "-f", "two.yaml", "--dry-run", "-t", "127.0.0.1:1")
    assert done.code == 0
    assert done.out == "a would be registered\nb would be registered\n"
    assert "only the structure was checked" in done.err
    done = program.run("register", "-f", "two.yaml", "--dry-run", "-o", "json", "--quiet", "-t", "127.0.0.1:1")
    assert done.json == [ONE | {"capabilities": []}, TWO | {"capabilities": []}]
    assert program.run("register", "-f", "-", "--dry-run", stdin="name: 1").code == 2


def test_many_services_are_registered_in_batches_with_a_progress_bar(program: Program) -> None:
    services = [TWO | {"name": f"s{number:03}"} for number in range(250)]
    services[120]["endpoint"] = "file://nowhere"
    write_file(program, "many.json", json.dumps(services))

    done = program.run("register", "-f", "many.json")
    assert done.code == 1
    assert len(done.out.splitlines()) == 249
    assert [line.partition("endpoint: ")[0] for line in done.err.splitlines()] == [
        "ossa-registry: many.json, item 121: s120: "
    ]
    assert len(registered_names(program)) == 249

    code, written = program.run_on_terminal("register", "-f", "many.json")
    assert code == 1
    assert "registering  [" in written
    assert "250/250" in written
    assert "registering" not in program.run_on_terminal("register", "-f", "many.json", "--quiet")[1]


def test_batches_of_large_services_stay_below_the_message_limit(program: Program) -> None:
    services = [
        TWO | {"name": f"s{number}", "capabilities": [{"name": "x", "inputs": {"text": "x" * 60_000}}]}
        for number in range(90)
    ]
    write_file(program, "large.json", json.dumps(services))
    program.run_ok("register", "-f", "large.json")
    assert len(registered_names(program)) == 90


def test_create_only_registers_only_new_services(program: Program) -> None:
    program.run_ok("register", "-f", "-", stdin=json.dumps(ONE))
    done = program.run("register", "-f", "-", "--create-only", stdin=json.dumps([ONE, TWO]))
    assert done.code == 1
    assert done.err.startswith("ossa-registry: standard input, item 1: a: service 'a' is already registered")
    assert registered_names(program) == ["a", "b"]


def test_unreachable_registry_is_reported_once(program: Program) -> None:
    write_file(program, "many.json", json.dumps([TWO | {"name": f"s{number}"} for number in range(300)]))
    for flags in ((), ("--create-only",)):
        done = program.run("register", "-f", "many.json", "-t", "127.0.0.1:1", *flags)
        assert done.code == 4
        assert "cannot reach the registry at 127.0.0.1:1: connection refused; is it running?" in done.err
        assert done.err.splitlines()[-1].endswith("more services were not attempted")
        assert Path(program.directory / "many.json").exists()


def test_bad_file_in_a_directory_does_not_stop_the_others(program: Program) -> None:
    write_file(program, "agents/1.yaml", yaml.safe_dump(ONE))
    write_file(program, "agents/2.yaml", "name: [")
    write_file(program, "agents/3.json", b"\xff")
    write_file(program, "agents/4.json", json.dumps(TWO))
    done = program.run("register", "-f", "no.yaml", "-f", "agents")
    assert done.code == 1
    assert registered_names(program) == ["a", "b"]
    assert done.out.count(" registered, revision ") == 2
    assert [line.partition(": ")[2][:26] for line in done.err.splitlines()] == [
        "cannot read no.yaml: No su",
        "agents/2.yaml: invalid YAM",
        "agents/3.json: invalid UTF",
    ]
    assert program.run("register", "-f", "agents", "--dry-run").code == 2
