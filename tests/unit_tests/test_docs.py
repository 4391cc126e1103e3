"""The documents name only what exists: commands, make targets, paths, variables, patch ids, messages, upstream's flags.

They are Markdown; what is checked is what stands in backticks, in code blocks, in links and in tables.
"""

import argparse
import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ascend_patch.commands import compare, contract, doctor, drift, explain, operators, plan, status, trace
from ascend_patch.config import Config
from ascend_patch.features import PATCHES
from ascend_patch.features.instruction import FLAG
from ascend_patch.ops.registry import OPERATORS

ROOT = Path(__file__).resolve().parents[2]
READMES = (ROOT / "README.md", ROOT / "README_zh.md")
WRITTEN = (*READMES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md")
GENERATED = ("drift.md", "torch_npu.md", "planning.md")  # tested with the commands that write them
DOCUMENTS = [path for path in WRITTEN if path.name not in GENERATED]

VARIABLES = {field.metadata["variable"] for field in fields(Config)}
IDS = {patch.id for patch in PATCHES}
COMMANDS = {
    "status": status,
    "explain": explain,
    "drift": drift,
    "operators": operators,
    "doctor": doctor,
    "compare": compare,
    "contract": contract,
    "trace": trace,
    "plan": plan,
}
#: What commands make: not in a fresh clone.
MADE = (".cache/", ".venv/", "data/", "runs/", "loss.png", "summary.json", "patches.json", "train.log")
SUFFIXES = (".py", ".md", ".sh", ".toml", ".txt", ".json", ".png", ".log")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"ascend-patch ([a-z]+)([^`\n]*)")
TARGET = re.compile(r"\bmake ([a-z-]+)\b")
VARIABLE = re.compile(r"\bASCEND_PATCH(?:_[A-Z_]+)?\b")
PLACEHOLDER = "…"

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def blocks(document: Path) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return FENCE.findall(text_of(document))


def spans(document: Path) -> list[str]:
    """What stands in backticks, outside of fenced blocks."""
    return SPAN.findall(FENCE.sub("", text_of(document)))


def tables(document: Path) -> list[list[list[str]]]:
    """The cells of every table, header included, the line of dashes left out."""
    found, rows = [], []
    for line in [*FENCE.sub("", text_of(document)).splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]])
        elif rows:
            found.append([row for row in rows if set("".join(row)) - set("-: ")])
            rows = []
    return found


def section(document: Path, header: str) -> list[list[str]]:
    """The rows of the table whose first column is headed ``header``."""
    return next(table[1:] for table in tables(document) if table[0][0] == header)


@documents
def test_commands_and_their_options_exist(document):
    code = [*spans(document), *(body for _, body in blocks(document))]
    code += [" ".join(SPAN.findall("|".join(row))) for table in tables(document) for row in table[1:]]
    for name, rest in (found for piece in code for found in COMMAND.findall(piece)):
        assert name in COMMANDS, f"ascend-patch {name}"
        parser = argparse.ArgumentParser()
        COMMANDS[name].add_arguments(parser)
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in parser.format_help(), f"ascend-patch {name} {option}"


@documents
def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [*spans(document), *(body for language, body in blocks(document) if language == "bash")]
    named = {target for piece in code for target in TARGET.findall(piece)}
    assert named <= targets


@documents
def test_variables_exist(document):
    assert set(VARIABLE.findall(text_of(document))) <= VARIABLES


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_readmes_list_every_variable_once(readme):
    table = next(table for table in tables(readme) if table[1][0] == "`ASCEND_PATCH`")
    assert [row[0].strip("`") for row in table[1:]] == [field.metadata["variable"] for field in fields(Config)]


@documents
def test_links_lead_somewhere(document):
    for link in LINK.findall(FENCE.sub("", text_of(document))):
        if not link.startswith(("http:", "https:")):
            assert (document.parent / link.partition("#")[0]).exists(), link


@documents
def test_paths_exist(document):
    words = [word for span in spans(document) for word in span.split()]
    words += [word for _, body in blocks(document) for word in body.split() if word.startswith(("examples/", "tools/"))]
    for word in words:
        if not re.fullmatch(r"\.?[\w][\w./-]*", word) or word.startswith(MADE):
            continue
        ours = word.startswith(("ascend_patch/", "docs/", "examples/", "patches/", "tests/", "tools/", ".ci/"))
        if not ours or "VERSION" in word:
            continue
        assert (ROOT / word).exists(), word


