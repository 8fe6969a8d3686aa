"""pyproject.toml declares what is imported, even where something else brings it; its README holds on a package page."""

import ast
import re
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
# Where a distribution has another name than its module.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "xdist": "pytest-xdist", "yaml": "pyyaml"}
CORE = [*ROOT.glob("hf_amp/*.py"), *ROOT.glob("hf_amp/hub/**/*.py"), *ROOT.glob("hf_amp/models/*.py")]


def declared(*extras):
    """The distributions that an installation with these extras asks for by name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {re.match(r"[\w-]+", line)[0].replace("_", "-") for line in lines}


def imported(paths):
    """The distributions that files import, wherever in them."""
    modules = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.partition(".")[0])
    assert "torch" in modules
    local = {path.stem for place in ("tests", "examples") for path in (ROOT / place).rglob("*")}
    modules -= sys.stdlib_module_names | local | {"hf_amp"}
    return {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in modules}


def test_the_core_needs_no_extra():
    # A card has no figure of the learning curves where matplotlib is missing.
    assert imported(CORE) - declared() == {"matplotlib"}


def test_the_image_side_needs_its_extra_alone():
    assert imported((ROOT / "hf_amp").rglob("*.py")) <= declared("vision")


def test_examples_and_tests_need_the_extras_that_are_named_for_them():
    features = ROOT / "examples" / "by_feature"
    with_libraries = {features / "trl_sft_lora.py", features / "sentence_embeddings.py"}
    with_libraries |= {*(ROOT / "tests" / "integrations").rglob("*.py")}
    others = {*(ROOT / "examples").rglob("*.py"), *(ROOT / "tests").rglob("*.py")} - with_libraries
    assert imported(others) <= declared("vision", "test")
    assert imported(with_libraries) <= declared("vision", "test", "integrations")


def test_a_package_page_has_no_link_into_the_repository():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        assert re.search(rule["pattern"], readme), rule
        readme = re.sub(rule["pattern"], rule["replacement"], readme)
    links = re.findall(r"\]\(([^)]*)\)", readme) + re.findall(r"(?m)^\[[^\]]+\]: (.*)$", readme)
    assert len(links) > 1
    assert all(link.startswith("https://") for link in links), links
    assert "![" not in readme
    assert "][" not in readme
