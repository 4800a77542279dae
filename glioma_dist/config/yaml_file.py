"""YAML files of settings, as YAML 1.2 reads them: `1e-4` is a number, and `on`, `off`, `yes`, `no` are words."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from glioma_dist.errors import InputError, one_line
from glioma_dist.files import read_bytes

MAX_YAML_BYTES = 2**20
SUFFIXES = (".yaml", ".yml")


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file: mappings, lists, texts, numbers, true, false and null.

    Raises InputError where it cannot be read, is no YAML, names a setting twice, or has an alias, with which a small
    file can stand for a very large value.
    """
    data = read_bytes(path, MAX_YAML_BYTES)
    import yaml  # a tenth of a second

    try:
        return yaml.load(data.decode(), _loader())
    except RecursionError:
        raise InputError(f"{path}: is no YAML that can be read (nested too deeply)") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        reason = one_line(getattr(error, "problem", None) or error, 120)
        raise InputError(f"{path}{line}: is no YAML that can be used ({reason})") from None


@lru_cache
def _loader() -> type:
    """PyYAML's safe loader, which makes no objects, with the plain values of YAML 1.2's core schema."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - of the library

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise yaml.composer.ComposerError(None, None, "aliases are not read", event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            names: set[str] = set()
            for key, _ in node.value:
                if key.tag != "tag:yaml.org,2002:str":
                    raise yaml.constructor.ConstructorError(None, None, "a name must be a text", key.start_mark)
                if key.value in names:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
                names.add(key.value)
            return super().construct_mapping(node, deep)

    for kind, pattern, first in (
        ("null", r"~|null|", ["~", "n", ""]),
        ("bool", r"true|false", list("tf")),
        ("int", r"[-+]?[0-9]+", list("-+0123456789")),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), first)
    # PyYAML's would read 010 as 8 and 1e-4 as a text.
    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
    Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node)))
    # Its own end in an error of another kind where a tag that is written out does not fit: `!!bool maybe`.
    Loader.add_constructor("tag:yaml.org,2002:bool", _bool)
    Loader.add_constructor("tag:yaml.org,2002:timestamp", Loader.construct_undefined)
    return Loader


def _bool(loader: Any, node: Any) -> bool:
    text = loader.construct_scalar(node)
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"
