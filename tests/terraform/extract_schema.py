"""Extract, from two PyPI packages, the argument schema of the google and google-beta resources that terraform/ uses.

Terraform checks a configuration against the provider's schema. The provider is downloaded from a registry, which a test
should not depend on. HashiCorp publishes the same information on PyPI: the CDK's bindings of the google provider are
generated from the provider's schema, and each generated class states for every argument whether it is required,
optional or computed. This script reads it from the TypeScript source embedded in the package, and writes it in the
format of `terraform providers schema -json`, only for the resources that terraform/*.tf uses:

    python tests/terraform/extract_schema.py        writes google.schema.json beside this file

Run it after using a new resource, or to use a newer provider. stub_provider.py serves the result. The schema contains
names, nesting and types; it does not contain enum values or rules between arguments.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = {  # of version 6.50 of the providers
    "google": "cdktf-cdktf-provider-google==16.12.1",
    "google-beta": "cdktf-cdktf-provider-google-beta==16.12.1",
}
REGISTRY = "registry.terraform.io/hashicorp/"
PROVIDER_ARGUMENTS = ("project", "region", "zone", "billing_project", "user_project_override")
HERE = Path(__file__).resolve().parent
MODULE = HERE.parents[1] / "terraform"

# In a generated class, each argument has a comment, followed by the field or getter with its type:
#     // ack_deadline_seconds - computed: true, optional: true, required: false
#     private _ackDeadlineSeconds?: number;
ARGUMENT = re.compile(
    r"^ *// (?P<name>\w+) - computed: (?P<computed>true|false), optional: (?P<optional>true|false), "
    r"required: (?P<required>true|false)\n(?P<code>.*?)(?=^ *// \w+ - computed:|\Z)",
    re.M | re.S,
)
NESTED = re.compile(r'new (?P<struct>\w+?)(?P<kind>OutputReference|List)\(this, "\w+"(?:, (?P<is_set>true|false))?\)')
GETTER = re.compile(r"this\.get(\w+?)Attribute\(|new cdktf\.(\w+Map)\(")
FIELD = re.compile(r"private _\w+\?: (.+?); *\n")
GETTER_TYPES: dict[str, Any] = {
    "String": "string",
    "Number": "number",
    "Boolean": "bool",
    "List": ["list", "string"],
    "NumberList": ["list", "number"],
    "StringMap": ["map", "string"],
    "NumberMap": ["map", "number"],
    "BooleanMap": ["map", "bool"],
}
FIELD_TYPES: dict[str, Any] = {
    "string": "string",
    "number": "number",
    "boolean | cdktf.IResolvable": "bool",
    "string[]": ["list", "string"],
    "number[]": ["list", "number"],
    "{ [key: string]: string }": ["map", "string"],
}


class Source:
    """The TypeScript source of one resource, data source or provider: its classes by name."""

    def __init__(self, javascript: str) -> None:
        """Read the source map that the compiler appended to `javascript`."""
        source_map = json.loads(base64.b64decode(javascript.rsplit("base64,", 1)[1]))
        (self.text,) = source_map["sourcesContent"]
        classes = re.finditer(r"^export class (\w+) extends cdktf\.(\w+) \{\n(.*?)^\}", self.text, re.M | re.S)
        self.bodies = {}
        for name, base, body in (found.groups() for found in classes):
            self.bodies[name] = body
            if base.startswith("Terraform"):
                self.main = name

    def block(self, name: str, only: tuple[str, ...] = ()) -> dict[str, Any]:
        """The block of the class `name` in Terraform's JSON notation. `only`: names of the attributes to include."""
        attributes: dict[str, Any] = {}
        blocks: dict[str, Any] = {}
        for argument in ARGUMENT.finditer(self.bodies[name]):
            if only and argument["name"] not in only:
                continue
            nested = NESTED.search(argument["code"])
            flags = {flag: True for flag in ("required", "optional", "computed") if argument[flag] == "true"}
            if nested and "required" not in flags and "optional" not in flags:
                attributes[argument["name"]] = {"type": ["list", self.object_type(nested["struct"])], **flags}
            elif nested:
                blocks[argument["name"]] = self.nested_block(argument["name"], nested, "required" in flags)
            else:
                attributes[argument["name"]] = {"type": attribute_type(argument["code"]), **flags}
        block: dict[str, Any] = {"attributes": attributes}
        if blocks:
            block["block_types"] = blocks
        return block

    def nested_block(self, name: str, nested: re.Match[str], required: bool) -> dict[str, Any]:
        """A block in a block. It can occur several times if the class contains a list, otherwise once."""
        block: dict[str, Any] = {"block": self.block(nested["struct"] + "OutputReference")}
        if name == "timeouts":
            return {"nesting_mode": "single", **block}
        block["nesting_mode"] = "set" if nested["is_set"] == "true" else "list"
        if required:
            block["min_items"] = 1
        if nested["kind"] == "OutputReference":
            block["max_items"] = 1
        return block

    def object_type(self, struct: str) -> list[Any]:
        """The type of a computed list's elements, which are plain objects."""
        fields = {}
        for argument in ARGUMENT.finditer(self.bodies[struct + "OutputReference"]):
            nested = NESTED.search(argument["code"])
            inner = ["list", self.object_type(nested["struct"])] if nested else attribute_type(argument["code"])
            fields[argument["name"]] = inner
        return ["object", fields]


