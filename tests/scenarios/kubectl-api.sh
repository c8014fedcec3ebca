#!/usr/bin/env bash
# What kubectl asks of the API server, against a control plane without nodes. KUBECONFIG names the cluster, KUBECTL the
# binary. Every step fails the script when its output is not as it must be.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
ns=scenario-$$
kubectl=${KUBECTL:-kubectl}
k() { "$kubectl" -n "$ns" "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
expect() { # pattern, then a kubectl command
  local pattern=$1 out
  shift
  out=$(k "$@" 2>&1) || fail "kubectl $*: $out"
  grep -qE -- "$pattern" <<<"$out" || fail "kubectl $*: nothing matches $pattern in: $out"
  printf '$ kubectl %s\n' "$*"
}
refused() { # pattern, then a kubectl command that must fail
  local pattern=$1 out
  shift
  if out=$(k "$@" 2>&1); then fail "kubectl $* succeeded: $out"; fi
  grep -qE -- "$pattern" <<<"$out" || fail "kubectl $*: nothing matches $pattern in: $out"
  printf '$ kubectl %s (refused)\n' "$*"
}
cleanup() {
  "$kubectl" delete --ignore-not-found --wait=false -f "$here/every-kind.yaml" >/dev/null 2>&1 || true
  "$kubectl" delete namespace "$ns" --ignore-not-found --wait=false >/dev/null 2>&1 || true
  "$kubectl" delete --ignore-not-found crd stones.scenario.example.com >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT

# Discovery and documents.
expect 'v1\.36' version
expect '^apps/v1$' api-versions
resources=$(k api-resources --no-headers | awk '{print $1, $(NF-2)}')
[ "$(wc -l <<<"$resources")" -ge 60 ] || fail "few resources: $resources"
while read -r name version; do
  out=$(k explain --recursive --api-version="$version" "$name" 2>&1) || fail "explain $name: $out"
  grep -q '^DESCRIPTION:' <<<"$out" || fail "explain $name: no description: $out"
done <<<"$resources"
expect '^FIELD: containers' explain pod.spec.containers

# Every built-in kind that can be made and listed is in the file.
served=$(k api-resources --verbs=create,list --no-headers | awk '$(NF-2) !~ /hawser/ {print $NF "." $(NF-2)}' | sort)
written=$(awk '/^apiVersion:/ {version = $2} /^kind:/ {print $2 "." version}' "$here/every-kind.yaml" | sort -u)
missing=$(comm -23 <(echo "$served") <(echo "$written"))
[ -z "$missing" ] || fail "kinds that every-kind.yaml lacks: $missing"

# Every kind: by server-side apply, by client-side apply, and as a table.
"$kubectl" apply --server-side -f "$here/every-kind.yaml" >"$work/applied" || fail "apply --server-side"
while read -r name; do
  # The namespace only counts where there is one.
  out=$("$kubectl" -n kinds get -o wide "$name" 2>&1) || fail "get $name: $out"
  case $name in
  # Describers of older versions ask for beta versions that 1.36 does not serve.
  ipaddress* | servicecidr* | volumeattributesclass* | *.resource.k8s.io/*) ;;
  *) out=$("$kubectl" -n kinds describe "$name" 2>&1) || fail "describe $name: $out" ;;
  esac
done < <(sed -n 's/ serverside-applied$//p' "$work/applied")
out=$("$kubectl" diff --server-side -f "$here/every-kind.yaml" 2>&1) || fail "diff --server-side: $out"
"$kubectl" apply --server-side --force-conflicts --validate=strict -f "$here/every-kind.yaml" >/dev/null || fail "again"
out=$("$kubectl" apply --dry-run=server --validate=strict -f "$here/every-kind.yaml" 2>&1) || fail "client side: $out"
"$kubectl" apply --validate=strict -f "$here/every-kind.yaml" >"$work/applied" 2>&1 || fail "apply: $(cat "$work/applied")"
[ "$(grep -c 'configured$\|unchanged$' "$work/applied")" = "$(grep -c '^kind:' "$here/every-kind.yaml")" ] ||
  fail "apply: $(cat "$work/applied")"
out=$("$kubectl" diff -f "$here/every-kind.yaml" 2>&1) || fail "diff: $out"
for verb in annotate label; do
  out=$("$kubectl" $verb --overwrite -f "$here/every-kind.yaml" scenario=x 2>&1) || fail "$verb: $out"
done
for resource in $(k api-resources --verbs=list --no-headers -o name); do
  out=$("$kubectl" get -A -o wide "$resource" 2>&1) || fail "get $resource: $out"
done

# Making.
expect created create namespace "$ns"
expect created create configmap settings --from-literal=a=b --from-literal=c=d
expect created create secret generic keys --from-literal=a=b
expect created create secret docker-registry pull --docker-server=r --docker-username=u --docker-password=p
expect created create serviceaccount worker
expect '^ey' create token worker
expect created create deployment web --image=web:1 --replicas=2 --port=80
expect created create job once --image=web:1
expect created create cronjob often --image=web:1 --schedule='*/5 * * * *'
expect created create job from-cron --from=cronjob/often
expect created create role reader --verb=get,list --resource=pods
expect created create rolebinding reader --role=reader --serviceaccount="$ns:worker"
expect created create quota few --hard=configmaps=20
expect created create ingress front --rule='a.example.com/*=web:80'
expect created create poddisruptionbudget most --selector=app=web --min-available=1
expect created create service clusterip plain --tcp=80:80
expect created create service nodeport open --tcp=80:80
expect created create service externalname away --external-name=example.com
expect exposed expose deployment web --name=web --target-port=80
expect autoscaled autoscale deployment web --max=5
expect created run single --image=web:1 --labels=app=single
refused 'already exists' create configmap settings
expect created create quota none --hard=pods=0
refused 'exceeded quota: none' run another --image=web:1
expect deleted delete quota none

# Asking.
expect '^settings +2 ' get configmap settings --no-headers
expect '^b$' get configmap settings -o 'jsonpath={.data.a}{"\n"}'
expect '^settings +b$' get configmap settings --no-headers -o custom-columns=NAME:.metadata.name,A:.data.a
expect '^NAME +TYPE +CLUSTER-IP +EXTERNAL-IP +PORT\(S\) +AGE +SELECTOR$' get services -o wide
expect 'web' get deployments,services -l app=web --show-labels
expect 'configmap/settings' get configmaps --field-selector metadata.name=settings -o name
expect 'settings' get configmaps --sort-by=.metadata.name --chunk-size=1
expect '"resources"' get --raw /apis/apps/v1
expect 'yes' auth can-i create pods
refused '^no' auth can-i create pods --as=nobody
expect 'pods +\[\] +\[\] +\[get list\]' auth can-i --list --as="system:serviceaccount:$ns:worker"
refused 'NotFound' get configmap missing
refused "doesn't have a resource type" get nonsense
k describe deployment web | grep -q '^Replicas:' || fail describe

# Changing.
expect labeled label configmap settings tier=test
refused 'already has a value' label configmap settings tier=other
expect 'labeled' label --overwrite configmap settings tier=other
expect 'unlabeled' label configmap settings tier-
expect 'annotated?$' annotate configmap settings note=x
expect 'patched$' patch configmap settings -p '{"data":{"a":"z"}}'
expect 'no change' patch configmap settings -p '{"data":{"a":"z"}}'
expect patched patch configmap settings --type=merge -p '{"data":{"c":null}}'
expect patched patch configmap settings --type=json -p '[{"op":"add","path":"/data/e","value":"f"}]'
expect '^\{"a":"z","e":"f"\}$' get configmap settings -o 'jsonpath={.data}'
expect patched patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"web:2"}]}}}}'
expect 'image updated' set image deployment/web web=web:3
expect 'env updated' set env deployment/web A=b
expect 'resource requirements updated' set resources deployment/web --limits=cpu=1
expect 'scaled' scale deployment web --replicas=4 --current-replicas=2
expect patched patch deployment web --subresource=status --type=merge -p '{"status":{"observedGeneration":1}}'
printf '#!/bin/sh\nsed -i "s/note: x/note: edited/" "$1"\n' >"$work/editor"
chmod +x "$work/editor"
KUBE_EDITOR="$work/editor" expect 'edited$' edit configmap settings
expect 'edited' get configmap settings -o 'jsonpath={.metadata.annotations.note}'
k get configmap settings -o yaml | sed 's/a: z/a: replaced/' >"$work/replace.yaml"
expect replaced replace -f "$work/replace.yaml"
refused 'the object has been modified' replace -f "$work/replace.yaml"
expect replaced replace --force -f "$here/kustomize/base/web.yaml"

