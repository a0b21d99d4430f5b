"""What Windows or macOS lack is used only where it was asked for first. (They themselves are at hand in CI alone.)"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "regard"
LACKING = {
    "os": "fork forkpty getuid geteuid getgid getpgid killpg setsid sched_getaffinity sysconf mkfifo statvfs "
    "O_NONBLOCK getloadavg uname nice wait4 register_at_fork",
    "signal": "SIGKILL SIGUSR1 SIGUSR2 SIGHUP SIGALRM SIGCHLD SIGQUIT alarm pause sigwait setitimer pthread_sigmask",
}
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix"}


def faults(source: str) -> list[str]:
    """Uses of what is lacking, outside of a condition that asks for it, and texts in the platform's own encoding."""
    found: list[str] = []

    def visit(node: ast.AST, asked: frozenset[str]) -> None:
        if isinstance(node, ast.If | ast.IfExp):
            calls = [one for one in ast.walk(node.test) if isinstance(one, ast.Call) and len(one.args) == 2]
            asked |= {name.value for one in calls for name in one.args[1:] if isinstance(name, ast.Constant)}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            lacking = set(LACKING.get(node.value.id, "").split()) - asked
            found.extend([f"{node.value.id}.{node.attr}"] if node.attr in lacking else [])
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found.extend(name for name in names if name in MODULES)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "write_text":
            found.extend(["write_text"] if "encoding" not in {one.arg for one in node.keywords} else [])
        for child in ast.iter_child_nodes(node):
            visit(child, asked)

    visit(ast.parse(source), frozenset())
    return found


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_used_that_a_platform_lacks(file: Path) -> None:
    assert faults(file.read_text(encoding="utf-8")) == []


def test_the_rule_finds_what_it_is_for() -> None:
    assert faults("import fcntl\nos.killpg(1, signal.SIGKILL)\npath.write_text('a')") == [
        "fcntl", "os.killpg", "signal.SIGKILL", "write_text",
    ]  # fmt: skip
    assert faults("os.sysconf('x') if hasattr(os, 'sysconf') else 1\npath.write_text('a', encoding='utf-8')") == []
