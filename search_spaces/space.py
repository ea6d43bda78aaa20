"""A search space: which hyperparameters vary, how, and which exist only after a choice.

    method:                                     # a choice whose branches bring parameters of their
    own
      full:
        learning_rate: {log_uniform: [1e-5, 3e-4]}
      lora:
        learning_rate: {log_uniform: [1e-4, 3e-3]}
        rank: {choice: [4, 8, 16]}
        alpha: 2 * rank                         # tied to another parameter
    weight_decay: 0.01                          # fixed

The tree becomes one flat list of parameters, each with the branches that bring it (`when`,
outermost first), so that a walk down the list meets every choice before what depends on it. A
*path* is one way to take all branches; a parameter may be set in several branches, but once on each
path.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose, prod
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search_spaces.domains import (
    KINDS,
    Choice,
    Domain,
    Int,
    LogUniform,
    Uniform,
    Value,
    is_number,
    is_plain,
    read_domain,
    same,
    show,
)
from search_spaces.errors import SpaceError, did_you_mean
from search_spaces.expressions import evaluate, is_expression, is_name, names_in

Suggest = Callable[[str, Domain], object]
_BRANCH = re.compile(r"[\w~./:@-]+")  # such as a method, or a base model's name or folder
PRESETS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
When = tuple[tuple[str, Value], ...]  # (("method", "lora"), ("init", "pissa"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    value: Value

    def __str__(self) -> str:
        return f"fixed {show(self.value)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tied:
    text: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"= {self.text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    name: str
    when: When
    what: Domain | Fixed | Tied
    where: str

    @property
    def key(self) -> str:
        """Unique in the space: `rank` in the branch `lora` is `lora.rank`."""
        return ".".join([*(show(branch) for _, branch in self.when), self.name])

    def is_active(self, values: Mapping[str, Value]) -> bool:
        return all(
            choice in values and same(values[choice], branch) for choice, branch in self.when
        )

    def may_be_active(self, values: Mapping[str, Value]) -> bool:
        """No choice among the values rules the parameter out."""
        return all(same(values.get(choice, branch), branch) for choice, branch in self.when)


@dataclass(frozen=True, slots=True)
class Space:
    """Made with `from_dict` or `load_space`; says nothing about how values are chosen: `sample` is
    given `suggest`.
    """

    _parameters: tuple[Parameter, ...]

    @classmethod
    def from_dict(cls, tree: object, where: str = "search.space") -> "Space":
        """Read and check a whole tree; SpaceError with the dotted path of whatever is wrong."""
        if not isinstance(tree, Mapping):
            raise SpaceError(
                f"{where}: a space maps parameter names to what they may be, got {tree!r}"
            )
        if not tree:
            raise SpaceError(f"{where}: the space is empty; give at least one parameter")
        parameters = list(_read(tree, (), where))
        names = {parameter.name for parameter in parameters}
        space = cls(tuple(_read_text(parameter, names) for parameter in parameters))
        space._check_set_once()
        space._check_tied()
        return space

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """What to show a person, in order: [("method", "one of full, lora"), ("lora.alpha", "= 2 *
        rank"), …].
        """
        return [(parameter.key, str(parameter.what)) for parameter in self._parameters]

    @property
    def domains(self) -> dict[str, Domain]:
        """The domain of every free parameter, by its key."""
        return {parameter.key: domain for parameter, domain in self._free()}

    def sample(self, suggest: Suggest) -> dict[str, Value]:
        """One configuration, flat and in the order of the YAML: {"method": "lora", "rank": 8,
        "alpha": 16, …}.

        `suggest(key, domain)` is called for each free parameter on the path that its answers take.
        One key always has one domain: `learning_rate` of the branch `lora` has the key
        "lora.learning_rate".
        """
        values: dict[str, Value] = {}
        for parameter, domain in self._free():
            if parameter.is_active(values):
                suggested = suggest(parameter.key, domain)
                values[parameter.name] = _match(domain, suggested, parameter.where)
        active = self._active(values)
        settled = {
            name: _settle(name, active, values, parameter.where)
            for name, parameter in active.items()
        }
        return {
            name: list(value) if isinstance(value, list | tuple) else value
            for name, value in settled.items()
        }

    def middle(self) -> dict[str, Value]:
        """The middle of every range and the first of every choice: what one would train without a
        search.
        """
        return self.sample(lambda key, domain: domain.middle())

    def encode(
        self, params: Mapping[str, object], where: str = "configuration"
    ) -> dict[str, Value]:
        """The reverse of `sample` for a configuration, possibly partial, to try first: {suggest
        key: value}.

        SpaceError if a name is not on the path that the configuration takes, a value lies outside
        its domain, or a fixed or tied value is contradicted.
        """
        values: dict[str, Value] = {}
        encoded: dict[str, Value] = {}
        for parameter, domain in self._free():
            if parameter.name in params and parameter.is_active(values):
                value = _match(domain, params[parameter.name], f"{where}.{parameter.name}")
                values[parameter.name] = encoded[parameter.key] = value
        active = self._active(values)
        for name, given in params.items():
            if name not in active:
                raise SpaceError(f"{where}.{name}: {self._why_inactive(name, values)}")
            own = _settle(name, active, values, f"{where}.{name}")
            if not _agree(own, given):
                raise SpaceError(
                    f"{where}.{name}: got {given!r}, but it is {show(own)} ({active[name].what})"
                )
        return encoded

    def configurations(self) -> Iterator[dict[str, Value]]:
        """Every way to take the branches and set the free parameters of a finite space, one after
        another, each as `encode` gives it.
        """
        assert self.size() is not None, "a float varies"
        free = list(self._free())

        def walk(
            number: int, values: dict[str, Value], encoded: dict[str, Value]
        ) -> Iterator[dict[str, Value]]:
            if number == len(free):
                yield encoded
                return
            parameter, domain = free[number]
            if not parameter.is_active(values):
                yield from walk(number + 1, values, encoded)
                return
            assert isinstance(domain, Int | Choice)
            for value in domain.values:
                yield from walk(
                    number + 1, {**values, parameter.name: value}, {**encoded, parameter.key: value}
                )

        return walk(0, {}, {})

    def size(self) -> int | None:
        """How many configurations there are; None if a float varies."""
        if any(isinstance(parameter.what, LogUniform | Uniform) for parameter in self._parameters):
            return None
        return self._count(())

    def _count(self, when: When) -> int:
        counts = []
        for parameter, domain in self._free():
            if parameter.when != when:
                continue
            if isinstance(domain, Choice):
                below = ((*when, (parameter.name, value)) for value in domain.values)
                counts.append(sum(map(self._count, below)))
            elif isinstance(domain, Int):
                counts.append(len(domain))
        return prod(counts)

    def _free(self) -> Iterator[tuple[Parameter, Domain]]:
        for parameter in self._parameters:
            if isinstance(parameter.what, Domain):
                yield parameter, parameter.what

    def _active(self, values: Mapping[str, Value]) -> dict[str, Parameter]:
        """What is set on the path that these free values take, by name."""
        return {each.name: each for each in self._parameters if each.is_active(values)}

    def _named(self, name: str) -> list[Parameter]:
        return [parameter for parameter in self._parameters if parameter.name == name]

    def _why_inactive(self, name: str, values: Mapping[str, Value]) -> str:
        named = self._named(name)
        if not named:
            known = sorted({parameter.name for parameter in self._parameters})
            return f"unknown parameter.{did_you_mean(name, known)} The space has {', '.join(known)}"
        for parameter in named:
            if parameter.may_be_active(values):
                choice = next(choice for choice, _ in parameter.when if choice not in values)
                return f"only some branches of {choice!r} have it; give {choice!r} as well"
        return _off_path(named, values)

    def _check_set_once(self) -> None:
        for index, parameter in enumerate(self._parameters):
            for earlier in self._parameters[:index]:
                if earlier.name == parameter.name and earlier.may_be_active(dict(parameter.when)):
                    raise SpaceError(
                        f"{parameter.where}: set twice on one path, also at {earlier.where}"
                    )

    def _check_tied(self) -> None:
        for parameter in self._parameters:
            if isinstance(parameter.what, Tied):
                for name in parameter.what.names:
                    self._check_name(name, parameter, parameter.what.text)
                self._check_circle(parameter, dict(parameter.when), [])

    def _check_name(self, name: str, parameter: Parameter, text: str) -> None:
        """A tied parameter may use what has a number on every path that it is on."""
        where, when = parameter.where, dict(parameter.when)
        named = self._named(name)
        if not named:
            raise SpaceError(self._unknown_name(name, parameter, text))
        if not self._is_covered(name, when):
            places = ", ".join(other.where for other in named)
            raise SpaceError(
                f"{where}: {name!r} in {text!r} is not set on every path here, only at {places}"
            )
        for other in named:
            if not is_name(text) and other.may_be_active(when) and not _may_be_number(other.what):
                raise SpaceError(f"{where}: {name!r} in {text!r} is not a number but {other.what}")

    def _unknown_name(self, name: str, parameter: Parameter, text: str) -> str:
        when = dict(parameter.when)
        others = {other.name for other in self._parameters} - {parameter.name}
        visible = sorted(other for other in others if self._is_covered(other, when))
        hint = did_you_mean(name, visible) or (
            f" It may use {', '.join(visible)}; plain text is written {{choice: [{text!r}]}}"
        )
        return f"{parameter.where}: unknown name {name!r} in {text!r}.{hint}"

    def _is_covered(self, name: str, values: Mapping[str, Value]) -> bool:
        """Whether every path that takes these branches sets the parameter."""
        possible = [parameter for parameter in self._named(name) if parameter.may_be_active(values)]
        if not possible:
            return False
        if any(parameter.is_active(values) for parameter in possible):
            return True
        # What is not yet chosen is asked from the outside in, so that the choice itself is on the
        # path.
        undecided = next(choice for choice, _ in possible[0].when if choice not in values)
        branches = self._branches(undecided, values)
        return all(self._is_covered(name, {**values, undecided: each}) for each in branches)

    def _branches(self, choice: str, values: Mapping[str, Value]) -> Sequence[Value]:
        """What is chosen from where these values are taken."""
        return next(
            domain.values
            for parameter, domain in self._free()
            if parameter.name == choice
            and parameter.is_active(values)
            and isinstance(domain, Choice)
        )

    def _check_circle(
        self, parameter: Parameter, branches: Mapping[str, Value], trail: list[str]
    ) -> None:
        if parameter.name in trail:
            circle = " -> ".join([*trail[trail.index(parameter.name) :], parameter.name])
            raise SpaceError(f"{parameter.where}: tied in a circle: {circle}")
        if isinstance(parameter.what, Tied):
            for other in self._parameters:
                if other.name in parameter.what.names and other.may_be_active(branches):
                    self._check_circle(
                        other, {**branches, **dict(other.when)}, [*trail, parameter.name]
                    )


def _off_path(named: Sequence[Parameter], values: Mapping[str, Value]) -> str:
    """That the path of these values has none of the parameters, in words."""
    choices = [choice for parameter in named for choice, _ in parameter.when]
    taken = {choice: values[choice] for choice in choices if choice in values}
    paths = " or ".join(dict.fromkeys(_describe(parameter.when) for parameter in named))
    return f"not a parameter where {_describe(tuple(taken.items()))}, only where {paths}"


def load_space(source: object, where: str = "search.space", folder: Path | None = None) -> Space:
    """A space from a mapping that stands inline, a preset's name, or the path of a YAML file
    (relative to `folder`).

    SpaceError if there is no such preset or file, or what it holds is wrong.
    """
    if isinstance(source, Mapping):
        return Space.from_dict(source, where)
    if not isinstance(source, str):
        raise SpaceError(
            f"{where}: give parameters, a preset's name or the path of a YAML file, got {source!r}"
        )
    tree = load_tree(source, where, folder)
    try:
        return Space.from_dict(tree, "space")
    except SpaceError as error:
        raise SpaceError(f"{where}: {_path(source, folder)}: {error}") from None


def load_tree(source: str, where: str = "search.space", folder: Path | None = None) -> object:
    """What a preset or a YAML file (relative to `folder`) holds, unchecked: the mapping that could
    stand inline.

    SpaceError if there is no such preset or file, or it is not YAML.
    """
    path = _path(source, folder)
    if not path.is_file():
        known = ("auto", *PRESETS)
        hint = did_you_mean(source, known)
        raise SpaceError(
            f"{where}: no preset and no file {source!r}.{hint} Presets: {', '.join(known)}"
        )
    try:
        # OmegaConf reads 1e-5 as a number, which YAML 1.1 takes for text, and refuses a key that
        # stands twice.
        given = OmegaConf.load(path)
        if "oc.env" in str(OmegaConf.to_container(given, resolve=False)):
            raise SpaceError(f"{where}: {path} asks for the environment (oc.env): give the value")
        return OmegaConf.to_container(given, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise SpaceError(
            f"{where}: {path} is not readable: {' '.join(str(error).split())}"
        ) from error


def _path(source: str, folder: Path | None) -> Path:
    return PRESETS.get(source) or (folder or Path()) / Path(source).expanduser()


def _read(tree: Mapping[object, object], when: When, where: str) -> Iterator[Parameter]:
    for name, value in tree.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise SpaceError(
                f"{where}: parameter names are words of letters, digits and _, got {name!r}"
            )
        if name in KINDS:
            raise SpaceError(
                f"{where}: {name!r} is a distribution and needs a parameter: NAME: {{{name}: …}}"
            )
        at = f"{where}.{name}"
        if not isinstance(value, Mapping):
            if not is_plain(value):
                raise SpaceError(
                    f"{at}: a fixed value is a finite scalar or a list of them, got {value!r}"
                )
            yield Parameter(name=name, when=when, what=Fixed(value=value), where=at)
        elif any(key in KINDS for key in value):
            yield Parameter(name=name, when=when, what=read_domain(value, at), where=at)
        else:
            yield from _read_branches(name, value, when, at)


def _read_branches(
    name: str, branches: Mapping[object, object], when: When, where: str
) -> Iterator[Parameter]:
    if not branches:
        raise SpaceError(f"{where}: empty; give a distribution ({', '.join(KINDS)}) or branches")
    if not any(content is None or isinstance(content, Mapping) for content in branches.values()):
        kind, allowed = next(iter(branches)), ", ".join(KINDS)
        raise SpaceError(
            f"{where}: unknown distribution {kind!r}.{did_you_mean(kind, KINDS)} Allowed: {allowed}"
        )
    found = [_branch(branch, content, where) for branch, content in branches.items()]
    yield Parameter(name=name, when=when, what=Choice(tuple(b for b, _ in found)), where=where)
    for branch, content in found:
        yield from _read(content, (*when, (name, branch)), f"{where}.{show(branch)}")


def _branch(
    branch: object, content: object, where: str
) -> tuple[str | int, Mapping[object, object]]:
    if not isinstance(branch, str | int) or not _BRANCH.fullmatch(show(branch)):
        raise SpaceError(
            f"{where}: a branch is named by letters, digits and ~ . / : @ _ -, got {branch!r}"
        )
    if content is not None and not isinstance(content, Mapping):
        raise SpaceError(
            f"{where}.{show(branch)}: a branch holds parameters (NAME: …) or nothing, got"
            f" {content!r}"
        )
    return branch, content or {}


def _read_text(parameter: Parameter, names: set[str]) -> Parameter:
    """A fixed string that is arithmetic becomes a tied value, or a number if it uses no
    parameter.
    """
    text = parameter.what.value if isinstance(parameter.what, Fixed) else None
    if not isinstance(text, str) or not is_expression(text, names):
        return parameter
    try:
        used = names_in(text)
        what = Tied(text=text, names=used) if used else Fixed(value=evaluate(text, {}))
    except SpaceError as error:
        raise SpaceError(f"{parameter.where}: {error}") from None
    return replace(parameter, what=what)


def _settle(
    name: str, active: Mapping[str, Parameter], values: Mapping[str, Value], where: str
) -> Value:
    """The value of a parameter on a path whose free values are given."""
    if name in values:
        return values[name]
    what = active[name].what if name in active else None
    if isinstance(what, Fixed):
        return what.value
    if isinstance(what, Tied):
        used = {other: _settle(other, active, values, where) for other in what.names}
        try:
            return evaluate(what.text, used)
        except SpaceError as error:
            raise SpaceError(f"{where}: {error}") from None
    raise SpaceError(f"{where}: follows from {name!r}; give {name!r} as well, or leave both out")


def _may_be_number(what: Domain | Fixed | Tied) -> bool:
    if isinstance(what, Choice):
        return all(map(is_number, what.values))
    return not isinstance(what, Fixed) or is_number(what.value)


def _describe(when: When) -> str:
    return " and ".join(f"{choice} is {show(branch)}" for choice, branch in when)


def _match(domain: Domain, value: object, where: str) -> Value:
    try:
        return domain.match(value)
    except SpaceError as error:
        raise SpaceError(f"{where}: {error}") from None


def _agree(own: Value, given: object) -> bool:
    return same(own, given) or is_number(own) and is_number(given) and isclose(own, given)
