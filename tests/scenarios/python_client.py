#!/usr/bin/env python3
"""What a program with the official Python client does, against a control plane without nodes.

    pip install kubernetes
    KUBECONFIG=... python3 python_client.py

Every step fails the program when its answer is not as it must be.
"""
import os
import sys

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

NS = f"python-{os.getpid()}"
GROUP = "python.example.com"


def refused(code, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ApiException as err:
        assert err.status == code, f"{err.status} instead of {code}: {err.body}"
        return err
    raise AssertionError(f"{call.__name__} was not refused with {code}")


def typed(core):
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="a", labels={"app": "x"}), data={"k": "1"})
    made = core.create_namespaced_config_map(NS, body)
    assert made.metadata.uid and made.data == {"k": "1"}
    refused(409, core.create_namespaced_config_map, NS, body)
    refused(404, core.read_namespaced_config_map, "missing", NS)
    refused(422, core.create_namespaced_config_map, NS, {"metadata": {"name": "Not A Name"}})
    patched = core.patch_namespaced_config_map("a", NS, {"data": {"l": "2"}})
    assert patched.data == {"k": "1", "l": "2"}
    patched = core.patch_namespaced_config_map("a", NS, [{"op": "remove", "path": "/data/l"}])
    assert patched.data == {"k": "1"}
    refused(409, core.replace_namespaced_config_map, "a", NS, made)
    core.create_namespaced_config_map(NS, {"metadata": {"name": "dry"}}, dry_run="All")
    refused(404, core.read_namespaced_config_map, "dry", NS)
    generated = core.create_namespaced_config_map(NS, {"metadata": {"generateName": "g-"}})
    assert generated.metadata.name.startswith("g-")
    secret = core.create_namespaced_secret(NS, client.V1Secret(metadata={"name": "s"}, string_data={"a": "b"}))
    assert secret.data == {"a": "Yg=="}


def pages(core):
    for n in range(7):
        core.create_namespaced_config_map(NS, {"metadata": {"name": f"page-{n}", "labels": {"page": "y"}}})
    found, token = [], None
    while True:
        part = core.list_namespaced_config_map(NS, label_selector="page=y", limit=3, _continue=token)
        found += [i.metadata.name for i in part.items]
        token = part.metadata._continue
        if not token:
            break
        # Of a selection nobody counts the rest.
        assert part.metadata.remaining_item_count is None
    assert found == [f"page-{n}" for n in range(7)], found
    whole = len(core.list_namespaced_config_map(NS).items)
    assert core.list_namespaced_config_map(NS, limit=1).metadata.remaining_item_count == whole - 1
    assert len(core.list_namespaced_config_map(NS, field_selector="metadata.name=page-3").items) == 1
    err = refused(400, core.list_namespaced_config_map, NS, field_selector="data.k=1")
    assert "field label not supported" in err.body, err.body


def watches(core):
    version = core.list_namespaced_config_map(NS).metadata.resource_version
    core.patch_namespaced_config_map("page-0", NS, {"data": {"x": "y"}})
    core.delete_namespaced_config_map("page-0", NS)
    seen, watcher = [], watch.Watch()
    for event in watcher.stream(core.list_namespaced_config_map, NS, resource_version=version, timeout_seconds=20):
        seen.append((event["type"], event["object"].metadata.name))
        if len(seen) == 2:
            watcher.stop()
    assert seen == [("MODIFIED", "page-0"), ("DELETED", "page-0")], seen
    initial, watcher = 0, watch.Watch()
    for event in watcher.stream(core.list_namespaced_config_map, NS, send_initial_events=True, allow_watch_bookmarks=True,
                                resource_version_match="NotOlderThan", label_selector="page=y", timeout_seconds=20):
        if event["type"] == "BOOKMARK":
            watcher.stop()
        else:
            initial += 1
    assert initial == 6, initial


def workloads(apps):
    pod = {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "w"}}, "template": pod}
    apps.create_namespaced_deployment(NS, {"metadata": {"name": "w"}, "spec": spec})
    scaled = apps.patch_namespaced_deployment_scale("w", NS, {"spec": {"replicas": 4}})
    assert scaled.spec.replicas == 4 and scaled.status.selector == "app=w"
    change = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}}
    after = apps.patch_namespaced_deployment("w", NS, change)
    assert [c.image for c in after.spec.template.spec.containers] == ["j"]
    assert apps.read_namespaced_deployment_status("w", NS).spec.replicas == 4
    err = refused(422, apps.patch_namespaced_deployment, "w", NS, {"spec": {"selector": {"matchLabels": {"app": "z"}}}})
    assert "field is immutable" in err.body


