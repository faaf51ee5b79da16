"""Methods are found by reading files, and imported only when they are asked for."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from bench.conformance import suite
from bench.contract import registry
from bench.contract.registry import list_methods, load, load_method, methods_in
from bench.errors import BenchError

METHOD = '''
from bench import Document, Method


class Mine(Method):
    """Does nothing at all. At no cost.

    More."""

    name = "mine"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass
'''


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_method_of_the_project_loads() -> None:
    listed = list_methods()
    assert [info.name for info in listed] == sorted(info.name for info in listed)
    for info in listed:
        found = load(info)
        assert (found.name, found.paper) == (info.name, info.paper)
        assert (found.sees_evidence or found.control) == info.control


def test_listing_imports_neither_torch_nor_methods() -> None:
    code = """
import sys
from bench.contract.registry import list_methods
assert list_methods()
sys.exit(any(name.split(".")[0] in ("torch", "methods", "reports", "transformers") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=registry.ROOT).returncode == 0


def test_a_plugin_is_described_by_its_source_and_loads(tmp_path: Path) -> None:
    path = write(tmp_path, METHOD)
    (info,) = methods_in(path)
    assert (info.name, info.paper, info.control, info.broken) == ("mine", "none", False, None)
    assert info.summary == "Does nothing at all. At no cost." and info.source.endswith("mine.py")
    before = list(sys.path)
    found = load_method("mine", [path])
    assert found.__name__ == "Mine" and found is load_method("mine", [str(path)])
    assert sys.path == before


def test_plugins_of_one_file_name_in_two_folders_do_not_meet(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a", METHOD.replace('"mine"', '"first"')),
        write(tmp_path / "b", METHOD.replace('"mine"', '"second"')),
    ]
    assert load_method("first", files).name == "first"
    assert load_method("second", files).name == "second"


def test_a_plugin_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "STATED = 'none'\n", "beside.py")
    path = write(tmp_path, METHOD.replace("\n\n\nclass", "\nfrom .beside import STATED as _stated\n\n\nclass"))
    assert load_method("mine", [path]).name == "mine"
    (info,) = methods_in(write(tmp_path, "import beside\n" + METHOD, "absolute.py"))
    assert info.broken == "it imports beside (line 1), which is the file beside it: write from . import beside."


def test_a_file_of_the_project_given_as_a_plugin_is_the_same_method() -> None:
    path = registry.ROOT / "methods" / "uniform.py"
    assert methods_in(path)[0].module == "methods.uniform"
    assert list_methods([path]) == list_methods()


def test_two_methods_of_one_name_are_an_error_that_names_both_files(tmp_path: Path) -> None:
    files = [write(tmp_path, METHOD, "one.py"), write(tmp_path, METHOD, "two.py")]
    with pytest.raises(BenchError, match=r"called mine: one in .*one\.py, one in .*two\.py"):
        list_methods(files)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_package\n" + METHOD, "imports no_such_package .line 1., which is not installed"),
        (METHOD + "    def = 3\n", r"mine\.py, line 15: "),
    ],
)
def test_a_broken_method_is_listed_with_the_reason_and_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BenchError, match=reason):
        load_method("mine", [path])
    assert [info.name for info in list_methods([path]) if info.broken] == ["mine"]


@pytest.mark.parametrize(
    ("change", "to", "complaint"),
    [
        ('    paper = "none"\n', "", 'states no paper: add paper = "citation key"'),
        ('"""Does nothing at all. At no cost.\n\n    More."""', "", "has no docstring"),
        ("(Method)", "", "Mine is not a subclass of bench.Method"),
        ("def observe", "def watch", "does not implement observe"),
        (
            "    def observe",
            "    class Config:\n        rate = 1\n\n    def observe",
            "no subclass of bench.MethodConfig",
        ),
        ('"mine"', '"Mine!"', "use lower-case letters"),
        ("class Mine", "1 / 0\nclass Mine", "ZeroDivisionError: division by zero"),
        ("import Document", "import Paper, Document", "ImportError"),
        *(
            ('"none"\n', f'"none"\n    learns_from = {value}\n', "methods learn from train or qa_train only")
            for value in (
                "'test'",
                "'validation'",
                "'qa_validation'",
                "None",
                "['train']",
                "property(lambda self: 'train')",
            )
        ),
        *(
            ('"none"\n', f'"none"\n    sees_evidence = {value}\n', "a sees_evidence that is not a constant")
            for value in ("property(lambda self: True)", "None", "1", "'yes'", "classmethod(lambda cls: True)")
        ),
    ],
)
def test_a_class_that_does_not_keep_the_contract_is_refused(
    tmp_path: Path, change: str, to: str, complaint: str
) -> None:
    assert change in METHOD
    (info,) = methods_in(write(tmp_path, METHOD.replace(change, to)))
    with pytest.raises(BenchError, match=complaint):
        load(info)


@pytest.mark.parametrize(
    ("case", "complaint"),
    [("k2_learns_from_test", "learns from 'test'"), ("k6_sees_evidence_property", "is not a constant")],
)
def test_the_cases_are_refused_by_runs_and_by_the_check(case: str, complaint: str) -> None:
    file = registry.ROOT / "tests" / "cases" / "plugins" / f"{case}.py"
    with pytest.raises(BenchError, match=complaint):
        load_method(case, [file])
    (info,) = methods_in(file)
    (verdict,) = suite.check_method(info)
    assert not verdict.passed and verdict.check == "declares_itself" and complaint in verdict.message


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(BenchError, match=r"no method called unifrom\. Did you mean uniform"):
        load_method("unifrom")


def test_a_file_without_a_method_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="defines no method"):
        methods_in(write(tmp_path, "x = 1\n"))
    with pytest.raises(BenchError, match="is not a file"):
        methods_in(tmp_path / "nothing.py")


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """An installed package ``their_methods`` whose metadata offers one entry point."""
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path, "raise RuntimeError('imported to be listed')\n", "their_methods/__init__.py")
    write(tmp_path, METHOD.replace('"mine"', '"theirs"'), "their_methods/mine.py")

    def offer(value: str) -> None:
        entry = importlib.metadata.EntryPoint("theirs", value, registry.GROUP)
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group: [entry] if group == registry.GROUP else []
        )

    return offer


def test_an_entry_point_is_listed_without_importing_its_package(offer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    offer("their_methods.mine:Mine")
    (info,) = (info for info in list_methods() if info.name == "theirs")
    assert info.broken is None and info.file == tmp_path / "their_methods" / "mine.py"
    with pytest.raises(BenchError, match="imported to be listed"):
        load_method("theirs")
    write(tmp_path, "", "their_methods/__init__.py")
    assert load_method("theirs").__module__ == "their_methods.mine"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("their_methods.gone:Mine", "names a module that does not exist"),
        ("nowhere_at_all:Mine", "names a module that does not exist"),
        ("their_methods.mine:Yours", "has no class Yours"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_listed_as_broken(offer, value: str, reason: str) -> None:  # type: ignore[no-untyped-def]
    offer(value)
    (info,) = (info for info in list_methods() if info.name == "theirs")
    assert info.broken is not None and reason in info.broken
