"""The OpenAPI document is valid and matches the options in the code and the responses of the service."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import requests
from PIL import Image

from devtools.server import Server, serve
from segment import options
from segment.settings import Settings
from segment.web import app as web
from segment.web import docs
from segment.web.problems import PROBLEMS

SCHEMATHESIS = Path(__file__).parent / "schemathesis.toml"


def test_options_are_those_of_the_code(server: Server) -> None:
    document = requests.get(server.url + "/openapi.json", timeout=60).json()
    parameters = document["paths"]["/segment"]["post"]["parameters"]
    assert [p["name"] for p in parameters] == list(options.describe(Settings()))
    factor = next(p["schema"] for p in parameters if p["name"] == "render_factor")
    assert factor["anyOf"][0] == {"type": "integer", "minimum": 4, "maximum": 256}


def test_defaults_are_the_servers_own() -> None:
    with serve(SEGMENT_MIN_SCORE="0.7", SEGMENT_MAX_DETECTIONS="20") as server:
        document = requests.get(server.url + "/openapi.json", timeout=60).json()
        schemas = {p["name"]: p["schema"] for p in document["paths"]["/segment"]["post"]["parameters"]}
        assert schemas["min_score"]["default"] == 0.7
        assert (schemas["max_detections"]["default"], schemas["max_detections"]["maximum"]) == (20, 20)


def test_bodies_are_named_and_have_no_fields_of_the_query(server: Server) -> None:
    """Generators make both arguments of one function, and name a body without a name after the operation."""
    document = requests.get(server.url + "/openapi.json", timeout=60).json()
    operation = document["paths"]["/segment"]["post"]
    bodies = {kind: body["schema"] for kind, body in operation["requestBody"]["content"].items()}
    for kind in ("multipart/form-data", "application/json"):
        assert bodies[kind].keys() == {"$ref"}
    form = document["components"]["schemas"][bodies["multipart/form-data"]["$ref"].rpartition("/")[2]]
    assert form["properties"].keys().isdisjoint(parameter["name"] for parameter in operation["parameters"])


def test_every_path_is_in_the_document_or_of_the_page(server: Server) -> None:
    document = requests.get(server.url + "/openapi.json", timeout=60).json()
    assert set(document["paths"]) <= set(web.ROUTES)
    left = set(web.ROUTES) - set(document["paths"])
    assert all("." in path or path in {"/", "/docs", "/detect"} for path in left)


def test_docs_show_every_option_operation_and_problem(server: Server) -> None:
    page = requests.get(server.url + "/docs", timeout=60)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for name in options.describe(Settings()):
        assert f'id="option-{name}"' in page.text
    for _, title in PROBLEMS.values():
        assert f'id="{title.lower().replace(" ", "-")}"' in page.text
    problems = re.findall(r'<tr id="[^"]*"><td>\d+</td><td>(.*?)</td><td>(.*?)</td>', page.text)
    assert {title for title, _ in problems} >= {title for _, title in PROBLEMS.values()}
    for title, about in problems:
        assert re.fullmatch(r"[A-Z][^`]{10,120}\.", about), title
        assert "in this package" not in about
    assert "built-in method" not in page.text
    assert 'src="http' not in page.text


def code(server: Server, element: str) -> str:
    """The text of an element of /docs."""
    page = requests.get(server.url + "/docs", timeout=60).text
    found = re.search(rf'<code id="{element}">(.*?)</code>', page, re.DOTALL)
    assert found
    return html.unescape(found[1])


def test_the_commands_in_docs_run_as_they_are_written(server: Server, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    addresses = {"URL": server.url, "PHOTO_URL": server.url + "/scene-1.jpg"}
    commands = code(server, "commands")
    assert all(line.startswith("curl --fail-with-body ") for line in commands.replace("\\\n", "").splitlines())
    subprocess.run(
        ["sh", "-e"], input=commands, text=True, cwd=tmp_path, env=os.environ | addresses, check=True, timeout=600
    )
    assert Image.open(tmp_path / "out.png").format == "PNG"
    assert Image.open(tmp_path / "out.webp").format == "WEBP"
    assert json.loads((tmp_path / "detections.json").read_bytes())["annotations"]
    assert zipfile.ZipFile(tmp_path / "cutouts.zip").namelist()


def test_the_command_in_deploy_runs_as_it_is_written(server: Server, photo: bytes, tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent / "deploy" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```sh\n(curl .*?)^```", guide, re.DOTALL | re.MULTILINE)
    (tmp_path / "photo.jpg").write_bytes(photo)
    for name, answer in (("gcloud", "a-token"), ("terraform", server.url)):  # stubs that print the token and the URL
        (tmp_path / name).write_text(f"#!/bin/sh\necho {answer}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=os.environ | path, check=True, timeout=600)
    assert Image.open(tmp_path / "segmented.png").size == (320, 240)


def test_the_decoder_in_docs(server: Server, photo: bytes) -> None:
    program = code(server, "decoder")
    assert len(program[program.index("def") :].splitlines()) == 10
    names: dict[str, Any] = {}
    exec(program, names)
    answer = requests.post(server.url + "/segment?format=json&min_score=0.05", files={"file": photo}, timeout=60).json()
    for found in [*answer["annotations"], *docs.DETECTIONS_SAMPLE["annotations"]]:
        mask = names["decode"](**found["segmentation"])
        assert np.array_equal(mask, pycocotools.mask.decode(found["segmentation"]))
        assert mask.sum() == found["area"]


def test_the_samples_look_like_real_answers(server: Server, photo: bytes) -> None:
    real = requests.post(server.url + "/segment?format=json", files={"file": photo}, timeout=60).json()
    sample = docs.DETECTIONS_SAMPLE
    assert set(sample) == set(real) - {"info", "licenses", "images"}
    assert list(sample["image"]) == list(real["image"])
    assert list(sample["annotations"][0]) == list(real["annotations"][0])
    problem = requests.post(server.url + "/segment?min_score=2", files={"file": photo}, timeout=60).json()
    assert problem == docs.PROBLEM_SAMPLE


def test_real_answers_fit_the_document(server: Server, photo: bytes) -> None:
    import schemathesis  # imported here: it takes seconds in each test process

    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    for form in ("rle", "polygons"):
        query = f"/segment?format=json&segmentation={form}"
        answer = requests.post(server.url + query, files={"file": photo}, timeout=60)
        assert answer.json()["annotations"]
        schema["/segment"]["POST"].validate_response(answer)
    schema["/model"]["GET"].validate_response(requests.get(server.url + "/model", timeout=60))
    schema["/segment"]["POST"].validate_response(requests.post(server.url + "/segment", timeout=60))


def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    # Some requests are valid by the schema and still refused: bytes that are no photo, an option both in the query and
    # in the body, a class that the model does not have.
    checks = ["--checks=all", "--exclude-checks=positive_data_acceptance"]
    arguments = [*checks, "--phases=examples,coverage,fuzzing", "--max-examples=15", "--seed=1"]
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(SCHEMATHESIS), "run", *arguments]
    done = subprocess.run(
        [*command, server.url + "/openapi.json"], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout


PYTHON_CLIENT = """
import base64, sys
from pathlib import Path
from client import Client
from client.api.default import segment
from client.models import Detections, FormBody, ImageBody, Problem
from client.models.segment_format import SegmentFormat
from client.types import File

