"""Checks recorded answers against the OpenAPI and JSON schemas of a Matrix specification checkout.

Usage: check.py SPECIFICATION RECORDED

SPECIFICATION holds `data/api/client-server/*.yaml`. RECORDED holds `*.jsonl` files, a line an answer:
{"method": "GET", "path": "/_matrix/client/v3/...", "status": 200, "body": ...}, and with "current" the
path that an old or unstable one is an alias of. An error whose status the specification does not
describe must still be a standard error. Ends with status 1 when an answer does not fit its schema, or
when there was nothing to check.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

MOST_FAILURES_SHOWN = 40
MOST_UNKNOWN_SHOWN = 5
# A server without TURN servers answers `{}`: clients in use expect that rather than an error.
EMPTY_ALLOWED = {"/_matrix/client/v3/voip/turnServer"}
# Where the schema of a 401 is that of user-interactive authentication, a missing or unknown access
# token is still a plain error.
PLAIN_UNAUTHORIZED = {"M_MISSING_TOKEN", "M_UNKNOWN_TOKEN"}
DEFINITIONS = "data/api/client-server/definitions"
STANDARD_ERROR = f"{DEFINITIONS}/errors/error.yaml"
# Any endpoint may ask for user-interactive authentication.
AUTHENTICATION = f"{DEFINITIONS}/auth_response.yaml"
METHODS = ("get", "put", "post", "delete")


def load(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=Loader)


class Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):
    """YAML without dates: examples hold strings that look like them."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}


def retrieve(uri):
    contents = load(Path(uri.removeprefix("file://")))
    return Resource(contents=contents, specification=DRAFT202012)


class Operation:
    """One method on one path of the specification."""

    def __init__(self, method, template, uri, pointer, responses):
        self.method, self.template, self.uri = method, template, uri
        self.pointer, self.responses = pointer, responses
        parts = re.split(r"\{[^}]*\}", template)
        self.pattern = re.compile("[^/]*".join(map(re.escape, parts)) + "/?$")
        self.literals = len("".join(parts))

    def schema_pointer(self, status):
        for key in (str(status), f"{str(status)[0]}XX", "default"):
            response = self.responses.get(key)
            if response is None:
                continue
            if "$ref" in response:
                return None
            content = response.get("content", {})
            if "schema" in content.get("application/json", {}):
                return f"{self.pointer}/responses/{key}/content/application~1json/schema"
            return None
        return None


def operations(specification):
    for path in sorted((specification / "data/api/client-server").glob("*.yaml")):
        document = load(path)
        base = document.get("servers", [{}])[0].get("variables", {}).get("basePath", {})
        base = base.get("default", "")
        for template, methods in document.get("paths", {}).items():
            for method in METHODS:
                if method not in methods:
                    continue
                escaped = template.replace("~", "~0").replace("/", "~1")
                yield Operation(
                    method.upper(),
                    base + template,
                    path.resolve().as_uri(),
                    f"/paths/{escaped}/{method}",
                    methods[method].get("responses", {}),
                )


def is_exempt(operation, answer):
    body = answer["body"]
    if operation.template in EMPTY_ALLOWED and body == {}:
        return True
    errcode = body.get("errcode") if isinstance(body, dict) else None
    return answer["status"] == 401 and errcode in PLAIN_UNAUTHORIZED


def main():
    specification, recorded = Path(sys.argv[1]), Path(sys.argv[2])
    known = sorted(operations(specification), key=lambda operation: -operation.literals)
    registry = Registry(retrieve=retrieve)
    validators = {}
    tally, failures, unknown = Counter(), [], Counter()

    def validator(uri, pointer):
        key = (uri, pointer)
        if key not in validators:
            reference = {"$ref": f"{uri}#{pointer}"}
            validators[key] = Draft202012Validator(reference, registry=registry)
        return validators[key]

    for file in sorted(recorded.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            answer = json.loads(line)
            if "body" not in answer:
                tally["not JSON"] += 1
                continue
            path = answer.get("current", answer["path"]).split("?")[0]
            fits = (o for o in known if o.method == answer["method"] and o.pattern.match(path))
            operation = next(fits, None)
            if operation is None:
                unknown[f"{answer['method']} {path}"] += 1
                continue
            pointer = operation.schema_pointer(answer["status"])
            if is_exempt(operation, answer):
                tally["exempt"] += 1
                continue
            if pointer is not None:
                judge = validator(operation.uri, pointer)
            elif answer["status"] >= 400:
                asks = answer["status"] == 401 and "flows" in answer["body"]
                file = specification / (AUTHENTICATION if asks else STANDARD_ERROR)
                judge = validator(file.resolve().as_uri(), "")
            else:
                tally["no schema for the status"] += 1
                continue
            tally["checked"] += 1
            for error in judge.iter_errors(answer["body"]):
                # Alternatives that do not exclude each other: fitting several is fitting.
                if error.validator == "oneOf" and "is valid under each of" in error.message:
                    continue
                where = "/".join(map(str, error.absolute_path))
                failures.append(
                    f"{answer['method']} {operation.template} {answer['status']}: "
                    f"{where}: {error.message[:300]}"
                )

    for failure, times in Counter(failures).most_common(MOST_FAILURES_SHOWN):
        print(f"{times:5} × {failure}")
    print(
        f"schemas: {tally['checked']} answers checked, {len(failures)} faults, "
        f"{tally['exempt']} exempt, "
        f"{tally['not JSON']} not JSON, "
        f"{tally['no schema for the status']} of a status without a schema, "
        f"{sum(unknown.values())} on paths that the specification does not have"
    )
    for path, times in unknown.most_common(MOST_UNKNOWN_SHOWN):
        print(f"{times:5} × not in the specification: {path}")
    if not tally["checked"]:
        print("schemas: nothing was recorded; run `cargo xtask test` first")
    sys.exit(1 if failures or not tally["checked"] else 0)


if __name__ == "__main__":
    main()
