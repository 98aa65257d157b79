"""The providers, from a file, `race.toml`, or from the keys in the environment.

    [[provider]]
    name = "gpt"
    kind = "openai"                 # or anthropic, gemini, ollama
    model = "gpt-5-mini"
    base_url = "https://..."        # if it isn't the maker's
    api_key_env = "OPENAI_API_KEY"  # the variable with the key; "" for none
    rpm = 500                       # requests per minute
    tpm = 200_000                   # tokens per minute
    max_concurrency = 20            # concurrent requests
    weight = 2.0                    # the highest is asked first, if not all are asked at once
    price_in = 0.25                 # USD per million tokens read; default: from genai-prices
    price_out = 2.0                 # and written
    headers = { "X-Title" = "race" }

Keys are never in the file: it names the environment variables that hold them.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from examples.llm_race.client.providers import PROTOCOLS, Endpoint, Provider

USUAL_MODELS = {
    "openai": "gpt-5-mini",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-2.5-flash",
}
"""The default providers without a file, if there is a key."""
TEXTS = ("name", "kind", "model", "base_url", "api_key_env")
NUMBERS = ("rpm", "tpm", "weight", "price_in", "price_out")
KNOWN = {*TEXTS, *NUMBERS, "max_concurrency", "headers"}
SECRETS = ("key", "token", "secret", "authorization", "cookie", "password")


class ConfigError(ValueError):
    """An invalid configuration; the message says where."""


def load(path: Path | str) -> list[Provider]:
    """Read the providers from a file.

    Raises:
        ConfigError: The file is no TOML, or has an invalid field.
        OSError: The file can't be read.
    """
    try:
        said = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return providers_of(said)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def providers_of(said: Mapping[str, Any]) -> list[Provider]:
    """Read the providers from a file's text."""
    more = said.keys() - {"provider"}
    if more:
        raise ConfigError(f"only [[provider]] tables are known, not {min(more)!r}")
    tables: object = said.get("provider")
    if not isinstance(tables, list) or not tables:
        raise ConfigError("it has no [[provider]]")
    found = [provider_of(table, n) for n, table in enumerate(cast("list[object]", tables), 1)]
    names = [provider.name for provider in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two providers are named {twice!r}; the name tells them apart")
    return found


def provider_of(table: object, number: int) -> Provider:
    """Read one `[[provider]]`."""
    where = f"provider {number}"
    if not isinstance(table, dict):
        raise ConfigError(f"{where}, which must be a table, is not one")
    given = cast("dict[str, Any]", table)
    where = f"provider {given.get('name', number)!r}"
    for name, value in given.items():
        check(where, name, value)
    for name in ("name", "kind", "model"):
        if not given.get(name):
            raise ConfigError(f"{where} has no {name}")
    protocol = PROTOCOLS.get(given["kind"])
    if protocol is None:
        raise ConfigError(f"{where}: kind is one of {', '.join(PROTOCOLS)}, not {given['kind']!r}")
    if given["name"] == "judge":
        raise ConfigError(f"{where}: this name is reserved for the judge; choose a different name")
    if ("price_in" in given) != ("price_out" in given):
        raise ConfigError(f"{where}: price_in and price_out belong together")
    endpoint = Endpoint(
        protocol=protocol,
        model=given["model"],
        base_url=given.get("base_url", protocol.base_url),
        key_env=given.get("api_key_env", protocol.key_env) or None,
        headers=given.get("headers", {}),
    )
    return Provider(
        name=given["name"],
        kind=given["kind"],
        model=given["model"],
        ask=endpoint.stream,
        endpoint=endpoint,
        max_concurrency=given.get("max_concurrency", 100),
        **{name: given[name] for name in NUMBERS if name in given},
    )


def check(where: str, name: str, value: Any) -> None:
    """Refuse invalid fields; a value that might be a secret is not repeated."""
    if name not in KNOWN:
        if any(word in name.lower() for word in SECRETS):
            raise ConfigError(
                f"{where}: {name} doesn't belong in a file; put it into a variable of the "
                f"environment and name that: api_key_env = ..."
            )
        raise ConfigError(f"{where}: {name!r} is not known; there are {', '.join(sorted(KNOWN))}")
    if name in TEXTS and not isinstance(value, str):
        raise ConfigError(f"{where}: {name} is a text, not {value!r}")
    if name in NUMBERS and (not isinstance(value, int | float) or value < 0):
        raise ConfigError(f"{where}: {name} is a number from 0, not {value!r}")
    if name in {"rpm", "tpm"} and value == 0:
        raise ConfigError(
            f"{where}: {name} = 0 would never send a request; remove the provider instead"
        )
    if name == "max_concurrency" and (type(value) is not int or value < 1):
        raise ConfigError(f"{where}: {name} is a whole number from 1, not {value!r}")
    if name == "base_url":
        parts = urlsplit(str(value))
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"{where}: base_url is an http or https address")
        if parts.username or parts.password or parts.query:
            raise ConfigError(f"{where}: base_url must be only an address; keys don't belong in it")
    if name == "headers":
        check_headers(where, value)


def check_headers(where: str, headers: object) -> None:
    if not isinstance(headers, dict):
        raise ConfigError(f"{where}: headers is a table")
    for name, value in cast("dict[str, object]", headers).items():
        if any(word in name.lower() for word in SECRETS):
            raise ConfigError(f"{where}: the header {name!r} is a secret; use api_key_env")
        if not isinstance(value, str):
            raise ConfigError(f"{where}: the header {name!r} is a text")


def from_environment() -> list[Provider]:
    """The usual providers whose keys are in the environment."""
    tables = [
        {"name": kind, "kind": kind, "model": model}
        for kind, model in USUAL_MODELS.items()
        if os.environ.get(PROTOCOLS[kind].key_env or "")
    ]
    return [provider_of(table, n) for n, table in enumerate(tables, 1)]


def chosen(providers: Sequence[Provider], names: Sequence[str]) -> list[Provider]:
    """Return the named providers, in that order; without names, all of them.

    Raises:
        ConfigError: No provider has that name.
    """
    by_name = {provider.name: provider for provider in providers}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ConfigError(f"no provider is named {unknown[0]!r}; there are {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)] or list(providers)
