"""Recipes that are made up, in the form of OpenAI's guide to fine-tuning chat models: a title and ingredients with amounts; asked for
are the ingredients alone.
"""

import json
import random

SYSTEM = "You are a recipe assistant. Name the ingredients."
FOOD = (
    "bread butter garlic salt pepper rice beans onion carrot milk cream flour sugar eggs cheese ham chicken beef"
    " oil honey lemon apple banana tomato potato corn oats nuts mint basil"
).split()
AMOUNTS = ("1 cup", "2 cups", "1/2 cup", "1 tsp", "3 tbsp", "1 can", "2 lb")
WAYS = ("", ", chopped", ", fresh", ", melted", " to taste", ", sliced")
DISHES = ("soup", "pie", "salad", "bake", "stew", "cake")

Conversation = dict[str, list[dict[str, str]]]


def conversations(count: int, seed: int = 0) -> list[Conversation]:
    """Different ones, always the same of a seed."""
    drawn, found = random.Random(seed), {}
    while len(found) < count:
        names = drawn.sample(FOOD, drawn.randint(2, 4))
        lines = [f"{drawn.choice(AMOUNTS)} {name}{drawn.choice(WAYS)}" for name in names]
        title = f"{names[0].title()} {drawn.choice(DISHES).title()}"
        asked = f"Title: {title}\n\nIngredients: {json.dumps(lines)}\n\nGeneric ingredients: "
        said = (("system", SYSTEM), ("user", asked), ("assistant", json.dumps(names)))
        found[asked] = {"messages": [{"role": role, "content": text} for role, text in said]}
    return list(found.values())
