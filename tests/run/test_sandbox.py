"""Code that is not ours: what it may do, what it may not, and when it is ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.core.agent import Ran
from loci.errors import ParameterError
from loci.run.sandbox import Sandbox, inside


def run(code: str, timeout_s: float = 20, **settings: int) -> Ran:
    return Sandbox(**settings).run({"a.py": code}, ["a.py"], timeout_s)


def test_it_runs_and_gives_back_what_was_printed_and_written() -> None:
    done = run("import sys\nprint(6 * 7, sys.argv)\nopen('out.txt', 'w').write('kept')")
    assert done.is_good and done.output == "42 ['a.py']\n" and done.files == {"out.txt": "kept"}


def test_modules_run_and_see_the_other_files() -> None:
    files = {
        "app/__init__.py": "",
        "app/shop.py": "def price():\n    return 3\n",
        "test_shop.py": "import unittest\nfrom app.shop import price\n\n"
        "class Shop(unittest.TestCase):\n    def test_price(self):\n"
        "        self.assertEqual(price(), 3)\n",
    }
    assert Sandbox().run(files, ["-m", "unittest", "-q"], 20).is_good
    files["app/shop.py"] = "def price():\n    return 4\n"
    failed = Sandbox().run(files, ["-m", "unittest", "-q"], 20)
    assert failed.exit_code == 1 and "4 != 3" in failed.output


def test_code_that_never_ends_is_ended() -> None:
    done = run("while True: pass", 0.5)
    assert done.exit_code is None and done.why == "it ran longer than 0.5 s" and done.seconds < 10


def test_memory_has_a_limit() -> None:
    done = run("x = bytearray(10**9)", memory_bytes=200 * 2**20)
    assert done.exit_code == 1 and "MemoryError" in done.output


def test_a_file_has_a_limit_and_so_has_what_is_printed() -> None:
    big = run("open('x', 'w').write('x' * 10**6)", file_bytes=10**5)
    assert big.exit_code != 0 and len(big.files.get("x", "")) <= 10**5
    noisy = run("print('x' * 10**5)\nprint('end')", output_bytes=1000)
    assert len(noisy.output) == 1000 and noisy.output.endswith("end\n")


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9', timeout=1)",
        "import os\nos.fork()",
        "import os\nos.execv('/bin/true', ['true'])",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true') and exit(1)",
        "import os, signal\nos.kill(os.getppid(), 0)",
        "import os\nos.listdir('/')",
        "import os\nos.listdir(os.path.dirname(os.getcwd()))",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "open('../outside', 'w')",
        "import os\nos.symlink('/etc/passwd', 'link')\nopen('link').read()",
        "import os, sys\nos.unlink(sys.executable)",
        "import os\nos.truncate(os.__file__, 0)",
    ],
)
def test_what_it_may_not_do(code: str) -> None:
    done = run(code)
    assert done.exit_code == 1, done
    if "Error" in done.output:
        assert "PermissionError" in done.output or "not permitted" in done.output, done.output


def test_nothing_of_this_persons_environment_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCI_ENDPOINT_KEY", "secret")
    done = run("import os\nprint(sorted(os.environ), os.getcwd())")
    assert done.is_good and "LOCI" not in done.output and "secret" not in done.output


def test_threads_run() -> None:
    assert run("import threading\nt = threading.Thread(target=print, args=(1,))\nt.start()").is_good


@pytest.mark.parametrize(
    "path",
    ["../x.py", "/etc/x", "a/../../x", "", " ", "a//b", "a\\b", "C:x", "~/x", "a/./b", "a\n"],
)
def test_paths_outside_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError):
        inside(path)
    with pytest.raises(ParameterError):
        Sandbox().run({path: "x"}, ["a.py"], 1)


def test_bad_commands_are_refused() -> None:
    for command in ([], ["-m"]):
        with pytest.raises(ParameterError, match="no command"):
            Sandbox().run({}, command, 1)
    with pytest.raises(ParameterError, match="timeout_s"):
        Sandbox().run({}, ["a.py"], 0)
    with pytest.raises(ParameterError, match="memory_bytes"):
        Sandbox(memory_bytes=1)
    assert run("raise SystemExit(3)").exit_code == 3
    missing = Sandbox().run({}, ["none.py"], 20)
    assert missing.exit_code == 1 and "none.py" in missing.output
