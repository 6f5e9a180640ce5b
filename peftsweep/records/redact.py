"""Keeps passwords and tokens out of everything that leaves the process: parameters, tags, config.yaml, logs, artifacts.

A secret is known by its key (`password`, `hf_token`), by its form (`hf_...`, `https://user:password@host`), or because
an environment variable of such a name holds it now.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

REDACTED = "<redacted>"

_SECRET_WORDS = frozenset(
    {"password", "passwd", "secret", "secrets", "authorization", "credential", "credentials", "apikey"}
)
_KEY_KINDS = frozenset({"api", "access", "private", "account"})  # the word before "key" that makes it a secret
# `token` is also a word of this field: these are names of vocabulary entries.
_VOCABULARY = frozenset(
    {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "stop", "start", "end", "target", "per", "trigger"}
)
_MIN_ENVIRONMENT_LENGTH = 6  # characters; a switch such as FOO_TOKEN=1 must not blank every 1 in a file

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
_NOT_A_VALUE = frozenset({"", "null", "none", "true", "false", "~", "{}", "[]", "{", "["})
_KNOWN_FORMS = re.compile(
    r"""\b(?: hf_[A-Za-z0-9]{20,} | hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{10,}  # Hugging Face; the lookahead spares prose
          | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,}
          | sk-[A-Za-z0-9_-]{20,} | AKIA[0-9A-Z]{16} )""",
    re.VERBOSE,
)
_LOGIN_IN_URL = re.compile(r"://([^/\s:@'\"]*):[^/\s'\"]+@")
_TOKEN_IN_URL = re.compile(r"(https?://)[^/\s:@'\"]+@")
_AUTHORIZATION = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}")
# Anchored at a word's start: a long word without a separator would cost quadratic time.
_KEY = re.compile(r"""(?<![\w.-])(?P<key>[\w.-]+)(?P<quote>\\?["'])?(?P<separator>[ \t]*:[ \t]+|[ \t]*:(?=["'])|=)""")
_QUOTED_VALUE = re.compile(r"""\\"[^\n]*?\\"|"(?:[^"\\\n]|\\.)*"|'(?:[^'\n]|'')*'""")
_OVERRIDE_VALUE = re.compile(r"""[^\s"'&]+""")  # of a command line or a URL's query: to the next blank
_JSON_VALUE = re.compile(r"""[^\s"',}\]]+""")
_LINE_VALUE = re.compile(r"""[^\s"'][^\n]*""")  # of YAML or a log: to the end of the line
_OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@-]*=")


@lru_cache(maxsize=4096)
def is_secret_key(key: str) -> bool:
    """Whether a value under this key (`tracking.password`, `HF_TOKEN`, `apiKey`) must not be shown."""
    words = [word.lower() for word in _WORD.findall(key.rpartition(".")[2])]
    if _SECRET_WORDS.intersection(words):
        return True
    if any(kind in _KEY_KINDS and word == "key" for kind, word in pairwise(words)):
        return True
    return bool(words) and words[-1] == "token" and not _VOCABULARY.intersection(words[:-1])


def redact(text: str) -> str:
    """Blank every secret in a configuration file, a log or an error message: by key and by form."""
    return redact_forms(_blank_values_of_secret_keys(text))


def redact_forms(text: str) -> str:
    """Blank what looks like a secret whatever it is called, and what the environment says is one."""
    secrets = {value for name, value in os.environ.items() if is_secret_key(name)}
    for secret in sorted(secrets, key=len, reverse=True):  # one that contains another goes as a whole
        if len(secret) >= _MIN_ENVIRONMENT_LENGTH:
            text = text.replace(secret, REDACTED)
    text = _KNOWN_FORMS.sub(REDACTED, text)
    text = _LOGIN_IN_URL.sub(rf"://\1:{REDACTED}@", text)
    text = _TOKEN_IN_URL.sub(rf"\1{REDACTED}@", text)
    return _AUTHORIZATION.sub(rf"\1 {REDACTED}", text)


def redact_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested mapping with secrets blanked, plain dicts and lists throughout."""
    return {key: _redact_value(str(key), value) for key, value in params.items()}


def _redact_value(key: str, value: Any) -> Any:
    if is_secret_key(key) and not _is_harmless(key, value):
        return REDACTED
    if isinstance(value, Mapping):
        return redact_params(value)
    if isinstance(value, list | tuple):
        return [_redact_value("", item) for item in value]
    if isinstance(value, str):
        # Prose such as a prompt template may say "token: ..."; only an override names a key.
        return redact(value) if _OVERRIDE.match(value) else redact_forms(value)
    return value


def _is_harmless(key: str, value: Any) -> bool:
    """Switches and empty values hide nothing; a number is a count under `token`, but a password under `password`."""
    if value is None or isinstance(value, bool) or str(value).strip("\"'").lower() in _NOT_A_VALUE:
        return True
    return key.lower().endswith("token") and _NUMBER.fullmatch(str(value).strip(" ,")) is not None


def _blank_values_of_secret_keys(text: str) -> str:
    parts, position = [], 0
    for key in _KEY.finditer(text):  # goes on behind the key, as a message or an override may be a value itself
        if key.start() < position or not is_secret_key(key["key"]):
            continue
        bare = _OVERRIDE_VALUE if key["separator"] == "=" else _JSON_VALUE if key["quote"] else _LINE_VALUE
        value = _QUOTED_VALUE.match(text, key.end()) or bare.match(text, key.end())
        if value is None or _is_harmless(key["key"], value[0].rstrip(" ,")):
            continue
        quoted = (mark for mark in ('\\"', '"', "'") if value[0].startswith(mark))
        quote = next(quoted, key["quote"] or "")  # a JSON number becomes a JSON string
        parts += [text[position : key.end()], quote, REDACTED, quote]
        position = value.end()
    return "".join([*parts, text[position:]])
