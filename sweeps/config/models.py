"""The `model` section of the sweep file: one base model, or several of which each trial has one."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from trainables.errors import InputError
from trainables.models.config import ModelConfig
from trainables.models.files import fingerprint


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(ModelConfig):
    """`model` in the sweep file; the other settings hold for every base."""

    # as ModelConfig.name; or {choice: [...]} of such names; or {choice: {WORD: NAME}}, where trials
    # are told by the words
    name: Any = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            _check_choice(self.name)
            for setting in ("revision", "sha256"):
                if getattr(self, setting) is not None:
                    raise InputError(
                        f"model.{setting}: is of one base model, and model.name gives a choice of"
                        f" {len(self.choice)}"
                    )
        super().__post_init__()

    @property
    def choice(self) -> Mapping[str, str]:
        """Where each base is found, by the word for it; empty where there is only one."""
        if isinstance(self.name, str):
            return {}
        given = self.name["choice"]
        return dict(given) if isinstance(given, Mapping) else {name: name for name in given}

    @property
    def words(self) -> str:
        """What is fine-tuned, in words."""
        if not self.choice:
            return self.name
        return f"a choice of {', '.join(self.choice)}"

    def base(self, word: str) -> ModelConfig:
        """One of the bases; "" is the only one. Raises InputError for a word that stands for
        none.
        """
        if bool(word) != bool(self.choice) or (word and word not in self.choice):
            allowed = ", ".join(self.choice) or "none, as model.name is one base model"
            raise InputError(f"model: must be one of {allowed}, got {word!r}")
        one: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(ModelConfig)}
        one["name"] = self.choice[word] if word else self.name
        return ModelConfig(**one)

    def fingerprints(self) -> dict[str, str]:
        """What `fingerprint` gives of each base; of several, by the words for them too."""
        found: dict[str, str] = {}
        for word in self.choice or [""]:
            of_one = fingerprint(self.base(word))
            found |= {f"{_inside(word)}{name}": each for name, each in of_one.items()}
        return found

    def of_each(self, fingerprints: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """What `fingerprints` gave, by the words for the bases; "" is the only one."""
        return {
            word: {
                name.removeprefix(_inside(word)): each
                for name, each in fingerprints.items()
                if name.startswith(_inside(word))
            }
            for word in self.choice or [""]
        }

    def located(self, locate: Any) -> "ModelsConfig":
        """With `locate` of each name; the words for them stay."""
        if not self.choice:
            return replace(self, name=locate(self.name))
        found = {word: locate(name) for word, name in self.choice.items()}
        return replace(self, name={"choice": found})


def _inside(word: str) -> str:
    """What the names of one base's files begin with among those of several."""
    return f"{word}: " if word else ""


def _check_choice(given: object) -> None:
    choice = given.get("choice") if isinstance(given, Mapping) and len(given) == 1 else None
    names = [*choice.values()] if isinstance(choice, Mapping) else choice
    words = [*choice] if isinstance(choice, Mapping) else choice
    if not isinstance(names, list) or not isinstance(words, list):
        raise InputError(
            f"model.name: must be a base model or {{choice: [A, B]}} of several, got"
            f" {'null' if given is None else repr(given)}"
        )
    if wrong := [each for each in (*names, *words) if not isinstance(each, str) or not each]:
        raise InputError(f"model.name: a choice is of names of base models, got {wrong[0]!r}")
    if len(names) < 2 or len({*names}) < len(names):
        raise InputError(
            f"model.name: a choice is of two or more different base models, got {names}"
        )