def attribute_type(code: str) -> Any:
    """A type in Terraform's JSON notation: "string", ["map", "string"], ..."""
    if field := FIELD.match(code.lstrip()):
        kind = FIELD_TYPES[field[1]]
        return ["set", kind[1]] if "cdktf.Fn.tolist(" in code else kind
    getter = GETTER.search(code)
    if not getter:
        raise ValueError(f"no type found in {code[:200]!r}")
    return GETTER_TYPES[getter[1] or getter[2]]


def used(keyword: str, provider: str) -> list[str]:
    """The types of `provider` that terraform/*.tf uses. `keyword`: "resource" or "data".

    The provider of a block is its first argument `provider`, or google by default.
    """
    text = "\n".join(path.read_text() for path in sorted(MODULE.glob("*.tf")))
    blocks = re.findall(rf'^{keyword} "(google_\w+)" "\w+" \{{\n(?:  provider += (\S+)\n)?', text, re.M)
    return sorted({name for name, named in blocks if (named or "google") == provider})


def sources(provider: str) -> Iterator[tuple[str, Source]]:
    """(type or "provider", its source) of each used type of `provider`, from the wheel that pip downloads."""
    wanted = {"provider"}
    for name in used("resource", provider):  # the folders of the beta provider keep the prefix
        wanted |= {name.removeprefix("google_").replace("_", "-"), name.replace("_", "-")}
    wanted |= {name.replace("_", "-").replace("google-", "data-google-", 1) for name in used("data", provider)}
    package = PACKAGES[provider]
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (tarball,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
            archive.extract(tarball, folder)
        with tarfile.open(Path(folder, tarball)) as archive:
            for member in archive:
                parts = Path(member.name).parts
                if parts[1:2] == ("lib",) and parts[2] in wanted and parts[3:] == ("index.js",):
                    stream = archive.extractfile(member)
                    assert stream
                    yield parts[2], Source(stream.read().decode())


def tables_of(provider: str) -> dict[str, Any]:
    """The schemas of a provider and of its used types. Exits if the package does not contain a type."""
    tables: dict[str, Any] = {"provider": {}, "resource_schemas": {}, "data_source_schemas": {}}
    for folder, source in sources(provider):
        if folder == "provider":
            tables["provider"] = {"version": 0, "block": source.block(source.main, only=PROVIDER_ARGUMENTS)}
            continue
        found = re.search(r'tfResourceType = "(\w+)"', source.text)
        assert found
        table = tables["data_source_schemas" if folder.startswith("data-") else "resource_schemas"]
        table[found[1]] = {"version": 0, "block": source.block(source.main)}
    found_types = {*tables["resource_schemas"], *tables["data_source_schemas"]}
    missing = {*used("resource", provider), *used("data", provider)} - found_types
    if missing:
        raise SystemExit(f"{PACKAGES[provider]} has no {', '.join(sorted(missing))}")
    return tables


def schema() -> dict[str, Any]:
    """The schemas of all providers, in the format of `terraform providers schema -json`."""
    return {"format_version": "1.0", "provider_schemas": {REGISTRY + name: tables_of(name) for name in PACKAGES}}


def write(extract: dict[str, Any], path: Path) -> None:
    """Write one resource per line, so that diffs are readable and the file is small."""
    text = json.dumps(extract, separators=(",", ":"), sort_keys=True)
    path.write_text(re.sub(r'("(?:google_\w+|provider|resource_schemas)":\{)', r"\n\1", text) + "\n")


if __name__ == "__main__":
    write(schema(), HERE / "google.schema.json")