@documents
def test_modules_that_are_run_exist(document):
    for module in re.findall(r"-m (ascend_patch[\w.]*|tools[\w.]*)", text_of(document)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@documents
def test_patch_ids_exist(document):
    areas = {name.partition(".")[0] for name in IDS}
    made_up = {"loss.something"}  # the example in adding_a_patch.md
    for span in spans(document):
        is_id = re.fullmatch(r"([a-z]+)\.[a-z0-9_]+", span)
        if is_id and is_id[1] in areas and not span.endswith(SUFFIXES):
            assert span in IDS | made_up, span
    for named in re.findall(r"ASCEND_PATCH_DISABLE=([\w.,]*\w)", text_of(document)):
        assert set(named.split(",")) <= IDS, named


def test_every_operator_is_documented():
    document = ROOT / "docs" / "operators.md"
    named = [[row[0].strip("`") for row in table[1:]] for table in tables(document) if table[0][0] == "operator"]
    assert len(named) == 3
    assert all(names == list(OPERATORS) for names in named)


@pytest.fixture(scope="module")
def upstream_flags() -> set[str]:
    """Every flag of the installed Megatron-LM's own parser, and the one that instruction data has besides."""
    program = (
        "import argparse; from megatron.training.arguments import add_megatron_arguments as add; "
        "print('\\n'.join(add(argparse.ArgumentParser())._option_string_actions))"
    )
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True).stdout
    return {*found.split(), FLAG}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_flags_are_upstreams(readme, upstream_flags):
    table = next(table for table in tables(readme) if table[0][1:] == ["npu", "cuda", "cpu"])
    named = {flag for row in table[1:] for cell in row for flag in re.findall(r"--[a-z0-9-]+", cell)}
    assert len(named) > 20
    assert named <= upstream_flags, named - upstream_flags


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_flags_of_the_example_are_upstreams(readme, upstream_flags):
    example = next(body for _, body in blocks(readme) if "FLAGS=" in body)
    flags = set(re.findall(r"--[a-z0-9-]+", example)) - {"--nproc-per-node"}  # torchrun's
    assert flags <= upstream_flags, flags - upstream_flags


def test_readmes_have_the_same_code():
    english, chinese = READMES
    assert blocks(english) == blocks(chinese)


def test_readmes_have_the_same_tables():
    """The same rows and columns; the same first cells and code, whatever the words between."""
    english, chinese = (tables(readme) for readme in READMES)
    assert len(english) == len(chinese)
    for one, other in zip(english, chinese, strict=True):
        assert [len(row) for row in one] == [len(row) for row in other]
        for row, translated in zip(one[1:], other[1:], strict=True):
            assert "`" in row[0] or row[0] == translated[0]
            for cell, translation in zip(row, translated, strict=True):
                assert sorted(SPAN.findall(cell)) == sorted(SPAN.findall(translation)), row[0]


def test_readmes_have_the_same_sections():
    english, chinese = (re.findall(r"^#+ ", FENCE.sub("", text_of(readme)), re.MULTILINE) for readme in READMES)
    assert english == chinese


def sources() -> str:
    """Every text in the sources, placeholders as ``…``."""
    parts = []
    packages = ("ascend_patch", "ascend_sim", "tasks", "tools")
    modules = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    for path in [*modules, ROOT / "tests" / "conftest.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts.append("".join(str(v.value) if isinstance(v, ast.Constant) else PLACEHOLDER for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts.append(node.value)
    parts += [path.read_text(encoding="utf-8") for path in (ROOT / "ascend_sim" / "csrc").iterdir()]
    for path in [*(ROOT / "examples").rglob("*.sh"), *(ROOT / "tools").rglob("*.sh")]:
        joined = re.sub(r'" ?\\\n\s*"', " ", path.read_text(encoding="utf-8"))
        parts.append(re.sub(r"\$\w+|\$\{[^}]*\}", PLACEHOLDER, joined))
    return "\n".join(parts)


def test_messages_are_those_of_the_code():
    text = sources()
    document = ROOT / "docs" / "troubleshooting.md"
    messages = [row[0] for table in tables(document) if table[0][0] == "message" for row in table[1:]]
    assert len(messages) > 40
    missing = [
        part
        for message in messages
        for span in SPAN.findall(message)
        for part in re.split(f" ?{PLACEHOLDER} ?", span)
        if part.strip() and part.strip() not in text
    ]
    assert not missing