def access(api):
    reviews = client.AuthorizationV1Api(api)
    spec = {"resourceAttributes": {"verb": "create", "resource": "pods", "namespace": NS}}
    assert reviews.create_self_subject_access_review({"spec": spec}).status.allowed
    core = client.CoreV1Api(api)
    core.create_namespaced_service_account(NS, {"metadata": {"name": "worker"}})
    token = core.create_namespaced_service_account_token("worker", NS, {"spec": {"expirationSeconds": 3600}})
    other = client.Configuration.get_default_copy()
    other.cert_file = other.key_file = None
    other.api_key, other.api_key_prefix = {"authorization": token.status.token}, {"authorization": "Bearer"}
    worker = client.CoreV1Api(client.ApiClient(other))
    err = refused(403, worker.list_namespaced_pod, NS)
    assert f"system:serviceaccount:{NS}:worker" in err.body
    rbac = client.RbacAuthorizationV1Api(api)
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    rbac.create_namespaced_role(NS, {"metadata": {"name": "r"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "worker", "namespace": NS}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}
    rbac.create_namespaced_role_binding(NS, {"metadata": {"name": "r"}, "subjects": [subject], "roleRef": role})
    check = {"user": f"system:serviceaccount:{NS}:worker", "resourceAttributes": {**spec["resourceAttributes"], "verb": "list"}}
    while not reviews.create_subject_access_review({"spec": check}).status.allowed:
        pass
    worker.list_namespaced_pod(NS)


def kinds_of_ones_own(api):
    definitions = client.ApiextensionsV1Api(api)
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "maximum": 9}}},
                                               "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}
    version = {"name": "v1", "served": True, "storage": True, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": "boxes", "kind": "Box"}
    definitions.create_custom_resource_definition({"metadata": {"name": f"boxes.{GROUP}"}, "spec": {
        "group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]}})
    try:
        watcher = watch.Watch()
        for event in watcher.stream(definitions.list_custom_resource_definition,
                                    field_selector=f"metadata.name=boxes.{GROUP}", timeout_seconds=20):
            conditions = event["object"].status and event["object"].status.conditions or []
            if any(c.type == "Established" and c.status == "True" for c in conditions):
                watcher.stop()
        custom = client.CustomObjectsApi(api)
        box = {"apiVersion": f"{GROUP}/v1", "kind": "Box", "metadata": {"name": "b"}, "spec": {"size": 3, "nope": 1}}
        made = custom.create_namespaced_custom_object(GROUP, "v1", NS, "boxes", box)
        assert made["spec"] == {"size": 3}, made
        box["metadata"]["name"], box["spec"] = "c", {"size": 10}
        refused(422, custom.create_namespaced_custom_object, GROUP, "v1", NS, "boxes", box)
        status = custom.patch_namespaced_custom_object_status(GROUP, "v1", NS, "boxes", "b", {"status": {"any": ["x"]}, "spec": {"size": 1}})
        assert status["status"] == {"any": ["x"]} and status["spec"] == {"size": 3}, status

        found = dynamic.DynamicClient(api)
        boxes = found.resources.get(api_version=f"{GROUP}/v1", kind="Box")
        assert [b.metadata.name for b in boxes.get(namespace=NS).items] == ["b"]
        maps = found.resources.get(api_version="v1", kind="ConfigMap")
        wish = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": "1"}}
        first = maps.server_side_apply(body=wish, namespace=NS, field_manager="one")
        again = maps.server_side_apply(body=wish, namespace=NS, field_manager="one")
        assert first.metadata.resourceVersion == again.metadata.resourceVersion
        wish["data"]["a"] = "2"
        refused(409, maps.server_side_apply, body=wish, namespace=NS, field_manager="two")
        forced = maps.server_side_apply(body=wish, namespace=NS, field_manager="two", force_conflicts=True)
        assert forced.data.a == "2"
    finally:
        definitions.delete_custom_resource_definition(f"boxes.{GROUP}")


def files(api):
    made = utils.create_from_dict(api, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                                        "spec": {"selector": {"app": "w"}, "ports": [{"port": 80}]}}, namespace=NS)
    assert made[0].spec.cluster_ip


def leader(core):
    led = []

    class Done(Exception):
        pass

    def lead():
        led.append(True)

    lock = LeaseLock("leader", NS, "me")
    chosen = electionconfig.Config(lock, lease_duration=17, renew_deadline=15, retry_period=5, onstarted_leading=lead, onstopped_leading=None)
    election = leaderelection.LeaderElection(chosen)
    assert election.try_acquire_or_renew() and election.try_acquire_or_renew()
    held = client.CoordinationV1Api(core.api_client).read_namespaced_lease("leader", NS)
    assert held.spec.holder_identity == "me", held


def main():
    config.load_kube_config()
    api = client.ApiClient()
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": NS}})
    try:
        for step, argument in ((typed, core), (pages, core), (watches, core), (workloads, client.AppsV1Api(api)),
                               (access, api), (kinds_of_ones_own, api), (files, api), (leader, core)):
            step(argument)
            print(f"ok {step.__name__}", flush=True)
        assert client.VersionApi(api).get_code().minor.startswith("36")
        core.delete_collection_namespaced_config_map(NS, label_selector="page=y")
        assert not core.list_namespaced_config_map(NS, label_selector="page=y").items
    finally:
        core.delete_namespace(NS)
    print("all steps passed")


if __name__ == "__main__":
    sys.exit(main())
