"""The file of tenants: keys are shown once and kept as hashes, bad files change nothing, comments stay."""

import logging
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentserve.cli import app
from agentserve.errors import BadInput, NotFound
from agentserve.tenants.book import TenantBook
from agentserve.tenants.file import add_key, read_tenants, revoke_key
from agentserve.tenants.tenant import NOBODY, Tenant


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tenants.toml"


def test_a_key_opens_for_its_tenant_and_the_file_holds_no_part_of_its_secret(path: Path) -> None:
    made, other = add_key(path, "research"), add_key(path, "ops", admin=True)
    book = TenantBook(path)
    assert book.caller(made.text) == Tenant(name="research")
    assert book.caller(other.text) == Tenant(name="ops", admin=True)
    assert made.text.split("_", 2)[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change", [lambda key: key[:-1] + "!", lambda key: key + "x", lambda key: key.upper(), str.strip]
)
def test_no_other_text_opens(path: Path, change: object) -> None:
    made, other = add_key(path, "research"), add_key(path, "research")
    mixed = f"ask_{other.key_id}_{made.text.split('_', 2)[2]}"
    changed = change(made.text)  # type: ignore[operator]
    book = TenantBook(path)
    for text in (mixed, "", "ask_", f"ask_{made.key_id}_{'A' * 43}", *([] if changed == made.text else [changed])):
        assert book.caller(text) is None


def test_comments_and_order_outlive_a_change_and_other_keys_a_revocation(path: Path) -> None:
    path.write_text("# ours\n[tenants.research]\nweight = 2.0  # twice\n")
    path.chmod(0o640)
    first, second = add_key(path, "research"), add_key(path, "research")
    assert revoke_key(path, first.key_id) == "research"
    text = path.read_text()
    assert "# ours" in text
    assert "# twice" in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    book = TenantBook(path)
    assert book.caller(first.text) is None
    assert book.caller(second.text) == Tenant(name="research", weight=2.0)
    with pytest.raises(NotFound, match=first.key_id):
        revoke_key(path, first.key_id)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tenants.a]\nwieght = 2.0", "wieght"),
        ("[tenants.a]\nweight = 0", "weight"),
        ("[tenants.a]\nrate_per_s = inf", "rate_per_s"),
        ("[tenants.'A b']", "tenants"),
        ("[tenants.'a:b']", "tenants"),
        ("[[keys]]\nid = '00000000'\ntenant = 'a'\nsha256 = '" + "0" * 64 + "'", "no .tenants.a."),
        ("[tenants.a]\n[[keys]]\nid = '00000000'\ntenant = 'a'\nsha256 = 'short'", "sha256"),
        ("tenants = [", "not TOML"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(path: Path, text: str, told: str) -> None:
    path.write_text(text)
    with pytest.raises(BadInput, match=told):
        read_tenants(path)


def test_a_file_without_keys_is_no_authentication(path: Path) -> None:
    path.write_text("[tenants.a]\n")
    with pytest.raises(BadInput, match="no key"):
        TenantBook(path)


def test_a_changed_file_is_taken_up_and_a_bad_one_keeps_what_was(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = add_key(path, "research")
    book = TenantBook(path)
    second = add_key(path, "research")
    assert book.caller(second.text) is None
    book.refresh()
    assert book.caller(second.text) is not None
    good = path.read_text()
    path.write_text("tenants = [")
    with caplog.at_level(logging.ERROR):
        book.refresh()
        book.refresh()
    assert len(caplog.records) == 1
    assert book.caller(first.text) is not None
    path.unlink()
    book.refresh()
    assert book.caller(first.text) is not None
    path.write_text(good)
    revoke_key(path, first.key_id)
    book.refresh()
    assert book.caller(first.text) is None
    assert book.caller(second.text) is not None


def test_the_commands_make_list_and_revoke(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSERVE_TENANTS_FILE", str(path))
    run = CliRunner().invoke
    key = run(app, ["keys", "new", "research"]).stdout.strip()
    assert TenantBook(path).caller(key) == Tenant(name="research")
    listed = run(app, ["keys", "list", "--json"]).stdout
    assert '"tenant":"research"' in listed
    assert key not in listed
    key_id = key.split("_")[1]
    assert run(app, ["keys", "revoke", key_id]).exit_code == 0
    assert run(app, ["keys", "list", "--json"]).stdout.strip() == "[]"
    assert isinstance(run(app, ["keys", "new", "No Name"]).exception, BadInput)
    assert not list(path.parent.glob(".tenants*"))


def test_names_of_a_tenant_carry_its_scope_and_an_admin_names_all() -> None:
    research, ops = Tenant(name="research"), Tenant(name="ops", admin=True)
    assert (research.inside("run-1"), research.outside("research:run-1")) == ("research:run-1", "run-1")
    assert (ops.inside("research:run-1"), ops.outside("research:run-1")) == ("research:run-1", "research:run-1")


def test_no_tenant_can_say_the_salt_of_another() -> None:
    given = ("tenant/b", "shared/x", "b", None, "", 5)
    salts = [
        {tenant.cache_salt(one) for one in given} - {None}
        for tenant in (Tenant(name="a"), Tenant(name="b"), Tenant(name="c", share_prefixes=True))
    ]
    assert not salts[0] & salts[1]
    assert not (salts[0] | salts[1]) & salts[2]
    assert Tenant(name="c", share_prefixes=True).cache_salt(None) is None
    assert NOBODY.scope == ""
