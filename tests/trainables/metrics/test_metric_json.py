"""Answers that are to be JSON."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from trainables.errors import InputError
from trainables.metrics import Answer
from trainables.metrics.structured import JsonSchema, JsonValid

DEEP = "[" * 100_000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


def score(metric, *texts):
    return metric.score([Answer("", text, "") for text in texts]).tolist()


@pytest.fixture
def schema(tmp_path):
    def write(content):
        path = tmp_path / "schema.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return JsonSchema(schema=path)

    return write


@settings(deadline=None, max_examples=40)
@given(JSON)
def test_what_is_written_as_json_is_json_in_a_fence_too(value):
    text = json.dumps(value)
    fences = f"```json\n{text}\n```", f"Here it is:\n\n```\n{text}\n```\nDone.", f"```json\n{text}"
    assert score(JsonValid(), text, *fences) == [1, 1, 1, 1]


def test_a_fence_inside_of_json_is_a_part_of_it():
    assert score(JsonValid(), json.dumps({"code": "```\nx\n```"})) == [1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{'a': 1}",
        "NaN",
        "[Infinity]",
        "{} {}",
        "```json\n{\n```",
        "text {}",
        DEEP,
        f"```\n{DEEP}\n```",
        "9" * 5000,
        "\ud800",
        "[1,]",
    ],
)
def test_what_is_no_json(text):
    assert score(JsonValid(), text) == [0]


def test_answers_that_a_schema_allows(schema):
    texts = (
        '{"name": "Ada", "age": 36}',
        '```json\n{"name": "Ada"}\n```',
        '{"name": 1}',
        '{"name": "", "age": -1}',
        '{"name": "", "x": 1}',
        "[]",
        "no",
    )
    assert score(schema(PERSON), *texts) == [1, 1, 0, 0, 0, 0, 0]


@settings(deadline=None, max_examples=40)
@given(JSON)
def test_a_schema_allows_what_jsonschema_says(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("schemas") / "schema.json"
    path.write_text(json.dumps(PERSON))
    wanted = Draft202012Validator(PERSON).is_valid(value)
    assert score(JsonSchema(schema=path), json.dumps(value)) == [wanted]


def test_a_deep_answer_to_a_recursive_schema_is_not_allowed(schema):
    nested = schema({"type": "array", "items": {"$ref": "#"}})
    assert score(nested, "[[[]]]", "[[1]]", "[" * 900 + "]" * 900) == [1, 0, 0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot read"),
        (DEEP, "cannot read"),
        ("[]", "must hold an object, got list"),
        ({"type": "strin"}, "no JSON Schema: at type: 'strin' is not valid under any"),
        (
            {"properties": {"a": {"minimum": "x"}}},
            "at properties/a/minimum: 'x' is not of type 'number'",
        ),
        ({"$ref": "#/$defs/none"}, "refers to '#/$defs/none', which is not in it"),
        (
            {"properties": {"a": {"$ref": "http://127.0.0.1:9/x.json"}}},
            "refers to 'http://127.0.0.1:9/x.json', which",
        ),
        ({"$ref": "#"}, "refers to itself without end"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema, content, said):
    with pytest.raises(InputError, match="^json_schema.schema: ") as error:
        schema(content)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_schema_of_another_draft_and_of_drafts(schema):
    draft4 = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "minimum": 3,
        "exclusiveMinimum": True,
    }
    assert score(schema(draft4), "3", "4") == [0, 1]
    assert score(
        schema({"$ref": "https://json-schema.org/draft/2020-12/schema"}),
        '{"type": "object"}',
        '{"type": 1}',
    ) == [1, 0]
    assert score(schema("true"), "3", "x") == [1, 0]
