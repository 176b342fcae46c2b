"""Measure the structure of the package: `python -m benchmarks.house [REPOSITORY]`.

A room is a folder or a module at the top of `ncsn/`; names that begin with `__` and py.typed do
not count. An arrow is an import statement from one room to another. The floor of a room is one
above the highest room that it imports. The subject is the theory: noise, score, objectives,
samplers and networks (with guidance, densities and toys). A guard is a line of a raise, of an if
around one, or of `expect`. Words are counted in docstrings.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["House"]

THEORY = {"noise", "score", "objectives", "samplers", "networks"}
SUBJECT = THEORY | {"densities", "toys", "guidance", "likelihood", "streams", "foreign"}


class House:
    """Measurements of a repository.

    Args:
        repository: the folder that contains `ncsn/`.
    """

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.package = repository / "ncsn"
        self.trees = {
            file: ast.parse(file.read_text("utf-8")) for file in sorted(self.package.rglob("*.py"))
        }

    def room(self, file: Path) -> str:
        """Return the room of a file."""
        return file.relative_to(self.package).parts[0].removesuffix(".py")

    @property
    def rooms(self) -> set[str]:
        """Return the entries at the top of the package."""
        return {room for room in map(self.room, self.trees) if not room.startswith("__")}

    def arrows(self) -> Iterator[tuple[str, str]]:
        """Yield (from, to) for each import of another room."""
        for file, tree in self.trees.items():
            for node in ast.walk(tree):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    package, _, rest = name.partition(".")
                    to = rest.partition(".")[0]
                    if (
                        package == "ncsn"
                        and to in self.rooms
                        and self.room(file) in self.rooms - {to}
                    ):
                        yield self.room(file), to

    def floors(self) -> dict[str, int]:
        """Return the floor of each room, from 1.

        Raises:
            ValueError: if the imports of rooms form a cycle.
        """
        below: dict[str, set[str]] = {room: set() for room in self.rooms}
        for room, to in self.arrows():
            below[room].add(to)

        @cache
        def floor(room: str, path: tuple[str, ...] = ()) -> int:
            if room in path:
                raise ValueError(f"a cycle: {' -> '.join([*path, room])}")
            return 1 + max((floor(to, (*path, room)) for to in sorted(below[room])), default=0)

        return {room: floor(room) for room in sorted(self.rooms)}

    def lines(self, rooms: set[str] | None = None) -> int:
        """Return the number of lines in the package, or in some rooms."""
        files = [file for file in self.trees if rooms is None or self.room(file) in rooms]
        return sum(len(file.read_text("utf-8").splitlines()) for file in files)

    def guards(self) -> int:
        """Return the number of lines in the theory that only check."""
        found = set()
        for file, tree in self.trees.items():
            if self.room(file) in SUBJECT:
                for node in ast.walk(tree):
                    if is_guard(node):
                        lines = range(node.lineno, node.end_lineno + 1)  # type: ignore[attr-defined]
                        found |= {(file, line) for line in lines}
        return len(found)

    def docstrings(self) -> list[str]:
        """Return the docstrings of the package, including those of attributes."""
        bodies = [
            node.body
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        texts = [part.value for body in bodies for part in body if isinstance(part, ast.Expr)]
        constants = [text.value for text in texts if isinstance(text, ast.Constant)]
        return [value for value in constants if isinstance(value, str)]

    def rows(self) -> dict[str, str]:
        """Return the measurements by name."""
        words = re.findall(r"[a-z']+", " ".join(self.docstrings()).lower())
        rates = {word: 1000 * words.count(word) / len(words) for word in ("if", "where")}
        asking = [text for text in self.docstrings() if re.match(r"\s*(What|How|Whether)\b", text)]
        try:
            floors = str(max(self.floors().values()))
        except ValueError as error:
            floors = str(error)
        tests = list((self.repository / "tests").rglob("*.py"))
        tests_lines = sum(len(path.read_text("utf-8").splitlines()) for path in tests)
        readme = (self.repository / "README.md").read_text("utf-8").splitlines()
        return {
            "entries at the top of ncsn/": str(len(self.rooms)),
            "floors of imports": floors,
            "arrows between rooms (import statements)": str(len(list(self.arrows()))),
            "arrows between rooms (pairs of rooms)": str(len(set(self.arrows()))),
            "share of lines that is the subject": f"{self.lines(SUBJECT) / self.lines():.0%}",
            "guards in the theory's lines": f"{self.guards() / self.lines(SUBJECT):.1%}",
            "lines of the package": f"{self.lines():,}",
            "lines of the tests": f"{tests_lines:,}",
            "lines of the README": str(len(readme)),
            "if / where per 1,000 words": f"{rates['if']:.1f} / {rates['where']:.1f}",
            "docstrings that begin with What, How or Whether": str(len(asking)),
        }


def is_guard(node: ast.AST) -> bool:
    """Return True for a raise, an if that contains only raises, or a call of `expect`."""
    if isinstance(node, ast.If):
        return not node.orelse and all(isinstance(part, ast.Raise) for part in node.body)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return isinstance(node.value.func, ast.Name) and node.value.func.id == "expect"
    return isinstance(node, ast.Raise)


def main() -> None:
    """Print the table of each repository."""
    folders = [Path(given) for given in sys.argv[1:]] or [Path(__file__).parent.parent]
    rows = [House(folder).rows() for folder in folders]
    table = Table("", *(str(folder.resolve().name) for folder in folders), box=box.MARKDOWN)
    for name in rows[0]:
        table.add_row(name, *(row[name] for row in rows))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
