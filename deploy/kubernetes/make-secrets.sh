#!/usr/bin/env bash
# Makes the secrets that the manifests mount: a folder of CURVE keys for each role, and the first
# admin key. What exists stays; `kubectl delete secret keys-engine` and another run give engines new
# keys, which gateways and engines learn when they start again.
set -euo pipefail
namespace=${1:-penstock}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
roles="gateway engine auth toolparser"

for role in $roles; do
  mkdir -p "$folder/keys/$role"
  if existing=$(kubectl -n "$namespace" get secret "keys-$role" -o json 2>/dev/null); then
    python3 -c 'import base64, json, pathlib, sys
for name, text in json.load(sys.stdin)["data"].items():
    pathlib.Path(sys.argv[1], name).write_bytes(base64.b64decode(text))' \
      "$folder/keys/$role" <<<"$existing"
  fi
done
chmod -R go-rwx "$folder/keys"
penstock keygen "$folder/keys" --by-role --admin-key "$folder/admin.key"
for role in $roles; do
  kubectl -n "$namespace" create secret generic "keys-$role" --from-file="$folder/keys/$role" \
    --dry-run=client -o yaml | kubectl apply -f -
done
kubectl -n "$namespace" get secret admin-key >/dev/null 2>&1 ||
  kubectl -n "$namespace" create secret generic admin-key --from-file="$folder/admin.key"
