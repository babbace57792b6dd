"""Options of the suites here.

`--tiny` shrinks everything, which tests the suites: figures then say nothing.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tiny", action="store_true", help="smallest shapes, to test the suites")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise by what a module's function `parameters(tiny)` says: name -> (values, ids)."""
    describe = getattr(metafunc.module, "parameters", None)
    if describe is None:
        return
    for name, (values, ids) in describe(metafunc.config.getoption("--tiny")).items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=ids)


@pytest.fixture(scope="session")
def tiny(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--tiny"))
