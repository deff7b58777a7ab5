"""The documentation is checked against the code: commands exist and compose, quick ones run, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import localgp
from localgp.__main__ import COMMANDS
from localgp.corpora.audio import write_audio

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HYDRA = ("prepare", "train", "evaluate", "flops", "bench", "analyze", "report")


def fences(page: Path, language: str) -> list[tuple[str, str]]:
    """Content and the words after the language, of a page's code blocks. A block marked ``run`` is executed."""
    text = page.read_text(encoding="utf-8")
    return [(body, words) for kind, words, body in FENCE.findall(text) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """Every localgp command of a page, as words: the entry point, then its arguments."""
    found = []
    for body, _ in fences(page, "bash"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "-m" in words and words.index("-m") + 1 < len(words):
                module, *arguments = words[words.index("-m") + 1 :]
                if module.startswith("localgp."):
                    found.append([module.removeprefix("localgp."), *arguments])
    return found


ALL = [(page, command) for page in PAGES for command in commands(page)]


def test_there_are_commands_to_check():
    assert len(ALL) > 25
    assert {command[0] for _, command in ALL} >= {*HYDRA, "transcribe", "pack", "speechprune"}


@pytest.mark.parametrize(
    ("page", "command"), ALL, ids=[f"{p.relative_to(ROOT)}:{' '.join(c)[:60]}" for p, c in ALL]
)
def test_commands_exist_and_their_options_too(page, command):
    name, *arguments = command
    if name == "transcribe":
        from localgp.transcribe import build_parser

        build_parser().parse_args(arguments)
    elif name == "pack":
        from localgp.pack import build_parser, build_push_parser, run_directory

        if arguments[0] == "push":
            build_push_parser().parse_args(arguments[1:])
        else:
            run_directory(build_parser().parse_args(arguments).run)
    else:
        from localgp.command_line import check_line, parsed

        options, _ = parsed(arguments)
        options.config_name = name if name == "speechprune" else "config"
        # What needs a package of its own, and runs that are not there, are left out.
        check_line([item for item in options.overrides if not item.startswith(("hydra", "exp"))], options)


QUICK = [(body, page) for page in PAGES for body, words in fences(page, "bash") if "run" in words.split()]
CODE = [(body, page) for page in PAGES for body, words in fences(page, "python") if "run" in words.split()]
API = sorted((ROOT / "docs" / "api").glob("*.md"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty directory with a recording in it."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(size=40_000).astype(np.float32)
    write_audio(tmp_path / "speech.m4a", 0.1 * noise, 16_000)
    return tmp_path


def exit_status(module: str) -> object:
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.parametrize(("body", "page"), QUICK, ids=[p.name for _, p in QUICK])
def test_quick_commands_run(body, page, place, monkeypatch, capsys):
    for line in body.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        module, *arguments = words[words.index("-m") + 1 :]
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        status = exit_status(module)
        printed = capsys.readouterr()
        assert not status, printed.err
        assert printed.out.strip()


@pytest.mark.parametrize(("body", "page"), CODE, ids=[p.name for _, p in CODE])
def test_quick_python_runs(body, page, place):
    exec(compile(body, str(page), "exec"), {})


@pytest.mark.parametrize("page", API, ids=[page.name for page in API])
def test_api_pages_say_something_and_their_examples_run(page, place):
    """Each page's code is one program, in the order of the page; and a page is more than its directives."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    words = " ".join(line for line in text.splitlines() if not line.startswith((":::", "#"))).split()
    assert len(words) > 60
    program = "\n".join(body for body, _ in fences(page, "python"))
    assert program
    exec(compile(program, str(page), "exec"), {})


def test_the_readme_has_blocks_that_are_run():
    assert {page.name for _, page in QUICK} >= {"README.md"}
    assert {page.name for _, page in CODE} >= {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "mailto:")):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """What GitHub and MkDocs call the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def navigation() -> list[str]:
    def pages(entry):
        for item in entry:
            for value in item.values():
                yield from pages(value) if isinstance(value, list) else [value]

    return list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))


def test_every_page_is_in_the_navigation():
    on_disk = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert set(navigation()) == on_disk


def test_every_entry_point_has_a_page():
    programs = {
        path.stem
        for path in (ROOT / "localgp").glob("*.py")
        if path.stem != "__main__" and '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    programs |= {path.parent.name for path in (ROOT / "localgp").glob("*/__main__.py")} - {"speechprune"}
    assert programs >= {*HYDRA, "transcribe", "pack"}
    assert {f"commands/{name}.md" for name in programs} <= set(navigation())
    assert set(COMMANDS) == {*programs, "speechprune"}  # what `python -m localgp` lists


def test_api_pages_name_what_exists():
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            module, found = name, None
            while module:
                try:
                    found = importlib.import_module(module)
                    break
                except ModuleNotFoundError:
                    module = module.rpartition(".")[0]
            for attribute in filter(None, name.removeprefix(module).split(".")):
                found = getattr(found, attribute)
            assert found.__doc__, name


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    assert (tmp_path / "api" / "inference" / "index.html").exists()


def test_docstrings_begin_with_what_a_thing_is():
    """A reader who skims, and a page of the API, show the first line alone."""
    root, sections = (
        Path(localgp.__file__).parent,
        ("Args:", "Attributes:", "Raises:", "Returns:", "Examples:"),
    )
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bare = [
        f"{file.relative_to(root)}:{getattr(node, 'lineno', 1)}"
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, documented) and (ast.get_docstring(node) or "").startswith(sections)
    ]
    assert not bare
