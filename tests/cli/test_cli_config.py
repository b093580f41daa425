"""Settings: where they come from, what is refused, what is written."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from command_line import Loci
from hypothesis import given
from hypothesis import strategies as st

from loci import config
from loci.errors import ConfigError


def here(tmp_path: Path, **variables: str) -> dict[str, str]:
    return {"LOCI_CONFIG": str(tmp_path / "config.toml"), **variables}


def test_defaults_need_no_file(tmp_path: Path) -> None:
    found = config.load(here(tmp_path))
    assert found.model == "smollm2"
    assert found.models_dir.name == "models"
    assert set(found.sources.values()) == {"default"}


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('dram = "4GiB"\ncontext = 4096\nuser = "ada"\n')
    found = config.load(here(tmp_path, LOCI_DRAM="1GiB"))
    assert (found.dram, found.context, found.user) == (2**30, 4096, "ada")
    assert (found.sources["dram"], found.sources["context"]) == ("environment", "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modles_dir = "x"', "unknown key 'modles_dir'; did you mean 'models_dir'"),
        ('dram = "lots"', "dram cannot be read; got 'lots'"),
        ("dram = -1", "cannot be negative"),
        ("dram = 1.5", "dram cannot be read"),
        ('timezone = "Mars/Base"', "a zone such as Europe/Berlin"),
        ('user = ""', "text that is not empty"),
        ("models_dir = 3", "models_dir cannot be read"),
        ('debug = "perhaps"', "true or false"),
        ("[dram]\nx = 1", "dram cannot be read"),
        ("this is not toml", "is not TOML"),
    ],
)
def test_a_bad_file_is_refused_in_words(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(here(tmp_path))
    assert message in str(caught.value)


def test_an_unknown_variable_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"LOCI_MODLES(.|\n)*did you mean LOCI_MODELS"):
        config.load(here(tmp_path, LOCI_MODLES="/x"))
    with pytest.raises(ConfigError, match="LOCI_DRAM cannot be read"):
        config.load(here(tmp_path, LOCI_DRAM="lots"))


def test_writing_keeps_every_other_line(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "config.toml"
    config.store("dram", "4GiB", file)
    file.write_text("# mine\n" + file.read_text())
    config.store("user", 'a "quoted" name', file)
    config.store("dram", "2GiB", file)
    assert file.read_text() == '# mine\ndram = "2GiB"\nuser = "a \\"quoted\\" name"\n'
    found = config.load({"LOCI_CONFIG": str(file)})
    assert (found.dram, found.user) == (2**31, 'a "quoted" name')
    config.store("dram", None, file)
    config.store("dram", None, file)
    assert "dram" not in file.read_text()
    assert not list(file.parent.glob("*.new"))


@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1))
def test_any_text_survives_the_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("c") / "config.toml"
    config.store("user", text, file)
    assert config.load({"LOCI_CONFIG": str(file)}).user == text


def test_a_bad_value_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for name, text in (("dram", "lots"), ("drum", "1GiB")):
        with pytest.raises(ConfigError):
            config.store(name, text, file)
    assert not file.exists()


def test_show_says_where_each_value_comes_from(loci: Loci) -> None:
    found = loci("config", "show", "--json").json
    assert found["user"] == {
        "value": "ada",
        "source": "environment",
        "variable": "LOCI_USER",
        "help": "whose memory, when nobody is named",
    }
    assert "LOCI_USER" in loci("config", "show").out


def test_set_get_unset(loci: Loci, home: Path) -> None:
    assert loci("config", "set", "context", "8k").code == 0
    assert loci("config", "get", "context").out == "8192\n"
    assert loci("config", "get", "context", "--json").json == {"context": 8192}
    assert loci("config", "path").out == f"{home / 'config.toml'}\n"
    assert loci("config", "unset", "context").code == 0
    assert loci("config", "get", "context").out == "-\n"
    assert loci("config", "set", "context", "none").code == 2


def test_a_broken_file_does_not_hide_help(loci: Loci, home: Path) -> None:
    (home / "config.toml").write_text("???")
    assert loci("--version").code == 0
    assert loci("config", "path").code == 0
    done = loci("doctor")
    assert done.code == 2
    assert "is not TOML" in done.err


def test_a_setting_that_cannot_be_written_leaves_the_old_one(loci: Loci, home: Path) -> None:
    assert loci("config", "set", "user", "ada").code == 0
    file = home / "config.toml"
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
        done = loci("config", "set", "model", "some-other-model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (done.code, done.out) == (1, "")
    assert "StorageError: cannot write" in done.err and "LOCI_CONFIG" in done.err
    assert file.read_bytes() == before
    assert not (home / "config.toml.new").exists()


def test_a_setting_that_is_not_utf8_is_refused(loci: Loci, home: Path) -> None:
    done = loci("config", "set", "user", "caf\udce9")
    assert done.code == 2 and "user is not UTF-8 at character 3" in done.err
    assert not (home / "config.toml").exists()
