#!/usr/bin/env bash
# Rollouts, a pause, a rollout that cannot succeed, undos and a restart, by the real kubectl, while clients on every node
# make requests of the Service without a pause. Every answer is counted, and none may be missing.
# KUBECONFIG names a sandbox, LOAD_IMAGE the image of the load generator (`hawser-bench`).
set -euo pipefail

namespace=rollout-$$
deadline=120s
k() { kubectl -n "$namespace" "$@"; }
fail() { echo "FAILED: $*" >&2; k get deployment,replicaset,pod -o wide >&2; exit 1; }
expect() { # pattern, then a kubectl command
  local pattern=$1 out
  shift
  printf '\n$ kubectl %s\n' "$*"
  out=$(k "$@" 2>&1) || fail "kubectl $*: $out"
  printf '%s\n' "$out"
  grep -qE -- "$pattern" <<<"$out" || fail "kubectl $*: nothing matches $pattern"
}
refused() { # pattern, then a kubectl command that must fail
  local pattern=$1 out
  shift
  printf '\n$ kubectl %s\n' "$*"
  if out=$(k "$@" 2>&1); then fail "kubectl $* succeeded: $out"; fi
  printf '%s\n' "$out"
  grep -qE -- "$pattern" <<<"$out" || fail "kubectl $*: nothing matches $pattern"
}
is() { # what, jsonpath of the Deployment, value
  local found
  found=$(k get deployment web -o "jsonpath=$2")
  [ "$found" = "$3" ] || fail "$1: '$found', not '$3'"
}
# What a revision's ReplicaSet has: its number of pods, the change's cause, and the numbers it had before.
set_of() { # revision, jsonpath
  k get replicasets -l app=web -o "jsonpath={range .items[?(@.metadata.annotations.deployment\.kubernetes\.io/revision=='$1')]}$2{end}"
}
rolled_out() { # revision
  expect 'successfully rolled out' rollout status deployment/web --timeout=$deadline
  is "the Deployment's revision" '{.metadata.annotations.deployment\.kubernetes\.io/revision}' "$1"
  is "the reason" '{.status.conditions[?(@.type=="Progressing")].reason}' NewReplicaSetAvailable
  found=$(set_of "$1" '{.spec.replicas}')
  [ "$found" = "$(k get deployment web -o 'jsonpath={.spec.replicas}')" ] || fail "revision $1 has $found pods"
}
trap 'kubectl delete namespace "$namespace" --wait=false >/dev/null 2>&1 || true' EXIT

kubectl create namespace "$namespace"
k create -f - <<YAML
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
  annotations: {kubernetes.io/change-cause: first}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: server
        image: $LOAD_IMAGE
        args: [serve, --port, "9000"]
        readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports:
  - {name: tcp, port: 9000, protocol: TCP}
  - {name: udp, port: 9000, protocol: UDP}
YAML
rolled_out 1
address=$(k get service web -o jsonpath='{.spec.clusterIP}')

# One client per node; it ends when somebody who was attached lets go of its input, and says what it counted.
nodes=$(kubectl get nodes -o jsonpath='{.items[*].metadata.name}')
for node in $nodes; do
  k create -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: client-$node, labels: {app: client}}
spec:
  nodeName: $node
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: client, image: $LOAD_IMAGE, args: [steady, --target, "$address:9000"], stdin: true, stdinOnce: true}
YAML
done
expect 'condition met' wait --for=condition=Ready pod -l app=client --timeout=60s

# A rollout, annotated as people do.
expect 'env updated' set env deployment/web VERSION=2
expect 'annotated' annotate deployment/web kubernetes.io/change-cause='version 2'
rolled_out 2
expect '^1 +first' rollout history deployment/web
expect '^2 +version 2' rollout history deployment/web
expect 'VERSION:[[:space:]]+2' rollout history deployment/web --revision=2

