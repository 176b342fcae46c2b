"""The docstrings of the theory speak the field's English: conditions with "if", verbs first, and the field's words."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ncsn"
ROOMS = ("noise", "score", "objectives", "samplers", "networks", "data", "model", "evaluation", "training", "cli")
FILES = sorted(file for room in ROOMS for file in (PACKAGE / room).rglob("*.py"))
WORDS = r"\b(pictures?|walk(s|ed|ing)?|ladders?|heeds?|mends?|beside|drawings?|network calls|gone on|goes on)\b"


def docstrings(file: Path) -> list[str]:
    bodies = [getattr(node, "body", None) for node in ast.walk(ast.parse(file.read_text()))]
    parts = [part.value for body in bodies if isinstance(body, list) for part in body if isinstance(part, ast.Expr)]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_docstrings_begin_with_a_verb_or_a_noun_and_use_the_words_of_the_field(file):
    for text in docstrings(file):
        assert not re.match(r"\s*(What|How|Whether)\b(?!.*\?)", text), text
        assert not re.search(WORDS, text, re.IGNORECASE), text


def test_conditions_are_stated_with_if():
    words = re.findall(r"[a-z']+", " ".join(text for file in FILES for text in docstrings(file)).lower())
    rates = {word: 1000 * words.count(word) / len(words) for word in ("if", "where")}
    assert rates["if"] > 3
    assert rates["where"] < 3
