#!/usr/bin/env bash
# schemathesis against every OpenAPI v3 document of a server, which should hold nothing of value.
# usage: run.sh KUBECONFIG [EXAMPLES [SECONDS [PATTERN]]]
#   EXAMPLES  requests per operation [3]
#   SECONDS   most time for one document [600]
#   PATTERN   only documents whose name matches, e.g. '^apis/apps/' [.]
# SCHEMATHESIS names the program (`pip install schemathesis`, 4.32). Ends with 1 when a document failed.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
config=$1 examples=${2:-3} seconds=${3:-600} pattern=${4:-.}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

field() { sed -n "s/^ *$1: *\"\{0,1\}\([^\"]*\)\"\{0,1\}$/\1/p" "$config" | head -1; }
server=$(field server)
for key in certificate-authority client-certificate client-key; do
  field "$key-data" | base64 -d >"$work/$key"
done
cat "$work/client-certificate" "$work/client-key" >"$work/client.pem"
get() { curl -sS --fail --cacert "$work/certificate-authority" --cert "$work/client.pem" "$server$1"; }

failed=0
while read -r name path; do
  get "$path" >"$work/document.json" || { echo "FAILED $name: no document"; failed=1; continue; }
  SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$here timeout "$seconds" "${SCHEMATHESIS:-schemathesis}" \
    --config-file "$here/schemathesis.toml" run "$work/document.json" \
    --url "$server" --tls-verify "$work/certificate-authority" --request-cert "$work/client.pem" \
    --max-examples "$examples" >"$work/log" 2>&1
  case $? in
  0) echo "ok $name: $(grep -o '[0-9]* generated, .*' "$work/log" | head -1)" ;;
  124) echo "FAILED $name: not done after $seconds s"; failed=1 ;;
  *) echo "FAILED $name"; cat "$work/log"; failed=1 ;;
  esac
done < <(get /openapi/v3 | python3 -c '
import json, re, sys
for name, item in sorted(json.load(sys.stdin)["paths"].items()):
    if re.search(sys.argv[1], name):
        print(name, item["serverRelativeURL"])' "$pattern")
exit "$failed"
