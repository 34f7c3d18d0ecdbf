"""``[agent.permissions]``: what can be written, what is refused, and the ceiling that comes of it."""

import textwrap
import tomllib
from pathlib import Path

import pytest

from proplet.agent.config import ConfigError, read
from proplet.agent.config_schema import DirectoryTable, NodeSettings
from proplet.agent.config_show import show
from proplet.agent.grants import GrantError, grant
from proplet.agent.parts import ceiling_of
from proplet.agent.wire import DirectoryGrant, Permissions


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(home: Path, text: str = "", **environ: str) -> NodeSettings:
    file = home / "proplet.toml"
    file.write_text("[broker]\n" + textwrap.dedent(text))
    return read(file, {"HOME": str(home), **environ}).settings


def problems(home: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(home, text)
    return str(caught.value)


def refusal(given: NodeSettings, asked: Permissions) -> str:
    with pytest.raises(GrantError) as caught:
        grant(asked, ceiling_of(given))
    return str(caught.value)


def ask(host: Path, *, read_only: bool = True) -> Permissions:
    return Permissions(dirs=(DirectoryGrant(str(host), "/data", read_only),))


TWO = """
    [[agent.permissions.dirs]]
    host = "/srv/data"

    [[agent.permissions.dirs]]
    host = "shared"
    read_only = false
    """


def test_by_default_tasks_may_ask_for_nothing(home: Path) -> None:
    given = settings(home)
    said = refusal(given, ask(home))
    assert f"write in {home / 'proplet.toml'}" in said
    assert "agent.permissions.http" in refusal(given, Permissions(http=("*",)))


def test_each_directory_is_a_table_and_a_relative_one_is_meant_from_the_file(home: Path) -> None:
    given = settings(home, TWO)
    shared = DirectoryTable(home / "shared", read_only=False)
    assert given.agent.permissions.dirs == (DirectoryTable(Path("/srv/data")), shared)
    assert [d.where for d in ceiling_of(given).dirs] == [f"{home / 'proplet.toml'}:{line}" for line in (4, 7)]


def test_what_is_shown_gives_the_same_settings(home: Path) -> None:
    given = settings(home, TWO + '\n[agent.permissions]\nhttp = ["*"]\nsecrets = ["db/*"]\n')
    shown = "\n".join(show(given, given.source.origins))
    tomllib.loads(shown)
    (home / "again.toml").write_text(shown)
    assert read(home / "again.toml", {"HOME": str(home)}).settings == given


def test_a_variable_takes_a_list_of_inline_tables(home: Path) -> None:
    variable = '[{ host = "/srv/x", read_only = false }]'
    given = settings(home, TWO, PROPLET_AGENT_PERMISSIONS_DIRS=variable)
    assert given.agent.permissions.dirs == (DirectoryTable(Path("/srv/x"), read_only=False),)


def test_the_references_directories_are_given_to_every_task_at_the_same_path_for_writing(home: Path) -> None:
    (home / "a").mkdir()
    (home / "b").mkdir()
    given = settings(home, PROPLET_DIRS=f"{home / 'a'}:{home / 'b'}")
    expected = tuple(DirectoryGrant(str(home / n), str(home / n), read_only=False) for n in "ab")
    assert grant(Permissions(), ceiling_of(given)).dirs == expected
    assert grant(ask(home / "a"), ceiling_of(given)).dirs == (*ask(home / "a").dirs, *expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[agent.permissions.dirs]]\nread_only = true", "proplet.toml:3: agent.permissions.dirs[0]: needs a host"),
        ('[[agent.permissions.dirs]]\nhost = "/srv/../etc"', "agent.permissions.dirs[0]: needs a host"),
        ('[[agent.permissions.dirs]]\nhost = "/srv"\nhosts = 1', "proplet.toml:4: unknown key `hosts` in"),
        ('[[agent.permissions.dirs]]\nhost = "/srv"\nguest = "/x"', "a task says by itself"),
        ('[agent.permissions]\ndirs = ["/srv"]', "expected a list of tables"),
        ('[agent.permissions]\nhttp = ["api.example.com"]', "cannot hold a guest to hosts"),
        ('[agent.permissions]\ntcp = ["*", "h:1"]', "cannot hold a guest to hosts"),
        ('[agent.permissions]\nsecrets = ["db"]', '"db" is none: write "name/key"'),
    ],
)
def test_a_mistake_is_told_with_its_line(home: Path, text: str, message: str) -> None:
    assert message in problems(home, text)


def test_an_entry_for_the_nodes_own_directories_is_a_mistake(home: Path) -> None:
    text = f'[node]\nstate_dir = "{home}/state"\n[[agent.permissions.dirs]]\nhost = "{home}/state/keys"'
    assert "no task is ever given it" in problems(home, text)


def test_an_entry_below_one_that_tasks_may_write_to_is_a_mistake(home: Path) -> None:
    text = f"""
        [[agent.permissions.dirs]]
        host = "{home}/w"
        read_only = false
        [[agent.permissions.dirs]]
        host = "{home}/w/below"
        """
    assert "they could put a link to anywhere" in problems(home, text)
    assert not settings(home, text.replace("read_only = false", "")).agent.permissions.dirs[1].always


@pytest.mark.parametrize("name", ["state", "conf.d", "keys", ".", ".config/proplet"])
def test_no_ceiling_covers_what_the_node_lives_from(home: Path, name: str) -> None:
    for part in ("state", "conf.d", "keys", ".config/proplet", "credentials"):
        (home / part).mkdir(parents=True)
    (home / "keys/mqtt").write_text("secret")
    text = f"""
        [node]
        state_dir = "{home}/state"
        [mqtt]
        client_key_file = "{home}/keys/mqtt"
        [[agent.permissions.dirs]]
        host = "/"
        read_only = false
        """
    assert "no task is ever given" in refusal(settings(home, text), ask(home / name))
    given = settings(home, text, CREDENTIALS_DIRECTORY=str(home / "credentials"))
    assert "no task is ever given" in refusal(given, ask(home / "credentials"))


def test_secrets_of_tasks_are_in_a_directory_that_no_task_is_given(home: Path) -> None:
    (home / "secrets").mkdir()
    text = """
        agent.secrets_dir = "secrets"
        [agent.permissions]
        secrets = ["db/*"]
        [[agent.permissions.dirs]]
        host = "/"
        """
    (home / "proplet.toml").write_text(textwrap.dedent(text))
    given = read(home / "proplet.toml", {"HOME": str(home), "PROPLET_BROKER": "true"}).settings
    vault = ceiling_of(given).vault
    assert (vault.allowed, vault.directory, vault.file) == (("db/*",), home / "secrets", str(home / "proplet.toml"))
    assert "no task is ever given" in refusal(given, ask(home / "secrets"))
