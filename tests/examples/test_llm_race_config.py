"""The configuration: what it may say, what it must not, and that keys are nowhere in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.llm_race import load
from examples.llm_race.client.config import ConfigError, chosen, from_environment
from examples.llm_race.client.exchange import Answer, Usage
from examples.llm_race.client.failures import Unacceptable
from examples.llm_race.client.prices import cost_of, price_of
from examples.llm_race.race.acceptance import acceptance

GOOD = """
[[provider]]
name = "gpt"
kind = "openai"
model = "gpt-4o-mini"
rpm = 500
tpm = 200_000
max_concurrency = 20
weight = 2

[[provider]]
name = "mine"
kind = "ollama"
model = "llama3"
base_url = "http://10.0.0.5:11434"
headers = { "X-Title" = "race" }

[[provider]]
name = "other"
kind = "openai"
model = "somebody/some-model"
base_url = "https://models.example/v1"
api_key_env = "OTHER_KEY"
price_in = 1
price_out = 2.5
"""


def write(path: Path, text: str) -> Path:
    file = path / "race.toml"
    file.write_text(text)
    return file


def test_what_a_file_says(tmp_path: Path) -> None:
    gpt, mine, other = load(write(tmp_path, GOOD))
    assert gpt.endpoint is not None
    assert mine.endpoint is not None
    assert other.endpoint is not None
    assert (gpt.endpoint.base_url, gpt.endpoint.key_env) == (
        "https://api.openai.com/v1",
        "OPENAI_API_KEY",
    )
    assert (gpt.rpm, gpt.tpm, gpt.max_concurrency, gpt.weight) == (500, 200_000, 20, 2)
    assert (mine.endpoint.key_env, mine.endpoint.headers) == (None, {"X-Title": "race"})
    assert other.endpoint.key_env == "OTHER_KEY"
    assert price_of(gpt) == (pytest.approx(0.15), pytest.approx(0.6)), "as genai-prices knows"
    assert price_of(mine) == (0, 0)
    assert price_of(other) == (1, 2.5)
    used = Usage(input_tokens=1_000_000, output_tokens=2_000_000)
    assert cost_of(other, used) == pytest.approx(6.0)
    assert [one.name for one in chosen([gpt, mine, other], ["other", "gpt", "other"])] == [
        "other",
        "gpt",
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"it has no \[\[provider\]\]"),
        ("[[provider", "race.toml: "),
        ("[race]\n" + GOOD, "not 'race'"),
        (GOOD + GOOD, "two providers are named 'gpt'"),
        (GOOD.replace('kind = "ollama"', 'kind = "cohere"'), "kind is one of openai, anthropic"),
        (GOOD.replace('model = "llama3"', ""), "provider 'mine' has no model"),
        (GOOD.replace('name = "mine"', 'name = "judge"'), "choose a different name"),
        (GOOD.replace("rpm = 500", 'rpm = "many"'), "rpm is a number"),
        (GOOD.replace("rpm = 500", "rpm = 0"), "would never send a request"),
        (GOOD.replace("max_concurrency = 20", "max_concurrency = 0"), "whole number from 1"),
        (GOOD.replace("price_in = 1", ""), "belong together"),
        (GOOD.replace("weight", "wait"), "'wait' is not known"),
        (GOOD.replace("http://10", "10"), "http or https"),
        (GOOD.replace("http://10", "ftp://10"), "http or https"),
        (GOOD.replace('{ "X-Title" = "race" }', "3"), "headers is a table"),
        (GOOD.replace('"race" }', "3 }"), "'X-Title' is a text"),
    ],
)
def test_what_a_file_must_not_say(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('model = "llama3"', 'model = "llama3"\napi_key = "sk-canary"'),
        ('model = "llama3"', 'model = "llama3"\ntoken = "sk-canary"'),
        ("http://10", "http://me:sk-canary@10"),
        ("models.example/v1", "models.example/v1?key=sk-canary"),
        ('"X-Title" = "race"', '"Authorization" = "Bearer sk-canary"'),
        ('"X-Title" = "race"', '"X-Api-Key" = "sk-canary"'),
    ],
)
def test_a_key_in_a_file_is_refused_and_not_repeated(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, GOOD.replace(old, new)))
    assert "canary" not in str(refused.value)


def test_without_a_file_the_keys_that_are_there_choose_the_contestants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert from_environment() == []
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    [provider] = from_environment()
    assert (provider.name, provider.kind) == ("anthropic", "anthropic")
    price = price_of(provider)
    assert price is not None
    assert price[1] > price[0] > 0


def test_an_unknown_provider_can_not_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no provider is named 'nobody'; there are gpt, mine"):
        chosen(load(write(tmp_path, GOOD)), ["nobody"])


# -- acceptance --------------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"age": 3}', None),
        ('{"age": "3"}', "not of the schema, at age"),
        ("{}", "not of the schema, at the whole"),
        ("age: 3", "no JSON"),
    ],
)
def test_an_answer_of_a_schema(text: str, why: str | None) -> None:
    judge(text, why, schema=PERSON)


@pytest.mark.parametrize(
    ("text", "why"), [("yes, 42", None), ("no", "nothing in it matches"), ("", "nothing")]
)
def test_an_answer_of_a_pattern(text: str, why: str | None) -> None:
    judge(text, why, regex=r"\d+")


@pytest.mark.parametrize(
    ("text", "why"), [("four", None), (" no ", "only 2"), ("far too long", "12 characters long")]
)
def test_an_answer_of_a_length(text: str, why: str | None) -> None:
    judge(text, why, min_chars=3, max_chars=6)


def judge(text: str, why: str | None, **wanted: object) -> None:
    accept = acceptance(**wanted)  # pyright: ignore[reportArgumentType] - of several types
    assert accept is not None
    answer = Answer(text=text, provider="p", finish="stop", usage=Usage())
    if why is None:
        assert accept(answer)
    else:
        with pytest.raises(Unacceptable, match=why):
            accept(answer)


def test_what_cannot_be_wanted_is_refused() -> None:
    assert acceptance() is None
    with pytest.raises(ValueError, match="no JSON Schema"):
        acceptance(schema={"type": "nonsense"})
    with pytest.raises(ValueError, match="no regular expression"):
        acceptance(regex="(")