# Waiting and rolling out.
expect 'condition met' wait --for=jsonpath='{.data.e}'=f configmap/settings --timeout=20s
expect 'REVISION' rollout history deployment/web
expect paused rollout pause deployment/web
expect resumed rollout resume deployment/web
expect restarted rollout restart deployment/web
refused 'timed out waiting' rollout status deployment/web --timeout=1s

# Applying.
sed 's/web:1/web:2/' "$here/kustomize/base/web.yaml" >"$work/web.yaml"
expect 'configured|unchanged' apply -f "$here/kustomize/base/web.yaml"
if k diff -f "$work/web.yaml" >"$work/diff"; then fail "diff saw nothing"; fi
grep -q '^+.*web:2' "$work/diff" || fail "diff: $(cat "$work/diff")"
expect 'configured' apply -f "$work/web.yaml"
expect 'unchanged' apply -f "$work/web.yaml"
refused 'conflict' apply --server-side --field-manager=other -f "$here/kustomize/base/web.yaml"
expect 'serverside-applied' apply --server-side --field-manager=other --force-conflicts -f "$here/kustomize/base/web.yaml"
sed 's/replicas: 1/replicsa: 1/' "$here/kustomize/base/web.yaml" >"$work/bad.yaml"
refused 'unknown field "spec.replicsa"' apply --validate=strict -f "$work/bad.yaml"
refused 'unknown field|strict decoding' create --validate=strict --dry-run=server -f "$work/bad.yaml"
expect 'test-web created' apply -k "$here/kustomize/overlay"
expect '^web:2 3 test$' get deployment test-web \
  -o 'jsonpath={.spec.template.spec.containers[0].image} {.spec.replicas} {.metadata.labels.tier}{"\n"}'
