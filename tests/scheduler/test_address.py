"""URLs of a Redis, taken apart."""

from __future__ import annotations

import pytest

from scheduler.address import RedisAddress, mask_password, parse_address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://", RedisAddress(hosts=(("localhost", 6379),))),
        ("redis://h:1/3", RedisAddress(hosts=(("h", 1),), db=3)),
        ("redis://[::1]:7", RedisAddress(hosts=(("::1", 7),))),
        ("unix:///a%20b/r.sock?db=2", RedisAddress(path="/a b/r.sock", db=2)),
        (
            "rediss://me:p%40ss@h?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
            RedisAddress(
                hosts=(("h", 6379),),
                username="me",
                password="p@ss",
                is_tls=True,
                ca_certs="/ca.pem",
                check_hostname=False,
            ),
        ),
        (
            "redis+sentinel://:p+w@a,b:5/main/1?sentinel_password=s%2Bp+w",
            RedisAddress(
                hosts=(("a", 26379), ("b", 5)),
                service="main",
                db=1,
                password="p+w",
                sentinel_password="s+p+w",
            ),
        ),
    ],
)
def test_good_urls(url: str, address: RedisAddress) -> None:
    """Each part is where it belongs, percent signs decoded."""
    assert parse_address(url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://me:secret@h", "must be a URL that starts with redis://"),
        ("redis://me:secret@h:99999", "host or host:port"),
        ("redis://me:secret@h/zero", "number of a database"),
        ("redis://me:secret@h?ssl_ca_certs=/x", "a redis:// URL can have db"),
        ("rediss://me:secret@h?ssl_ca_cert=/x", "parameter ssl_ca_cert,"),
        ("rediss://me:secret@h?ssl_keyfile=/x", "without ssl_certfile"),
        ("redis+sentinel://me:secret@h", "no service"),
        ("redis://me:secret@h?db", "not a valid URL"),
        ("unix://", "the whole path: unix:///path/of/socket"),
        ("unix://run/secret.sock", "the whole path: unix:///path/of/socket"),
    ],
)
def test_bad_urls(url: str, says: str) -> None:
    """The sentence says what is wrong, and repeats no password."""
    with pytest.raises(ValueError, match=says) as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)


def test_passwords_are_not_shown() -> None:
    """Neither in the masked URL nor in the text of the address; the rest stays as it is."""
    url = "rediss+sentinel://me:s:ec@ret@h:1,i:2/main?sentinel_password=hush&sentinel_username=s"
    assert mask_password(url) == (
        "rediss+sentinel://me:***@h:1,i:2/main?sentinel_password=***&sentinel_username=s"
    )
    assert mask_password("redis://h/0") == "redis://h/0"
    assert mask_password("unix:///a:b@c?db=0") == "unix:///a:b@c?db=0"
    text = repr(parse_address(url))
    assert "hush" not in text and "ec@ret" not in text
