"""What Kubernetes' OpenAPI documents leave unsaid, said for schemathesis.

The documents (kube-apiserver's, and so Hawser's) name the codes 200, 201, 202 and 401 only. Every other answer is a
`Status`; with that as each operation's `default` response, schemathesis checks all refusals against it.
"""
import pathlib
import re

import schemathesis

STATUS = "io.k8s.apimachinery.pkg.apis.meta.v1.Status"
# The paths of the old way to watch.
WATCHES = ("/watch/",)
# Their answers are objects; Kubernetes' documents call them strings.
OBJECTS = ("/.well-known/openid-configuration/", "/openid/v1/jwks/")


@schemathesis.hook
def before_load_schema(context, schema):
    """Adds the `Status` of every refusal, and leaves out what answers with a stream."""
    known = schema.get("components", {}).get("schemas", {})
    reference = {"$ref": f"#/components/schemas/{STATUS}"} if STATUS in known else {"type": "object"}
    refusal = {"description": "Refused", "content": {"application/json": {"schema": reference}}}
    # Go writes an empty list that is always written as null (the rules of an aggregated ClusterRole).
    for kind in known.values():
        for field in kind.get("properties", {}).values():
            if field.get("type") == "array":
                field["nullable"] = True
    for path in OBJECTS:
        for content in schema["paths"].get(path, {}).get("get", {}).get("responses", {}).get("200", {}).get("content", {}).values():
            content["schema"] = {"type": "object"}
    for path in [p for p in schema["paths"] if any(w in p for w in WATCHES)]:
        del schema["paths"][path]
    for item in schema["paths"].values():
        shared = item.get("parameters", [])
        item["parameters"] = [p for p in shared if p.get("name") not in ("watch", "timeoutSeconds")]
        for operation in item.values():
            if isinstance(operation, dict) and "responses" in operation:
                operation["responses"].setdefault("default", refusal)
                # A watch does not end, and is no list.
                kept = [p for p in operation.get("parameters", []) if p.get("name") not in ("watch", "timeoutSeconds")]
                operation["parameters"] = kept


FORMS = [
    re.compile(".*".join(map(re.escape, line.split("*"))), re.S)
    for line in (pathlib.Path(__file__).parent.parent / "as_kubernetes.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@schemathesis.check
def no_server_error_of_its_own(ctx, response, case):
    """No 5xx, but for the 500s that kube-apiserver itself gives to bad input."""
    if response.status_code < 500:
        return
    message = response.json().get("message", "")
    assert any(form.fullmatch(message) for form in FORMS), f"{response.status_code}: {message}"
