"""Settings from flags, environment, file and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.config import GatewayConfig
from launch.config import ClientConfig
from launch.settings import (
    SettingsError,
    build,
    catalogue,
    environment_values,
    file_values,
    flag_values,
    merge,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    redis: str
    """Where Redis is."""
    port: int = 8080
    ratio: float = 0.5
    insecure: bool = False
    names: tuple[str, ...] = ()
    limit: int | None = None
    link_secret: str = "s"

    def __post_init__(self) -> None:
        if self.port > 65_535:
            raise ValueError(f"port must be at most 65535, got {self.port}")


KNOWN = catalogue(Small)


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    """Each stronger source hides the weaker ones, name by name."""
    path = tmp_path / "c.toml"
    path.write_text('redis = "redis://file"\nport = 1\nratio = 1\nnames = ["a", "b"]\n')
    values = merge(
        file_values(KNOWN, path),
        environment_values(KNOWN, {"TURBOSERVE_PORT": "2", "TURBOSERVE_RATIO": "2.5", "HOME": "/"}),
        flag_values(KNOWN, {"port": "3", "limit": None}),
    )
    config = build(Small, values)
    assert config == Small(redis="redis://file", port=3, ratio=2.5, names=("a", "b"))


def test_text_is_read_by_type() -> None:
    """Flags and variables are text; each type has its own spelling."""
    environment = {
        "TURBOSERVE_REDIS": "unix:///s",
        "TURBOSERVE_INSECURE": "Yes",
        "TURBOSERVE_NAMES": "a, b,,c",
        "TURBOSERVE_LIMIT": "7",
    }
    config = build(Small, environment_values(KNOWN, environment))
    assert config == Small(redis="unix:///s", insecure=True, names=("a", "b", "c"), limit=7)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"TURBOSERVE_PORT": "x"}, "environment variable TURBOSERVE_PORT: port must be an integer, not 'x'"),
        ({"TURBOSERVE_RATIO": "nan"}, "TURBOSERVE_RATIO: ratio must be a number, not 'nan'"),
        ({"TURBOSERVE_INSECURE": "maybe"}, "insecure must be true or false, not 'maybe'"),
        ({"TURBOSERVE_PROT": "1"}, "there is no setting called prot; did you mean port?"),
    ],
)
def test_bad_variable_is_named(environment: dict[str, str], sentence: str) -> None:
    """A value of the wrong type and a name that nothing knows are refused, never ignored."""
    with pytest.raises(SettingsError) as caught:
        environment_values(KNOWN, environment)
    assert sentence in str(caught.value)


def test_variables_for_other_ends_are_left_alone() -> None:
    """The roles' own variables, the file's name and those of the tests are not settings."""
    reserved = ("GATEWAY_CONFIG", "SCHEDULER_CONFIG", "ENGINE_CONFIG", "CONFIG", "TEST_TIME_SCALE")
    assert environment_values(KNOWN, {f"TURBOSERVE_{name}": "1" for name in reserved}) == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("port = ", "is not valid TOML"),
        ("port = '1'", "port must be an integer, not '1'"),
        ("port = true", "port must be an integer, not True"),
        ("names = [1]", "names must be a list of strings"),
        ("prot = 1", "did you mean port?"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """The error names the file, the setting and what it wants."""
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        file_values(KNOWN, path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A configuration file that was asked for must exist."""
    with pytest.raises(SettingsError, match="cannot read the configuration file"):
        file_values(KNOWN, tmp_path / "none.toml")


def test_out_of_range_names_its_source() -> None:
    """A range is checked by the dataclass; the error adds where the value was set."""
    values = flag_values(KNOWN, {"redis": "r", "port": "70000"})
    with pytest.raises(SettingsError) as caught:
        build(Small, values)
    assert str(caught.value) == "port must be at most 65535, got 70000 (port is set by flag --port)"


def test_missing_value_says_how_to_set_it() -> None:
    """A setting without default that nobody set."""
    with pytest.raises(SettingsError, match="redis is not set: give --redis or TURBOSERVE_REDIS"):
        build(Small, {})


def test_a_missing_word_is_no_flag() -> None:
    """Of what is given without one."""
    with pytest.raises(SettingsError, match="prompt is not set: give PROMPT after the command or TURBOS"):
        build(ClientConfig, {})


def test_a_secret_of_a_wrong_type_is_not_shown(tmp_path: Path) -> None:
    """As without the brackets: what is printed ends in logs."""
    path = tmp_path / "c.toml"
    path.write_text('token_secrets = "hush hush hush hush"')
    with pytest.raises(SettingsError, match="token_secrets must be a list of strings") as caught:
        file_values(catalogue(GatewayConfig), path)
    assert "hush" not in str(caught.value)


def test_fixed_values_win() -> None:
    """What the caller decides is not for the user to set."""
    values = flag_values(KNOWN, {"redis": "theirs"})
    assert build(Small, values, redis="ours", limit=None).redis == "ours"


def test_catalogue_describes_each_setting() -> None:
    """Help text comes from the string below the field."""
    assert KNOWN["redis"].help == "Where Redis is."
    assert KNOWN["port"].help == ""
    assert (KNOWN["limit"].kind, KNOWN["limit"].optional) == (int, True)
