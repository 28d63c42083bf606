"""The size budget: lines of files and functions. `python -m tests.size_budget` names what is over.

Files have at most 300 lines, those of tests 400; functions outside tests at most 50, of which a
signature that is a table of a command's options is not counted.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

CODE = ("cli", "tools", "server", "training", "pipeline", "model", "schedulers", "cache")
TESTS = "tests"
MAX_CODE_LINES, MAX_TEST_LINES, MAX_FUNCTION_LINES = 300, 400, 50


def find_excesses(root: Path) -> Iterator[str]:
    """Yield one line for each file and each function that is too long."""
    for folder in (*CODE, TESTS):
        for path in sorted((root / folder).rglob("*.py")):
            source, name = path.read_text(encoding="utf-8"), path.relative_to(root)
            most = MAX_TEST_LINES if folder == TESTS else MAX_CODE_LINES
            if (num_lines := len(source.splitlines())) > most:
                yield f"{name}: {num_lines} lines; split it, {most} is the limit"
            if folder != TESTS:
                yield from (f"{name}:{excess}" for excess in find_long_functions(source))


def find_long_functions(source: str) -> Iterator[str]:
    """Yield line, name and length of each function that is too long."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 2
            if num_lines > MAX_FUNCTION_LINES:
                yield (
                    f"{node.lineno}: {node.name} has {num_lines} lines; split it, "
                    f"{MAX_FUNCTION_LINES} is the limit"
                )


if __name__ == "__main__":
    sys.exit("\n".join(find_excesses(Path(__file__).parents[1])) or None)
