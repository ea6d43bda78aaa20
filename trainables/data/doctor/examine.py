"""All that the doctor looks for, in order."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from trainables.data.doctor.columns import column_findings
from trainables.data.doctor.contamination import overlap
from trainables.data.doctor.labels import label_findings
from trainables.data.doctor.near import near_duplicates
from trainables.data.doctor.power import power
from trainables.data.doctor.rows import Prepared
from trainables.data.doctor.secrets import secrets
from trainables.data.doctor.shift import shifts
from trainables.data.findings import Finding


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What the doctor does, with all that it compares rows with."""

    others: Mapping[str, Sequence[str]]
    """Texts that train must not hold, by what they are: general text, a benchmark."""

    @property
    def digest(self) -> str:
        content = {name: list(texts) for name, texts in self.others.items()}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __call__(self, prepared: Prepared) -> Iterator[Finding]:
        near, columns = list(near_duplicates(prepared)), list(column_findings(prepared))
        yield from _group_suggested_once(near, columns)
        yield from label_findings(prepared)
        yield from columns
        yield from shifts(prepared)
        for what, texts in self.others.items():
            yield from overlap(prepared, texts, what)
        yield from secrets(prepared)
        yield from power(prepared)


def _group_suggested_once(near: Sequence[Finding], columns: Sequence[Finding]) -> Iterator[Finding]:
    """What the near duplicates say, without a group of any column where one column is named."""
    is_named = any(each.kind == "no_group" for each in columns)
    for each in near:
        is_twice = is_named and each.setting.startswith("data.group")
        yield replace(each, setting="") if is_twice else each