# While it is paused nothing is rolled out, but it can be scaled; what was changed meanwhile is one revision.
expect 'paused' rollout pause deployment/web
expect 'env updated' set env deployment/web VERSION=3
expect 'resource requirements updated' set resources deployment/web --requests=cpu=10m
expect 'annotated' annotate deployment/web kubernetes.io/change-cause='version 3'
expect 'scaled' scale deployment/web --replicas=5
expect 'condition met' wait deployment/web --for=jsonpath='{.status.conditions[?(@.type=="Progressing")].reason}'=DeploymentPaused --timeout=30s
expect 'condition met' wait deployment/web --for=jsonpath='{.status.availableReplicas}'=5 --timeout=60s
[ "$(k get replicasets -l app=web -o name | wc -l)" = 2 ] || fail "a paused Deployment was rolled out"
[ "$(set_of 2 '{.spec.replicas}')" = 5 ] || fail "a paused Deployment's pods are not of its revision"
refused 'paused' rollout undo deployment/web
expect 'resumed' rollout resume deployment/web
rolled_out 3
expect '^3 +version 3' rollout history deployment/web

# An image that is nowhere: the old pods go on serving, and the deadline says that nothing moves.
expect 'patched' patch deployment web -p '{"spec":{"progressDeadlineSeconds":3}}'
expect 'image updated' set image deployment/web server=hawser.local/nowhere:1
expect 'condition met' wait deployment/web --for=jsonpath='{.status.conditions[?(@.type=="Progressing")].reason}'=ProgressDeadlineExceeded --timeout=60s
refused 'exceeded its progress deadline' rollout status deployment/web --timeout=$deadline
is "the deadline's condition" '{.status.conditions[?(@.type=="Progressing")].status}' False
is "its message" '{.status.conditions[?(@.type=="Progressing")].message}' \
  "ReplicaSet \"$(set_of 4 '{.metadata.name}')\" has timed out progressing."
# A quarter of five, rounded down, may be missing.
available=$(k get deployment web -o 'jsonpath={.status.availableReplicas}')
[ "$available" -ge 4 ] || fail "$available pods are available, less than maxUnavailable allows"
expect 'patched' patch deployment web -p '{"spec":{"progressDeadlineSeconds":600}}'

# Back to the last one, then to a given one: each becomes the newest revision and leaves its old number. The cause comes
# back with it.
expect 'rolled back' rollout undo deployment/web
rolled_out 5
is "image after the undo" '{.spec.template.spec.containers[0].image}' "$LOAD_IMAGE"
is "VERSION after the undo" '{.spec.template.spec.containers[0].env[0].value}' 3
is "cause after the undo" '{.metadata.annotations.kubernetes\.io/change-cause}' 'version 3'
expect 'rolled back' rollout undo deployment/web --to-revision=2
rolled_out 6
is "VERSION after the second undo" '{.spec.template.spec.containers[0].env[0].value}' 2
is "cause after the second undo" '{.metadata.annotations.kubernetes\.io/change-cause}' 'version 2'
[ "$(set_of 6 '{.metadata.annotations.deployment\.kubernetes\.io/revision-history}')" = 2 ] || fail "revision 6 was never 2"
[ "$(k rollout history deployment/web | awk '/^[0-9]/ {printf "%s ", $1}')" = "1 4 5 6 " ] || fail "$(k rollout history deployment/web)"
refused 'unable to find specified revision 2|not found' rollout undo deployment/web --to-revision=2
expect 'restarted' rollout restart deployment/web
rolled_out 7
[ -n "$(k get deployment web -o 'jsonpath={.spec.template.metadata.annotations.kubectl\.kubernetes\.io/restartedAt}')" ] ||
  fail "restart left no annotation"

for node in $nodes; do
  k attach -qi "client-$node" </dev/null >/dev/null
  expect 'condition met' wait "pod/client-$node" --for=jsonpath='{.status.phase}'=Succeeded --timeout=30s
  said=$(k logs "client-$node")
  printf '%s: new connections, requests over kept ones, datagrams: %s\n' "$node" "$said"
  grep -qE '"done":\[[1-9][0-9]{2,},[1-9][0-9]{2,},[1-9][0-9]{2,}\],"failed":\[0,0,0\]' <<<"$said" ||
    fail "requests from $node failed, or there were hardly any"
done
echo "rollout scenario: passed"
