"""What docs/theory.md says is in the code and held by a test; and every page's links lead somewhere."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
THEORY = (REPOSITORY / "docs" / "theory.md").read_text()
LINES = re.findall(r"\[`[\w.]+`\]\(\.\./([\w/.]+)\) `([^`]+)`", THEORY)
TESTS = re.findall(r"`(test_\w+)`", THEORY)
PAGES = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("checkpoints/*.md")]
LINKS = {
    (str(page.relative_to(REPOSITORY)), link)
    for page in PAGES
    for link in re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    if not link.startswith("http")
}


def test_there_is_something_to_check():
    assert len(LINES) > 20
    assert len(TESTS) > 20


@pytest.mark.parametrize(("file", "line"), LINES)
def test_every_line_is_in_its_file(file, line):
    assert line in (REPOSITORY / file).read_text()


@pytest.mark.parametrize("name", sorted(set(TESTS)))
def test_every_test_is_there(name):
    assert any(f"def {name}(" in file.read_text() for file in (REPOSITORY / "tests").glob("test_*.py"))


@pytest.mark.parametrize(("page", "link"), sorted(LINKS))
def test_every_link_leads_somewhere(page, link):
    assert ((REPOSITORY / page).parent / link).exists()


def test_every_experiment_that_is_told_of_is_there():
    told = re.findall(r"\| `(\w+)[^`]*` \| ", (REPOSITORY / "docs" / "reliability.md").read_text())
    names = ("reliability", "damage", "configurations", "stops", "watched", "writers")
    files = [REPOSITORY / "tests" / f"{name}.py" for name in names]
    defined = re.findall(r"^def (\w+)\(folder: Path, count: int", "".join(map(Path.read_text, files)), re.MULTILINE)
    assert len(told) > 10
    assert set(told) == set(defined)
