"""What the scraper's command line is made of: quantities, selectors, settings that are kept."""

import json

import pytest

from examples.scraper import settings
from examples.scraper.settings import Settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30", 30.0),
        ("90s", 90.0),
        ("10m", 600.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        (" 2 d ", 172800),
    ],
)
def test_durations(text: str, value: float) -> None:
    assert settings.seconds(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("1000", 1000), ("200kB", 200_000), ("5MiB", 5_242_880), ("1.5 KiB", 1536)]
)
def test_sizes(text: str, value: int) -> None:
    assert settings.size(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("10/s", 10.0), ("2", 2.0), ("90/m", 1.5), ("1/ h", 1 / 3600)]
)
def test_rates(text: str, value: float) -> None:
    assert settings.rate(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (settings.seconds, "0"),
        (settings.seconds, "-1s"),
        (settings.seconds, "10x"),
        (settings.seconds, ""),
        (settings.size, "5 apples"),
        (settings.rate, "0/s"),
        (settings.rate, "5/year"),
        (settings.rate, "fast"),
        (settings.selector, "h1"),
        (settings.selector, "=h1"),
        (settings.selector, "title="),
        (settings.selector, "title=h1["),
        (settings.pattern, "("),
    ],
)
def test_what_is_none_is_said(reader: object, text: str) -> None:
    assert callable(reader)
    with pytest.raises(ValueError, match=r".+"):
        reader(text)


def test_selectors_have_names() -> None:
    assert settings.selector(" price = .a > b ") == ("price", ".a > b")


def test_settings_are_kept_as_json() -> None:
    received = Settings(urls=("http://a/",), select={"x": "h1"}, include=("y",), deadline=1.5)
    saved = json.loads(json.dumps(received.to_json()))
    assert Settings.from_json(saved) == received
    assert Settings.from_json({**saved, "a later one's": 1}) == received
    del saved["retries"]
    assert Settings.from_json(saved) == received
