"""From the text of `millrace.yaml` to a `Config`, or to all of its faults at once.

Values reach no message: what pydantic says is taken without its input, and expanded variables are struck out of what a
settings model of a destination may say itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from destinations.contract import Settings
from millrace.config.expand import expand
from millrace.config.shape import explain, suggest
from millrace.config.tree import Path, Tree, parse
from pipeline.language.filters import FilterError, compile_filter
from schemas.config import Config, MappingConfig
from schemas.errors import ConfigError
from schemas.identity import BUILT_IN, LEGACY

M = TypeVar("M", bound=BaseModel)
SettingsModels = Mapping[str, type[BaseModel]]
"""The settings model of every destination type."""


@dataclass(slots=True)
class Loaded:
    """A configuration that has no faults. `settings` holds each destination's own, validated; it is empty when the
    caller had no use for them."""

    config: Config
    settings: dict[str, BaseModel] = field(default_factory=dict)


def load_file(path: FilePath, variables: Mapping[str, str], models: Callable[[], SettingsModels] | None) -> Loaded:
    """Reads a file. ConfigError holds one line per fault.

    Without `models` the settings of destinations are neither expanded nor checked: a process that does not deliver
    needs no credentials of services."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; mend its permissions") from error
    return load_text(text, str(path), variables, models)


def load_text(
    text: str, file: str, variables: Mapping[str, str], models: Callable[[], SettingsModels] | None
) -> Loaded:
    """`load_file` for a text; `file` is its name in faults."""
    tree = parse(text)
    checked = _Check(tree, variables, skip_settings=models is None).run(models)
    if checked is None:
        raise ConfigError(*(fault.at(file) for fault in sorted(set(tree.faults))))
    return checked


