"""JSON schema of hardware files, generated from the models, so that editors complete and check them.

It accepts every file that the loader accepts; rules across levels or stages (the last level is `terms: all`,
the order of `output`) are the loader's alone. `python -m fqtsim.hw.schema > hwconfigs/schema.json` writes it.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from fqtsim.hw.spec import Hardware


class _Generator(GenerateJsonSchema):
    """A key is left out, never null, and has no default; its name needs no title."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a hardware file."""
    schema = Hardware.model_json_schema(schema_generator=_Generator)
    return {"$schema": _Generator.schema_dialect, **schema}


def schema_text() -> str:
    """Return the text of hwconfigs/schema.json."""
    return json.dumps(json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
