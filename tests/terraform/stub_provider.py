"""Stubs of the Terraform providers google and google-beta, which only return their schemas.

`terraform validate` and `terraform test` with `mock_provider` only request a provider's schema. These stubs serve the
schemas in google.schema.json over Terraform's plugin protocol 6
(https://github.com/hashicorp/terraform/blob/main/docs/plugin-protocol/tfplugin6.0.proto; the PyPI package `tf` contains
the generated messages). With TF_REATTACH_PROVIDERS, Terraform connects to a running provider instead of installing and
starting one (https://developer.hashicorp.com/terraform/plugin/debugging). To use them by hand:

    python tests/terraform/stub_provider.py FOLDER &    prints the value of TF_REATTACH_PROVIDERS; ends with its stdin
    cd terraform && terraform init -backend=false && terraform validate && terraform test
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped, unused-ignore]
from tf.gen import tfplugin_pb2 as pb  # type: ignore[import-not-found, unused-ignore]
from tf.gen import tfplugin_pb2_grpc as rpc  # type: ignore[import-not-found, unused-ignore]

SCHEMA = Path(__file__).with_name("google.schema.json")
NESTING = {
    "list": pb.Schema.NestedBlock.LIST,
    "set": pb.Schema.NestedBlock.SET,
    "single": pb.Schema.NestedBlock.SINGLE,
}


def block_message(block: dict[str, Any]) -> Any:
    """A block of `terraform providers schema -json` as the protocol's message."""
    message = pb.Schema.Block()
    for name, attribute in block["attributes"].items():
        flags = {flag: attribute.get(flag, False) for flag in ("required", "optional", "computed")}
        message.attributes.append(pb.Schema.Attribute(name=name, type=json.dumps(attribute["type"]).encode(), **flags))
    for name, nested in block.get("block_types", {}).items():
        limits = {limit: nested.get(limit, 0) for limit in ("min_items", "max_items")}
        message.block_types.append(
            pb.Schema.NestedBlock(
                type_name=name,
                block=block_message(nested["block"]),
                nesting=NESTING[nested["nesting_mode"]],
                **limits,
            )
        )
    return message


def schema_message(schema: dict[str, Any]) -> Any:
    return pb.Schema(version=schema["version"], block=block_message(schema["block"]))


class StubProvider(rpc.ProviderServicer):  # type: ignore[misc, unused-ignore]
    """Implements the calls for validation; the base class answers all others with UNIMPLEMENTED."""

    def __init__(self, tables: dict[str, Any]) -> None:
        # Without this, Terraform asks for the schemas at the start of each run of a test.
        once = pb.ServerCapabilities(get_provider_schema_optional=True)
        self.schemas = pb.GetProviderSchema.Response(
            provider=schema_message(tables["provider"]), server_capabilities=once
        )
        for name, schema in tables["resource_schemas"].items():
            self.schemas.resource_schemas[name].CopyFrom(schema_message(schema))
        for name, schema in tables["data_source_schemas"].items():
            self.schemas.data_source_schemas[name].CopyFrom(schema_message(schema))

    def GetProviderSchema(self, request: Any, context: Any) -> Any:  # noqa: N802 (the protocol's names)
        return self.schemas

    def ValidateProviderConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ValidateDataResourceConfig.Response()

    def StopProvider(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.StopProvider.Response()


def start(tables: dict[str, Any], socket: Path) -> tuple[grpc.Server, dict[str, Any]]:
    """Start a server of one provider on a Unix socket. Returns it, and its entry in TF_REATTACH_PROVIDERS."""
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    rpc.add_ProviderServicer_to_server(StubProvider(tables), server)
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    address = {"Network": "unix", "String": str(socket)}
    return server, {"Protocol": "grpc", "ProtocolVersion": 6, "Pid": os.getpid(), "Test": True, "Addr": address}


def serve(folder: Path) -> None:
    """Serve each provider on a Unix socket in `folder`, print TF_REATTACH_PROVIDERS, and end with stdin."""
    providers = json.loads(SCHEMA.read_text())["provider_schemas"]
    started = {name: start(tables, folder / Path(name).name) for name, tables in providers.items()}
    print(json.dumps({name: reattach for name, (_, reattach) in started.items()}), flush=True)
    sys.stdin.read()
    for server, _ in started.values():
        server.stop(grace=0)


if __name__ == "__main__":
    serve(Path(sys.argv[1]).absolute())