class _Check:
    """One pass over one tree; collects faults in it."""

    def __init__(self, tree: Tree, variables: Mapping[str, str], *, skip_settings: bool) -> None:
        self.tree, self.variables, self.skip_settings = tree, variables, skip_settings
        self.unknown: set[Path] = set()  # scalars whose value is not known: an unset variable
        self.filled: set[Path] = set()  # texts with variables in them
        self.expanded: set[str] = set()

    def run(self, models: Callable[[], SettingsModels] | None) -> Loaded | None:
        tree = self.tree
        if tree.faults and tree.value is None:
            return None
        raw = _without_blanks(self._expanded(tree.value, ()))
        config = self._validate(Config, raw, ())
        settings = self._settings(raw, models()) if models is not None else {}
        self._cross_references(raw)
        self._between(settings, _mapping(raw, "sources") or {"default": None})
        return Loaded(config, settings) if config is not None and not tree.faults else None

    # ── Variables ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _expanded(self, value: Any, path: Path) -> Any:
        if (
            self.skip_settings
            and path[:1] == ("destinations",)
            and path[2:] in (("settings",), ("function", "settings"), ("mappings",))
        ):
            return value
        match value:
            case dict():
                return {key: self._expanded(one, (*path, key)) for key, one in value.items()}
            case list():
                return [self._expanded(one, (*path, index)) for index, one in enumerate(value)]
            case str() if "${" in value:
                return self._expanded_text(value, path)
        return value

    def _expanded_text(self, text: str, path: Path) -> str:
        def fault(what: str) -> None:
            self.unknown.add(path)
            self.tree.fault(path, what)

        self.filled.add(path)
        result = expand(text, self.variables, fault)
        if len(result) > 2:
            self.expanded.add(result)
        return result

    # ── Shape ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _validate(self, model: type[M], raw: Any, above: Path) -> M | None:
        try:
            return model.model_validate(raw)
        except ValidationError as errors:
            for error in errors.errors(include_input=False, include_url=False, include_context=False):
                path = tuple(part for part in error["loc"] if part != "[key]")
                full = (*above, *path)
                if full in self.unknown:
                    continue
                what = explain(model, error["type"], path, error["msg"], _text_at(raw, path))
                self.tree.fault(full, self._without_values(what))
            return None

    def _without_values(self, what: str) -> str:
        for value in sorted(self.expanded, key=len, reverse=True):
            what = what.replace(value, "**********")
        return what

    def _settings(self, raw: Any, models: SettingsModels) -> dict[str, BaseModel]:
        settings = {}
        for name, one in _mapping(raw, "destinations").items():
            kind = one.get("type") if isinstance(one, dict) else None
            path: Path = ("destinations", name)
            if not isinstance(kind, str) or (*path, "type") in self.unknown:
                continue  # told already
            if kind not in models:
                self.tree.fault((*path, "type"), f"unknown destination type; {suggest(kind, list(models))}")
                continue
            given = one.get("settings")
            valid = self._validate(models[kind], {} if given is None else given, (*path, "settings"))
            if valid is not None:
                settings[name] = valid
            self._mappings(kind, one.get("mappings"), one.get("presets"), path)
        return settings

    def _mappings(self, kind: str, given: Any, presets: Any, above: Path) -> None:
        """What the shape does not tell: actions, fields, directives, triggers, presets."""
        whole = _whole_mappings(given)
        wanted = presets if isinstance(presets, bool) or _are_names(presets) else None
        if whole is None and wanted is None:
            return
        from destinations.registry import definitions
        from pipeline.delivery.mapping import mapping_faults, preset_faults

        definition = definitions().get(kind)
        if definition is not None:
            found = [(("mappings", *one.path), one.what) for one in mapping_faults(definition, whole or (), wanted)]
            found += [(("presets", *one.path), one.what) for one in preset_faults(definition, wanted)]
            for path, what in found:
                if (*above, *path) not in self.unknown:
                    self.tree.fault((*above, *path), self._without_values(what))

    # ── Between parts ─────────────────────────────────────────────────────────────────────────────────────────────

    def _cross_references(self, raw: Any) -> None:
        sources = _mapping(raw, "sources") or {"default": None}
        owners: dict[str, str] = {}
        for name, one in _mapping(raw, "sources").items():
            for member in ("write_key", "second_write_key"):
                key = one.get(member) if isinstance(one, dict) else None
                path: Path = ("sources", name, member)
                if isinstance(key, str) and path not in self.unknown and owners.setdefault(key, name) != name:
                    self.tree.fault(path, f"is also the write key of source {owners[key]}; give each source its own")
        self._key_ids(raw)
        self._id_types(_mapping(raw, "identity"))
        for name, one in _mapping(raw, "destinations").items():
            wanted = one.get("sources") if isinstance(one, dict) else None
            for index, source in enumerate(wanted if isinstance(wanted, list) else []):
                path = ("destinations", name, "sources", index)
                if isinstance(source, str) and source not in sources and path not in self.unknown:
                    self.tree.fault(path, f"unknown source; {suggest(source, list(sources))}")
            self._expressions(("destinations", name), one)

    def _between(self, settings: Mapping[str, BaseModel], sources: Mapping[str, Any]) -> None:
        for name, one in settings.items():
            if isinstance(one, Settings):
                for key, what in one.faults(list(sources)):
                    self.tree.fault(("destinations", name, "settings", key), what)

    def _expressions(self, above: Path, destination: Any) -> None:
        filters = destination.get("filters") if isinstance(destination, dict) else None
        texts: dict[Path, Any] = {(*above, "filter", "where"): _mapping(destination, "filter").get("where")}
        for index, one in enumerate(filters if isinstance(filters, list) else []):
            texts[*above, "filters", index, "if"] = one.get("if") if isinstance(one, dict) else None
        for path, text in texts.items():
            if isinstance(text, str) and path not in self.unknown:
                try:
                    compile_filter(text)
                except FilterError as error:
                    self.tree.fault(path, self._said_of(path, error))

    def _said_of(self, path: Path, error: FilterError) -> str:
        """A fault quotes the expression, which may hold a secret where a variable stood."""
        if path not in self.filled:
            return str(error)
        return (
            f"is no expression once its variables are filled in (character {error.place + 1}); put a variable in quotes"
        )

    def _key_ids(self, raw: Any) -> None:
        """A token request names only its key."""
        owners: dict[str, Path] = {}
        for name, source in _mapping(raw, "sources").items():
            for client, one in _mapping(source, "oauth_clients").items():
                for key_id in _mapping(one, "keys"):
                    path: Path = ("sources", name, "oauth_clients", client, "keys", key_id)
                    if owners.setdefault(key_id, path) != path:
                        self.tree.fault(path, f"is also a key id of source {owners[key_id][1]}; give each key its own")

    def _id_types(self, identity: dict[str, Any]) -> None:
        """Priorities name types that there are, and built-in types stay what they are."""
        types = _mapping(identity, "types")
        known = sorted({*BUILT_IN, *types})
        priority = identity.get("priority")
        for index, name in enumerate(priority if isinstance(priority, list) else []):
            path: Path = ("identity", "priority", index)
            if isinstance(name, str) and name not in known and path not in self.unknown:
                self.tree.fault(path, f"unknown id type; {suggest(name, known)}")
        for name, collection in (BUILT_IN | LEGACY).items():
            path = ("identity", "types", name, "collection")
            if _mapping(types, name).get("collection", collection) != collection and path not in self.unknown:
                self.tree.fault(path, f"{name} names {collection}; leave it out")


def _without_blanks(raw: Any) -> Any:
    """A section whose lines are all commented out counts as left out, in the file and in each destination."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        return raw
    whole = {key: value for key, value in raw.items() if value is not None}
    if isinstance(whole.get("destinations"), dict):
        whole["destinations"] = {
            name: {key: value for key, value in one.items() if value is not None} if isinstance(one, dict) else one
            for name, one in whole["destinations"].items()
        }
    return whole


def _whole_mappings(given: Any) -> Sequence[MappingConfig] | None:
    """None unless all of them have their shape; what is wrong with it is told already."""
    if not isinstance(given, list):
        return None
    try:
        return [MappingConfig.model_validate(one) for one in given]
    except ValidationError:
        return None


def _are_names(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(one, str) for one in given)


def _mapping(raw: Any, name: str) -> dict[str, Any]:
    found = raw.get(name) if isinstance(raw, dict) else None
    return found if isinstance(found, dict) else {}


def _text_at(raw: Any, path: Path) -> str:
    for part in path:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return ""
    return raw if isinstance(raw, str) else ""
