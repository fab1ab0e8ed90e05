"""The README and the pages name only commands and files that exist."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"hatch run ([a-z0-9-]+)(?::([a-z0-9-]+))?")


@pytest.fixture(scope="module")
def scripts() -> dict[str, set[str]]:
    environments = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]
    return {name: set(env.get("scripts", {})) for name, env in environments.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_a_page_exist(page: Path, scripts: dict[str, set[str]]):
    for first, second in COMMAND.findall(page.read_text()):
        environment, script = (first, second) if second else ("default", first)
        known = scripts.get(environment, set()) | (set() if second else {"python", "pytest"})
        assert script in known, f"{page.name}: hatch run {first}{':' + second if second else ''}"


def test_readme_shows_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "pip install hatch" in text
    assert "hatch run train:mimic" in text
    assert "hatch run test" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
