"""The image side is four wings, and each knows those before it only."""

import ast
from pathlib import Path

import pytest

import hf_amp.vision

ROOT = Path(hf_amp.vision.__file__).parent
WINGS = ("data", "augment", "train", "report")  # in the order of the arrows: each may import from those before it


def imported(path):
    """The modules of the package that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in names if name and name.startswith("hf_amp")}


def files(*places):
    found = [path for place in places for path in (ROOT / place).rglob("*.py")]
    assert found
    return found


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_from_those_before_it_only(wing):
    later = WINGS[WINGS.index(wing) + 1 :]
    for path in files(wing):
        for name in imported(path):
            assert name.removeprefix("hf_amp.vision.").partition(".")[0] not in later, f"{path} imports {name}"
            assert not name.startswith("hf_amp.vision.") or name.split(".")[2] in WINGS, f"{path} imports {name}"


def test_data_and_augmentation_know_no_training():
    for path in files("data", "augment"):
        outside = {name for name in imported(path) if not name.startswith("hf_amp.vision")}
        assert all(name.startswith("hf_amp.files") for name in outside), (path, outside)


def test_only_random_perturbation_and_the_probe_of_flatness_touch_a_perturbation():
    touching = {path.name for path in files(*WINGS) if "hf_amp.perturbation" in imported(path)}
    assert touching <= {"trainer.py", "probe.py"}


@pytest.mark.parametrize("path", files("."), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_functions_fit_a_reader(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            docs = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
            assert node.end_lineno - node.lineno + 1 - docs <= 40, f"{path}: {node.name}"


@pytest.mark.parametrize("folder", [ROOT / wing for wing in WINGS], ids=WINGS)
def test_no_more_than_nine_files_lie_side_by_side(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 9
