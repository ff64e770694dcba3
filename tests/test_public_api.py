from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import layermanager
from layermanager import __all__ as public_names

SOURCE = Path(layermanager.__file__)


def imports_for_type_checkers() -> dict[str, str]:
    """The module of every name below ``if TYPE_CHECKING``."""
    module = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in module.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.name: str(statement.module)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def modules_after(code: str) -> set[str]:
    """What a new interpreter has loaded after it ran *code*."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(json.loads(ran.stdout))


@pytest.mark.parametrize("name", public_names)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(layermanager, name) is not None


def test_names_are_said_alike_to_programs_and_type_checkers() -> None:
    for_type_checkers = imports_for_type_checkers()
    assert sorted(public_names) == sorted(for_type_checkers)
    assert {
        name: f"layermanager.{module}"
        for module, names in layermanager._MODULES.items()
        for name in names
    } == for_type_checkers


@pytest.mark.parametrize("name", public_names)
def test_a_name_is_its_modules_own(name: str) -> None:
    """Also when the module was imported before: its own name must not be in the way."""
    module = imports_for_type_checkers()[name]
    importlib.import_module(module)
    assert getattr(layermanager, name) is getattr(sys.modules[module], name)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(layermanager, "nothing")  # noqa: B009 - mypy would refuse the attribute


def test_the_errors_are_all_public() -> None:
    from layermanager import errors  # noqa: PLC0415 - named like what is tested

    defined = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.LayerManagerError)
    }
    assert defined <= set(public_names)


def test_importing_the_package_loads_next_to_nothing() -> None:
    loaded = modules_after("import layermanager") - modules_after("")
    assert {name for name in loaded if name.startswith("layermanager.")} == set()
    assert loaded.isdisjoint({"sqlite3", "urllib3", "ssl", "subprocess", "click", "ctypes"})


def test_making_a_manager_loads_no_http_client(tmp_path: Path) -> None:
    loaded = modules_after(
        "from layermanager import Config, LayerManager\n"
        f"LayerManager(Config({str(tmp_path)!r})).close()"
    )
    assert loaded.isdisjoint({"urllib3", "ssl", "click"})


def test_the_version_is_a_version() -> None:
    assert [part.isdigit() for part in layermanager.__version__.split(".")] == [True] * 3