expect 'test-web unchanged' apply -k "$here/kustomize/overlay"
expect 'deleted' delete -k "$here/kustomize/overlay"

# A kind of one's own.
cat >"$work/crd.yaml" <<'YAML'
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: stones.scenario.example.com}
spec:
  group: scenario.example.com
  scope: Namespaced
  names: {plural: stones, singular: stone, kind: Stone, shortNames: [st], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.count, statusReplicasPath: .status.count}}
    additionalPrinterColumns: [{name: Weight, type: integer, jsonPath: .spec.weight}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            description: What it is.
            required: [weight]
            properties: {weight: {type: integer, minimum: 1}, count: {type: integer, default: 1}}
          status: {type: object, properties: {count: {type: integer}}}
YAML
stone() { printf 'apiVersion: scenario.example.com/v1\nkind: Stone\nmetadata: {name: s}\nspec: {weight: %s}\n' "$1" >"$work/stone.yaml"; }
expect created create -f "$work/crd.yaml"
expect 'condition met' wait --for=condition=Established crd/stones.scenario.example.com --timeout=20s
stone 5
expect created apply -f "$work/stone.yaml"
expect '^s +5$' get st --no-headers -o custom-columns=N:.metadata.name,W:.spec.weight
expect '^NAME +WEIGHT$' get stones
expect 'stone.scenario.example.com/s' get all -o name
expect 'weight.*-required-' explain stone.spec
expect scaled scale stone s --replicas=3
stone 0
refused 'should be greater than or equal to 1' apply -f "$work/stone.yaml"
stone '"x"'
refused 'invalid|Invalid' apply -f "$work/stone.yaml"
expect deleted delete crd stones.scenario.example.com

# Taking away.
expect deleted delete configmap settings
expect 'deleted' delete -f "$here/kustomize/base/web.yaml" --cascade=foreground --wait=false
expect 'deleted' delete pod single --now --wait=false
expect 'deleted' delete secrets --all
expect "\"$ns\" deleted" delete namespace "$ns" --wait=false
echo "kubectl $("$kubectl" version --client 2>/dev/null | head -1): all steps passed"
