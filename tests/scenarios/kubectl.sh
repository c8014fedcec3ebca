#!/usr/bin/env bash
# The daily work of a kubectl user, against a sandbox with the demo's images. KUBECONFIG names the cluster.
# Every step fails the script when its output is not as it must be.
set -euo pipefail

namespace=scenario-$$
k() { kubectl -n "$namespace" "$@"; }
step() { printf '\n$ kubectl %s\n' "$*"; k "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
expect() { # pattern, then a kubectl command
  local pattern=$1 out
  shift
  printf '\n$ kubectl %s\n' "$*"
  out=$(k "$@") || fail "kubectl $*"
  printf '%s\n' "$out"
  grep -qE -- "$pattern" <<<"$out" || fail "kubectl $*: nothing matches $pattern"
}
trap 'kubectl delete namespace "$namespace" --wait=false >/dev/null 2>&1 || true' EXIT

kubectl create namespace "$namespace"
cat >"${TMPDIR:-/tmp}/$namespace.yaml" <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: nginx
        image: hawser.local/demo/nginx:1
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: client, image: "hawser.local/demo/busybox:1", command: [sh, -c, "echo started; exec sleep 100000"]}
YAML
expect 'deployment.apps/web created' apply -f "${TMPDIR:-/tmp}/$namespace.yaml"
expect 'deployment.apps/web unchanged' apply -f "${TMPDIR:-/tmp}/$namespace.yaml"
rm -f "${TMPDIR:-/tmp}/$namespace.yaml"
expect 'successfully rolled out' rollout status deployment/web --timeout=60s
expect 'condition met' wait --for=condition=Ready pod/client --timeout=60s
expect 'web-.* +1/1 +Running .* node-[0-9]' get pods -o wide
expect '2/2 +2 +2' get deployment web
expect '80/TCP' get service web
expect 'Scheduled.*Successfully assigned' describe pod client
expect 'StrategyType: +RollingUpdate' describe deployment web
expect 'started' logs client
expect 'uid=0' exec client -- id
address=$(k get service web -o jsonpath='{.spec.clusterIP}')
expect 'Served by nginx' exec client -- curl -sS -m 5 "http://$address/"
if k exec client -- sh -c 'exit 7'; then fail "an exit code was lost"; else [ $? -eq 7 ] || fail "exit code $?, not 7"; fi

work=$(mktemp -d)
head -c 3000000 /dev/urandom >"$work/there"
step cp "$work/there" client:/tmp/copied
step cp client:/tmp/copied "$work/back"
cmp "$work/there" "$work/back" || fail "kubectl cp changed the file"
rm -r "$work"

expect 'scaled' scale deployment web --replicas=4
expect 'successfully rolled out' rollout status deployment/web --timeout=60s
expect '4/4' get deployment web
expect 'labeled' label pod client tier=test
expect 'client' get pods -l tier=test
expect '^yes' auth can-i create pods
# `can-i` ends with 1 for a no.
denied=$(k auth can-i list secrets --as="system:serviceaccount:$namespace:default" || true)
[ "$denied" = no ] || fail "an unbound ServiceAccount may list secrets: $denied"
expect 'KIND: +Deployment' explain deployment.spec
expect 'deleted' delete pod client
expect 'deleted' delete deployment web
step wait --for=delete pod -l app=web --timeout=60s
echo "kubectl scenario: passed"
