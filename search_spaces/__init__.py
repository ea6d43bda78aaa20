"""What may vary in a sweep: distributions, branches, tied values, and presets whose ranges name
their sources.
"""

from search_spaces.auto import Setting, auto_space, rules
from search_spaces.domains import Choice, Domain, Int, LogUniform, Uniform
from search_spaces.errors import SpaceError
from search_spaces.space import PRESETS, Space, load_space, load_tree

__all__ = [
    "PRESETS",
    "Choice",
    "Domain",
    "Int",
    "LogUniform",
    "Setting",
    "Space",
    "SpaceError",
    "Uniform",
    "auto_space",
    "load_space",
    "load_tree",
    "rules",
]