url, photo = sys.argv[1:]
client = Client(url)
with open(photo, "rb") as file:
    form = FormBody(file=File(payload=file, file_name="photo.jpg"))
    found = segment.sync(client=client, body=form, format_=SegmentFormat.JSON, min_score=0.3)
assert isinstance(found, Detections), found
assert found.annotations[0].score >= 0.3
body = ImageBody(image=base64.b64encode(Path(photo).read_bytes()).decode())
again = segment.sync(client=client, body=body, format_=SegmentFormat.JSON, min_score=0.3)
assert again == found
problem = segment.sync(client=client, body=ImageBody(image="eA=="), format_=SegmentFormat.JSON)
assert isinstance(problem, Problem) and problem.status == 415, problem
"""
TYPESCRIPT_CLIENT = """
import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const [url, photo] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url! });
const form = new FormData();
form.append("file", new Blob([readFileSync(photo!)]), "photo.jpg");
const { data, error } = await client.POST("/segment", {
  params: { query: { format: "json", min_score: 0.3 } },
  body: form as unknown as { file: string }, // openapi-typescript knows no files: a binary string is a string to it
  bodySerializer: (body) => body as unknown as FormData,
});
if (error) throw new Error(error.detail);
const found = data as components["schemas"]["Detections"];
if (!(found.annotations[0]!.score >= 0.3)) throw new Error(JSON.stringify(found));
const refused = await client.POST("/segment", { params: { query: { format: "json" } }, body: { image: "eA==" } });
if (refused.error?.status !== 415) throw new Error(JSON.stringify(refused));
"""


@pytest.mark.slow
def test_a_client_generated_by_openapi_python_client(server: Server, photo: bytes, tmp_path: Path) -> None:
    """Needs a package index."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "openapi-python-client==0.29.1"], check=True, timeout=300)
    (tmp_path / "photo.jpg").write_bytes(photo)
    (tmp_path / "use.py").write_text(PYTHON_CLIENT, encoding="utf-8")
    generate = ["generate", "--url", server.url + "/openapi.json", "--meta", "none", "--output-path", "client"]
    subprocess.run([python.with_name("openapi-python-client"), *generate], cwd=tmp_path, check=True, timeout=600)
    subprocess.run([python, "use.py", server.url, "photo.jpg"], cwd=tmp_path, check=True, timeout=600)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_a_client_generated_by_openapi_typescript(server: Server, photo: bytes, tmp_path: Path) -> None:
    """Needs a package index."""
    packages = ["openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3", "@types/node@20.19.43"]
    (tmp_path / "photo.jpg").write_bytes(photo)
    (tmp_path / "use.mts").write_text(TYPESCRIPT_CLIENT, encoding="utf-8")
    strict = ["--strict", "--noUncheckedIndexedAccess", "--skipLibCheck", "--target", "es2022", "--module", "nodenext"]
    for command in (
        ["npm", "install", "--silent", *packages],
        ["npx", "--no-install", "openapi-typescript", server.url + "/openapi.json", "-o", "schema.d.ts"],
        ["npx", "--no-install", "tsc", *strict, "use.mts"],
        ["node", "use.mjs", server.url, "photo.jpg"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True, timeout=300)


OPENAPI_GENERATOR_PYTHON = """
import json, sys
from openapi_client import ApiClient, Configuration, DefaultApi
from openapi_client.rest import ApiException

url, photo = sys.argv[1:]
api = DefaultApi(ApiClient(Configuration(host=url)))
form = {"file": photo, "_content_type": "multipart/form-data"}
found = json.loads(api.segment(format="json", min_score=0.3, **form))
assert found["annotations"][0]["score"] >= 0.3
assert api.segment(format="png", **form).startswith(b"\\x89PNG")
try:
    api.segment(file=photo)  # sent as an empty body of the type application/json
    raise AssertionError("not refused")
except ApiException as refused:
    assert refused.status == 400 and "multipart/form-data" in refused.body, refused
"""
OPENAPI_GENERATOR_TYPESCRIPT = """
import { readFileSync } from "node:fs";
import { Configuration, DefaultApi } from "./client";

const [url, photo] = process.argv.slice(2);
async function run() {
  const api = new DefaultApi(new Configuration({ basePath: url }));
  const file = new Blob([readFileSync(photo!)]);
  const answer = await api.segmentRaw({ file, format: "json", minScore: 0.3 });
  const found = await answer.raw.json();
  if (!(found.annotations[0].score >= 0.3)) throw new Error(JSON.stringify(found));
  const picture = await api.segment({ file, format: "png" });
  if (picture.type !== "image/png") throw new Error(picture.type);
}
run();
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_clients_generated_by_openapi_generator(server: Server, photo: bytes, tmp_path: Path) -> None:
    """Needs package indexes."""
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    (tmp_path / "photo.jpg").write_bytes(photo)
    (tmp_path / "use.py").write_text(OPENAPI_GENERATOR_PYTHON, encoding="utf-8")
    (tmp_path / "use.ts").write_text(OPENAPI_GENERATOR_TYPESCRIPT, encoding="utf-8")
    document = server.url + "/openapi.json"
    generate: list[str | Path] = [binaries / "openapi-generator-cli", "generate", "-i", document, "-g"]
    strict = ["--strict", "--skipLibCheck", "--target", "es2022", "--module", "commonjs"]
    commands: tuple[list[str | Path], ...] = (
        [binaries / "pip", "install", "-q", "openapi-generator-cli==7.26.0"],
        [*generate, "python", "-o", "python"],
        [binaries / "pip", "install", "-q", "./python"],
        [binaries / "python", "use.py", server.url, "photo.jpg"],
        [*generate, "typescript-fetch", "-o", "client"],
        ["npm", "install", "--silent", "typescript@5.9.3", "@types/node@20.19.43"],
        ["npx", "--no-install", "tsc", *strict, "use.ts"],
        ["node", "use.js", server.url, "photo.jpg"],
    )
    for command in commands:
        subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
